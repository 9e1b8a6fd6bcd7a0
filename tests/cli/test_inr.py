"""``saccade explain --method inr``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.evaluate.scenes import SceneConfig, SceneSource

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("images")
    for index in range(2):
        Image.fromarray(SceneSource("test").scene(index).image).save(place / f"{index}.png")
    (place / "broken.png").write_bytes(b"no image")
    return place


def test_each_area_is_an_explanation_of_its_own(saccade_command: Run, folder: Path, tmp_path: Path) -> None:
    code, said, _ = saccade_command(
        "explain", folder, "--method", "inr", "--model", "scenes:resnet", "--areas", "0.05,0.2", "--steps", 4,
        "--out", tmp_path / "out", "--format", "npz", "--format", "overlay", "--json",
    )  # fmt: skip
    assert code == 1  # one image cannot be read
    lines = [json.loads(line) for line in said.splitlines()]
    assert [line["variant"] for line in lines if "variant" in line] == ["0.05", "0.2"] * 2
    assert sum("error" in line for line in lines) == 1
    for line in lines:
        if "error" in line:
            continue
        mask = np.load(tmp_path / "out" / line["files"]["npz"])["mask"]
        assert mask.shape == (96, 96)
        assert float(mask.mean()) == pytest.approx(float(line["variant"]), abs=2e-3)
        assert 0 <= line["kept_probability"] <= 1
        assert (tmp_path / "out" / line["files"]["overlay"]).stat().st_size > 1000


def test_an_image_that_diverges_does_not_stop_the_others(
    saccade_command: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saccade.evaluate import scenes_models

    class NoBlackCorner(scenes_models.ScenesResNet):
        """Not a number for images whose first pixel is dark, masked or not, where a gradient is wanted."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            dark = (x[:, 0, 0, 0] < -1) & torch.is_grad_enabled()
            logits: torch.Tensor = super().forward(x) + torch.where(dark, float("nan"), 0.0)[:, None]
            return logits

    monkeypatch.setattr(scenes_models, "ScenesResNet", NoBlackCorner)
    for index, corner in enumerate((200, 0, 200)):
        image = SceneSource("test").scene(index).image.copy()
        image[:12, :12] = corner
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    code, said, err = saccade_command(
        "explain", tmp_path, "--method", "inr", "--model", "scenes:resnet", "--areas", "0.1", "--steps", 3, "--json"
    )
    assert code == 1
    lines = [json.loads(line) for line in said.splitlines()]
    assert ["error" in line for line in lines] == [False, True, False]
    assert "1.png: the mask diverges at step 1; lower the learning rate" in lines[1]["error"]
    assert "1.png" in " ".join(err.split())
    code, said, _ = saccade_command(
        "explain", tmp_path / "1.png", "--method", "inr", "--model", "scenes:resnet", "--areas", "0.1", "--steps", 3,
        "--target", "3", "--target", "4", "--json",
    )  # fmt: skip
    assert code == 1
    errors = [json.loads(line)["error"].rpartition("/")[2] for line in said.splitlines()]
    assert [error.partition(": ")[0] for error in errors] == ["1.png, class '3'", "1.png, class '4'"]


def test_a_mask_that_explains_nothing_is_said(saccade_command: Run, folder: Path, tmp_path: Path) -> None:
    asked = ["explain", folder / "0.png", "--method", "inr", "--model", "scenes:resnet", "--steps", 30]
    code, said, _ = saccade_command(*asked, "--areas", "0.3", "--out", tmp_path / "out")
    assert (code, "explains nothing" in said) == (0, False)
    code, said, _ = saccade_command(*asked, "--areas", "0.001,0.3", "--out", tmp_path / "lost", "--learning-rate", 100)
    assert code == 0
    assert "1 of the images with a mask that holds on to less than 10% of the class's probability" in " ".join(
        said.split()
    )


