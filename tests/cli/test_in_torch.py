"""`saccade explain` without a bundle: `--method` and `--checkpoint` in PyTorch."""

from __future__ import annotations

import copy
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.accel.image import resize_image
from saccade.evaluate.scenes import SceneConfig, SceneSource
from saccade.evaluate.weights_folder import WEIGHTS
from saccade.methods.checkpoint import load_checkpoint
from saccade.methods.explainee import Explainee

Run = Callable[..., tuple[int, str, str]]
MODEL = ("--model", "python:tiny:build")
SHARED, FUNCTIONS = WEIGHTS / "scenes_resnet_ltx_shared", WEIGHTS / "scenes_resnet_inr"


@pytest.fixture(autouse=True)
def _importable(tiny_explainee: Explainee, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the tiny model's spec, python:tiny:build, one that can be loaded."""
    module = types.ModuleType("tiny")
    module.build = lambda: copy.deepcopy(tiny_explainee.model)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tiny", module)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, image in enumerate(SceneSource("test", SceneConfig(variant="pair")).batch(range(3)).images):
        Image.fromarray(image).save(folder / f"{index}.png")
    (folder / "1b.png").write_bytes(b"no picture")
    return folder


def answers(out: Path) -> dict[str, np.ndarray]:
    return {path.name: np.load(path)["mask"] for path in sorted(out.glob("*.npz"))}


@pytest.mark.parametrize("method", ["gradcam", "dix", "iia"])
def test_a_method_explains_as_its_bundle_does(saccade_command: Run, photos: Path, tmp_path: Path, method: str) -> None:
    asked = (photos, "--target", "cat", "--target", 4, "--format", "npz")
    code, out, err = saccade_command("explain", *asked, "--method", method, *MODEL, "--out", tmp_path / "torch")
    assert code == 1, err  # the picture that is none
    assert "1b.png" in err
    assert "6 explained, 1 could not be read" in " ".join(out.split())
    saccade_command("export", "--method", method, *MODEL, "--out", tmp_path / "bundle")
    saccade_command("explain", *asked, "--bundle", tmp_path / "bundle", "--out", tmp_path / "onnx")
    found, expected = answers(tmp_path / "torch"), answers(tmp_path / "onnx")
    assert found.keys() == expected.keys()
    assert len(found) == 6
    for name, mask in found.items():
        np.testing.assert_allclose(mask, expected[name], atol=1e-4)
    assert max(np.abs(found["0.cat.npz"] - found[name]).max() for name in found if name.startswith("0")) > 0.01


def test_a_trained_explainer_explains_without_a_bundle(saccade_command: Run, photos: Path, tmp_path: Path) -> None:
    code, out, err = saccade_command(
        "explain", photos / "0.png", photos / "2.png", "--checkpoint", SHARED, "--out", tmp_path / "out",
        "--format", "npz", "--json",
    )  # fmt: skip
    assert code == 0, err
    records = [json.loads(line) for line in out.splitlines()]
    explainer, _ = load_checkpoint(SHARED)
    spec = explainer.explainee.image_spec
    for record, name in zip(records, ("0", "2"), strict=True):
        image = resize_image(np.asarray(Image.open(photos / f"{name}.png").convert("RGB")), spec)
        pixels = torch.from_numpy(image[None].copy()).permute(0, 3, 1, 2) / 255
        with torch.no_grad():
            logits, mask = explainer(explainer.explainee.normalise(pixels))
        assert record["predicted"] == explainer.explainee.class_names[int(logits.argmax())]
        assert record["probability"] == pytest.approx(float(logits.softmax(1).max()), abs=1e-5)
        np.testing.assert_allclose(answers(tmp_path / "out")[f"{name}.npz"], mask[0, 0].numpy(), atol=1e-5)


def test_functions_are_rendered_in_pytorch_too(saccade_command: Run, photos: Path, tmp_path: Path) -> None:
    code, _, err = saccade_command(
        "explain", photos / "0.png", "--checkpoint", FUNCTIONS, "--areas", "0.05,0.3", "--size", "40x56",
        "--out", tmp_path / "out", "--format", "npz",
    )  # fmt: skip
    assert code == 0, err
    masks = list(answers(tmp_path / "out").values())
    assert [mask.shape for mask in masks] == [(40, 56)] * 2
    assert [float(mask.mean()) for mask in masks] == pytest.approx([0.05, 0.3], abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--method", "dix"), 2, "--method needs the classifier: --model SPEC"),
        (("--method", "iia9", *MODEL), 1, "given by --checkpoint; did you mean iia or iia3"),
        (("--method", "dix", *MODEL, "--bundle", "b"), 2, "--bundle does not go with --method"),
        (("--method", "dix", *MODEL, "--checkpoint", SHARED), 2, "--checkpoint does not go with --method"),
        (("--method", "dix", *MODEL, "--steps", 3), 2, "--steps belongs to --method inr"),
        (("--method", "dix", *MODEL, "--areas", "0.1"), 1, "this explainer's masks have one area"),
        (("--checkpoint", SHARED, "--threads", 1), 2, "--threads belongs to a bundle, not to PyTorch"),
        (("--checkpoint", SHARED, "--tune", "mask"), 2, "--tune belongs to --finetune"),
        (("--checkpoint", SHARED, "--target", "ten"), 1, "there is no class 'ten'"),
        (("--checkpoint", FUNCTIONS, "--several", 3), 1, "was trained for 2 masks without a common pixel, not 3"),
        ((), 2, "Missing option '--bundle'; or --method with --model, or --checkpoint"),
    ],
)
def test_what_does_not_go_together_is_said(
    saccade_command: Run, photos: Path, arguments: tuple[object, ...], code: int, words: str
) -> None:
    found, _, err = saccade_command("explain", photos / "0.png", *arguments)
    assert found == code
    assert words in " ".join(err.split())
    assert "Traceback" not in err
