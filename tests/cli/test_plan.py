"""``saccade export --format tensorrt-rtx``, with the real TensorRT for RTX."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from saccade.accel.bundle import open_bundle
from saccade.accel.gpu import Gpu, free_bytes
from saccade.errors import EngineError

Run = Callable[..., tuple[int, str, str]]
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing on machines without a GPU")


def test_a_bundle_gets_plans_for_gpus_that_are_not_here(saccade_command: Run, tiny_bundle: Path) -> None:
    code, out, err = saccade_command(
        "export", "--bundle", tiny_bundle, "--format", "tensorrt-rtx", "--gpu", "sm86", "--batch-sizes", "1,2,4"
    )
    assert code == 0, err
    said = " ".join(out.split())
    assert "mask fp32 sm86 1–4, best 2" in said
    assert "probabilities fp32 sm86" in said
    assert "on its first GPU" in said
    assert {plan.gpus for plan in open_bundle(tiny_bundle).manifest.plans.values()} == {("sm86",)}


def test_an_export_goes_on_to_plans(saccade_command: Run, tmp_path: Path) -> None:
    code, out, err = saccade_command(
        *("export", "--method", "gradcam", "--model", "scenes:resnet", "--precision", "fp16", "--out", tmp_path / "b"),
        *("--format", "tensorrt-rtx", "--gpu", "sm89"),
    )
    assert code == 0, err
    assert "TensorRT plans" in out
    manifest = open_bundle(tmp_path / "b").manifest
    assert {(plan.answer, plan.precision) for plan in manifest.plans.values()} == {
        ("mask", "fp16"),
        ("probabilities", "fp16"),
    }


def test_plans_need_no_pytorch(tiny_bundle: Path) -> None:
    program = (
        "import sys; sys.modules['torch'] = None; sys.modules['onnx'] = None\nfrom saccade.cli.main import main; main()"
    )
    arguments = ["export", "--bundle", str(tiny_bundle), "--format", "tensorrt-rtx", "--gpu", "sm89"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--format", "onnx"), "--bundle goes with --format tensorrt"),
        (("--format", "tensorrt-rtx", "--overwrite"), "--bundle takes a bundle that is there"),
        (("--format", "tensorrt-rtx", "--out", "x"), "--bundle takes a bundle that is there"),
        (("--format", "tensorrt-rtx", "--gpu", "sm89", "--batch-sizes", "1,8"), "the least, the best and the most"),
        (("--format", "tensorrt-rtx", "--gpu", "gtx"), "builds for"),
        (("--format", "tensorrt-rtx", "--gpu", "sm89", "--timing-cache", "t"), "leave out --timing-cache"),
    ],
)
def test_what_does_not_go_together_is_said(
    saccade_command: Run, tiny_bundle_kept: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, _, err = saccade_command("export", "--bundle", tiny_bundle_kept, *arguments)
    assert code == 1
    assert message in " ".join(err.split())


def test_options_of_plans_are_refused_without_plans(saccade_command: Run, tiny_bundle_kept: Path) -> None:
    code, _, err = saccade_command("export", "--bundle", tiny_bundle_kept, "--gpu", "sm89")
    assert code == 2
    assert "--gpu goes with --format tensorrt" in err


def test_what_cannot_become_a_plan_is_said_before_the_export(saccade_command: Run, tmp_path: Path) -> None:
    asked = ("export", "--method", "gradcam", "--model", "no:such", "--out", tmp_path / "b", "--format", "tensorrt-rtx")
    for options, message in (
        (("--gpu", "sm89", "--precision", "int8"), "quantised for processors"),
        (("--gpu", "sm89", "--any-size"), "no antialiased resizing"),
        (("--gpu", "sm89", "--batch-sizes", "8,1,2"), "the least, the best and the most"),
    ):
        code, _, err = saccade_command(*asked, *options)
        assert code == 1
        assert message in " ".join(err.split())


def test_an_export_without_a_place_to_go_is_refused(saccade_command: Run) -> None:
    code, _, err = saccade_command("export", "--method", "gradcam", "--model", "scenes:resnet")
    assert code == 1
    assert "--out FOLDER" in err


@without_gpu
def test_without_a_gpu_a_plan_neither_builds_for_it_nor_runs(saccade_command: Run, tiny_bundle_kept: Path) -> None:
    code, _, err = saccade_command("export", "--bundle", tiny_bundle_kept, "--format", "tensorrt-rtx")
    assert code == 1
    assert "there is no NVIDIA GPU here" in err
    code, _, err = saccade_command("verify", tiny_bundle_kept, "--engine", "tensorrt")
    assert code == 1
    assert "there is no NVIDIA GPU here" in err
    with pytest.raises(EngineError, match="doctor"):
        Gpu()
    assert free_bytes() is None
