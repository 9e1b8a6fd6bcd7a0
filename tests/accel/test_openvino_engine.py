"""The OpenVINO engine against ONNX Runtime's answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from saccade.accel.bundle import open_bundle
from saccade.accel.engines import open_engine
from saccade.accel.openvino_engine import OpenVINOEngine
from saccade.errors import BundleError, EngineError, ParityError, UsageError


def test_masks_and_probabilities_are_those_of_onnx_runtime(tiny_bundle_kept: Path) -> None:
    ours, theirs = (open_engine(tiny_bundle_kept, name, threads=1) for name in ("openvino", "onnx"))
    images = ours.bundle.golden.images
    for target in (None, 3):
        found, wanted = ours.run(images, target), theirs.run(images, target)
        np.testing.assert_allclose(found.mask, wanted.mask, atol=1e-5)
        np.testing.assert_allclose(found.probabilities, wanted.probabilities, atol=1e-5)
        np.testing.assert_array_equal(found.target, wanted.target)
    np.testing.assert_allclose(ours.probabilities(images), theirs.probabilities(images), atol=1e-5)
    first = ours.run(images[:1]).mask.copy()
    kept = ours.run(images[:1]).mask
    ours.run(images[1:2])
    np.testing.assert_array_equal(kept, first, "answers are written over by the next call")


def test_what_it_cannot_do_is_said(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="execution providers are ONNX Runtime's"):
        open_engine(tiny_bundle, "openvino", providers=["cpu"])
    bundle = open_bundle(tiny_bundle)
    with pytest.raises(EngineError, match="holds no int8 graph"):
        OpenVINOEngine(bundle, precision="int8")
    whole = bundle.graph.read_bytes()
    bundle.graph.write_bytes(whole[:1000])
    with pytest.raises(BundleError, match=r"explainer\.onnx' cannot be used: the ONNX file is damaged"):
        OpenVINOEngine(bundle).run(bundle.golden.images)
    bundle.graph.write_bytes(whole.replace(b"Softmax", b"Hardmix"))
    with pytest.raises(EngineError, match=r"OpenVINO .* cannot load .*explainer\.onnx"):
        OpenVINOEngine(bundle).run(bundle.golden.images)


def test_a_wrong_map_is_refused_before_it_is_shown(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no pass is remembered"))
    answers = OpenVINOEngine._answers

    def other(self: OpenVINOEngine, what: str, feeds: dict[str, object]) -> dict[str, object]:
        found = answers(self, what, feeds)  # type: ignore[arg-type]
        return {**found, "mask": found["mask"][:, :, ::-1]} if what == "mask" else found

    monkeypatch.setattr(OpenVINOEngine, "_answers", other)
    with pytest.raises(ParityError, match=r"openvino .* does not compute what the original"):
        open_engine(tiny_bundle, "openvino")