def test_several_masks_have_no_pixel_in_common(saccade_command: Run, tmp_path: Path) -> None:
    scene = SceneSource("test", SceneConfig(variant="context")).scene(3)  # the classifier knows it by either
    Image.fromarray(scene.image).save(tmp_path / "either.png")
    code, said, _ = saccade_command(
        "explain", tmp_path / "either.png", "--method", "inr", "--model", "scenes:context", "--several", 2, "--areas",
        "0.1", "--steps", 60, "--baseline", "mean", "--out", tmp_path / "out", "--format", "npz", "--json",
    )  # fmt: skip
    assert code == 0
    lines = [json.loads(line) for line in said.splitlines()]
    assert [line["variant"] for line in lines] == ["mask 1", "mask 2", "together"]
    all_masks = lines.pop()
    assert all_masks["area"] == pytest.approx(sum(line["area"] for line in lines), abs=1e-3)
    assert all_masks["retention"] >= 0.9 * max(line["retention"] for line in lines)
    masks = [np.load(tmp_path / "out" / line["files"]["npz"])["mask"] for line in lines]
    assert sum(masks).max() == 1
    assert all(line["retention"] >= 0.1 for line in lines)


def test_fewer_masks_than_were_asked_for_are_said(saccade_command: Run, folder: Path, tmp_path: Path) -> None:
    code, said, _ = saccade_command(
        "explain", folder / "0.png", "--method", "inr", "--model", "scenes:resnet", "--several", 8, "--areas", "0.1",
        "--steps", 40, "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0
    assert 1 <= said.count("mask ") - said.count("the mask ") < 8
    assert "1 of the images with fewer than 8 masks" in " ".join(said.split())


def test_an_image_without_a_mask_that_is_enough_is_told(saccade_command: Run, folder: Path) -> None:
    code, said, _ = saccade_command(
        "explain", folder / "0.png", "--method", "inr", "--model", "scenes:resnet", "--several", 1, "--areas", "0.002",
        "--steps", 1, "--json",
    )  # fmt: skip
    assert code == 1
    assert "no mask of 0.002 of the image holds on to 10%" in json.loads(said)["error"]
    code, said, _ = saccade_command(
        "explain", folder / "0.png", "--method", "inr", "--model", "scenes:resnet", "--several", 1, "--target", "nine",
        "--steps", 1, "--json",
    )  # fmt: skip
    assert code == 1
    assert "there is no evidence to find" in json.loads(said)["error"]


def test_the_table_says_what_was_kept(saccade_command: Run, folder: Path, tmp_path: Path) -> None:
    code, said, _ = saccade_command(
        "explain",
        folder / "0.png",
        "--method",
        "inr",
        "--model",
        "scenes:resnet",
        "--steps",
        2,
        "--out",
        tmp_path / "o",
    )
    assert code == 0
    assert "kept: the class's probability where only the mask is shown" in said
    assert "0.05" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "inr"), "--model SPEC"),
        (("--method", "inr", "--model", "scenes:resnet", "--areas", "0.1,1.5"), "not inside (0, 1)"),
        (("--method", "inr", "--model", "scenes:resnet", "--areas", "a"), "not a list of areas"),
        (
            ("--method", "inr", "--model", "scenes:resnet", "--several", "9", "--areas", "0.2"),
            "do not fit side by side",
        ),
        (("--method", "inr", "--model", "scenes:resnet", "--target", "eleven"), "eleven"),
        (("--method", "inr", "--model", "scenes:resnet", "--bundle", "b"), "does not go with --method"),
        (("--bundle", "b", "--objective", "dual"), "belongs to --method inr"),
        (("--bundle", "b", "--baseline", "mean"), "belongs to --method inr"),
        (("--method", "inr", "--model", "scenes:resnet", "--baseline", "grey"), "unknown baseline 'grey'"),
        (("--method", "inr", "--model", "scenes:resnet", "--margin", "0.1"), "goes with --several"),
        (("--method", "inr", "--model", "scenes:resnet", "--several", "2", "--margin", "0.7"), "0<=x<0.5"),
        (("--checkpoint", "c", "--finetune", "2", "--areas", "0.1"), "does not go with --finetune"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(
    saccade_command: Run, folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, _, complaint = saccade_command("explain", folder / "0.png", *arguments)
    assert code in (1, 2)
    assert message in complaint
    assert "Traceback" not in complaint
