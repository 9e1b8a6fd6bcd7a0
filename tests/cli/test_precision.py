"""Bundles that hold their graph in lower precision as well."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from runtimes import tensorrt_refusal

from saccade.accel.bundle import open_bundle
from saccade.accel.compare import cosine
from saccade.accel.engines import open_engine
from saccade.errors import ParityError
from saccade.evaluate.weights_folder import WEIGHTS

Run = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.xdist_group("precision")  # one bundle for all, which takes a minute and more


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from saccade.export.write_bundle import export_trained
    from saccade.methods.checkpoint import load_checkpoint, load_samples

    out = tmp_path_factory.mktemp("precision") / "bundle"
    checkpoint = WEIGHTS / "scenes_resnet_ltx_shared"
    explainer, record = load_checkpoint(checkpoint)
    images = load_samples(checkpoint)
    if images is None:
        from saccade.cli.data import sample_images

        images = sample_images("scenes", record.image_spec)
    export_trained(explainer, record, images, out, precisions=("fp16", "bf16", "int8", "fp16"))
    return out


def test_a_bundle_holds_each_precision_once_with_its_report(bundle: Path) -> None:
    opened = open_bundle(bundle)  # the hashes of all files
    assert list(opened.manifest.precisions) == ["fp16", "bf16", "int8"]
    whole = opened.manifest.files["explainer.onnx"].bytes
    for precision, size, least in (("fp16", 0.55, 0.9999), ("bf16", 0.55, 0.9999), ("int8", 0.35, 0.999)):
        assert opened.manifest.files[f"explainer.{precision}.onnx"].bytes < size * whole
        assert opened.manifest.precisions[precision].mask_cosine > least
    assert [report.weight_bits for report in opened.manifest.precisions.values()] == [None, None, 7]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_tensorrt_builds_an_engine_of_it(bundle: Path, precision: str) -> None:
    assert tensorrt_refusal(bundle / f"explainer.{precision}.onnx") == ""


def test_openvino_has_the_bf16_operators_that_onnx_runtime_lacks(saccade_command: Run, bundle: Path) -> None:
    assert "--engine openvino" in saccade_command("verify", bundle, "--precision", "bf16")[2]
    code, out, err = saccade_command("verify", bundle, "--precision", "bf16", "--engine", "openvino")
    assert code == 0, out + err


@pytest.mark.parametrize("bits", [7, 8])
def test_deploying_warns_of_weights_with_which_triton_is_wrong_on_some_processors(
    saccade_command: Run, bundle: Path, tmp_path: Path, bits: int
) -> None:
    copied = shutil.copytree(bundle, tmp_path / "[copied]")
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["precisions"]["int8"]["weight_bits"] = bits
    (copied / "manifest.json").write_text(json.dumps(manifest))
    code, out, err = saccade_command("deploy", "triton", copied, "--repository", tmp_path / "a", "--precision", "int8")
    assert code == 0, out + err
    assert ("[copied]' has weights of 8 bits" in err) == (bits == 8)
    assert "Warning" not in saccade_command("deploy", "triton", copied, "--repository", tmp_path / "b")[2]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_bundle_is_verified_in_each_precision(saccade_command: Run, bundle: Path, precision: str) -> None:
    code, out, err = saccade_command("verify", bundle, "--precision", precision)
    assert code == 0, err
    assert "cosine with PyTorch's" in " ".join(out.split())


def test_fp16_runs_on_a_processor_and_explains_the_same(saccade_command: Run, bundle: Path) -> None:
    code, out, err = saccade_command("verify", bundle, "--precision", "fp16")
    assert code == 0, err
    assert "cosine with PyTorch's" in " ".join(out.split())
    code, out, err = saccade_command("verify", bundle, "--precision", "fp16", "--json")
    assert all(check["passed"] for check in json.loads(out)["checks"])
    single, half = (open_engine(bundle, precision=precision) for precision in ("fp32", "fp16"))
    images = single.bundle.golden.images
    expected, found = single.run(images), half.run(images)
    assert 0 < np.abs(found.mask - expected.mask).max() < 0.01
    assert cosine(found.mask, expected.mask).min() > 0.9999
    np.testing.assert_allclose(half.probabilities(images), expected.probabilities, atol=2e-3)
    code, out, err = saccade_command("bench", bundle, "--precision", "fp16", "--seconds", 0.1, "--json")
    assert code == 0, err
    assert {row["precision"] for row in json.loads(out)} == {"fp16"}


def test_what_a_bundle_or_an_engine_has_not_is_said(saccade_command: Run, bundle: Path, tiny_bundle: Path) -> None:
    code, _, err = saccade_command("verify", tiny_bundle, "--precision", "fp16")
    assert code == 1
    assert "holds no fp16 graph, but fp32; export it again with --precision fp16" in " ".join(err.split())
    code, _, err = saccade_command("verify", bundle, "--precision", "bf16")
    assert code == 1
    assert (
        "a processor has no bf16 operators here: use --engine openvino, --provider cuda or --precision fp32"
        in " ".join(err.split())
    )


def test_calibration_is_of_int8(saccade_command: Run, tmp_path: Path) -> None:
    code, _, err = saccade_command(
        "export", "--method", "gradcam", "--model", "scenes:resnet", "--calibrate", "scenes", "--out", tmp_path / "b"
    )
    assert code == 1
    assert "--calibrate goes with --precision int8" in err


def test_a_graph_in_lower_precision_must_reproduce_the_golden_samples(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from saccade.accel import precision

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bars = precision.PrecisionBars(cosine=0.999, top10_iou=0.97, probabilities=1e-9)
    monkeypatch.setitem(precision.BARS, "fp16", bars)
    with pytest.raises(
        ParityError, match=r"onnxruntime .* fp16 does not compute what .*: probabilities differ by up to"
    ):
        open_engine(bundle, precision="fp16")
    open_engine(bundle)
