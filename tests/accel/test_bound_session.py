"""ONNX Runtime with bound inputs and outputs, on a processor: the same calls as on a GPU, but for the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from saccade.accel.bound_session import BoundSession
from saccade.accel.bundle import open_bundle
from saccade.accel.onnx_engine import OnnxEngine
from saccade.errors import EngineError, UsageError


@pytest.fixture
def session(tiny_bundle_kept: Path) -> ort.InferenceSession:
    return ort.InferenceSession(tiny_bundle_kept / "explainer.onnx", providers=["CPUExecutionProvider"])


def feeds(rng: np.random.Generator, count: int) -> dict[str, Any]:
    return {
        "image": rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8),
        "target": rng.integers(-1, 4, count, dtype=np.int64),
    }


def test_bound_calls_answer_as_plain_ones(session: ort.InferenceSession, rng: np.random.Generator) -> None:
    bound = BoundSession(session, "cpu")
    names = [output.name for output in session.get_outputs()]
    kept: list[tuple[dict[str, Any], list[Any]]] = []
    for count in (2, 2, 1, 2, 3, 1, 4, 5, 6, 2, 2):  # more shapes than are kept
        asked = feeds(rng, count)
        kept.append((bound.run(asked), session.run(names, asked)))
    for found, wanted in kept:  # all at the end: no answer was written over
        for name, value in zip(names, wanted, strict=True):
            np.testing.assert_array_equal(found[name], value)


def test_each_shape_has_a_graph_of_its_own(session: ort.InferenceSession, rng: np.random.Generator) -> None:
    noted: list[str | None] = []

    class Noting:
        """The session, as a provider that makes graphs would be called."""

        def __getattr__(self, name: str) -> Any:
            return getattr(session, name)

        def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
            noted.append(options and options.get_run_config_entry("gpu_graph_id"))
            session.run_with_iobinding(binding)

    bound = BoundSession(Noting(), "cpu", graphs=True)
    for count in (1, 1, 2, 1, 2):
        bound.run(feeds(rng, count))
    assert noted == ["-1", "1", "-1", "1", "2"]


def test_a_providers_options_reach_it(tiny_bundle_kept: Path) -> None:
    bundle = open_bundle(tiny_bundle_kept)
    engine = OnnxEngine(bundle, provider_options={"cpu": {"any": "1"}})
    assert engine.provider_options == [{"any": "1"}]
    assert "any" in engine.identity, "other options are another engine to the cached pass"
    assert "{" not in OnnxEngine(bundle).identity
    with pytest.raises(UsageError, match="options are for 'cuda', and the providers asked for are CPU"):
        OnnxEngine(bundle, provider_options={"cuda": {"device_id": "1"}})
    with pytest.raises(EngineError, match="onnxruntime-gpu"):
        OnnxEngine(bundle, providers=["cuda"])
