"""`saccade explain --finetune`, on the explainers that come with Saccade."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade.evaluate.scenes import SceneConfig, SceneSource
from saccade.evaluate.weights_folder import WEIGHTS
from saccade.methods.checkpoint import load_checkpoint
from saccade.methods.train import probabilities_of

Run = Callable[..., tuple[int, str, str]]
SHARED = WEIGHTS / "scenes_resnet_ltx_shared"


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # where results go without --out
    folder = tmp_path / "photos"
    folder.mkdir()
    scenes = SceneSource("test", SceneConfig(variant="pair")).batch(range(3))
    for index, image in enumerate(scenes.images):
        Image.fromarray(image).save(folder / f"{index}.png")
    (folder / "1b.png").write_bytes(b"no picture")
    return folder


def test_both_masks_are_written_and_what_cannot_be_read_is_told(
    saccade_command: Run, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, text, err = saccade_command(
        "explain", photos, "--checkpoint", SHARED, "--finetune", 3, "--out", out, "--format", "npz"
    )
    assert code == 1
    assert "1b.png" in err
    names = {path.name for path in out.iterdir()}
    assert names == {f"{i}.{kind}.npz" for i in range(3) for kind in ("pretrained", "finetuned")} | {"results.jsonl"}
    masks = {name: np.load(out / name)["mask"] for name in names if name.endswith("npz")}
    assert any(np.abs(masks[f"{i}.pretrained.npz"] - masks[f"{i}.finetuned.npz"]).max() > 1e-4 for i in range(3))
    assert "insertion-deletion" in text
    assert "forwards" in text
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [Path(line["image"]).name for line in lines] == ["0.png"] * 2 + ["1.png"] * 2 + ["1b.png"] + ["2.png"] * 2


def test_json_is_all_that_stdout_has(saccade_command: Run, photos: Path) -> None:
    code, text, _ = saccade_command(
        "explain", photos / "0.png", "--checkpoint", WEIGHTS / "scenes_resnet_ltx_any", "--finetune", 2, "--json",
        "--target", "three", "--target", "5",
    )  # fmt: skip
    assert code == 0
    lines = [json.loads(line) for line in text.splitlines()]
    kinds = [f"{name}.{kind}" for name in ("three", "five") for kind in ("pretrained", "finetuned")]
    assert [line["variant"] for line in lines] == kinds
    assert [line["explains"] for line in lines] == ["three", "three", "five", "five"]
    assert all(("milliseconds" in line) == line["variant"].endswith("finetuned") for line in lines)
    for before, after in (lines[:2], lines[2:]):
        assert after["loss"] <= before["loss"]
        assert (after["forwards"], after["backwards"]) == (1 + 2 + 2 * 2, 2)


def test_the_pretrained_mask_says_which_class_it_explains(saccade_command: Run, photos: Path) -> None:
    code, text, _ = saccade_command(
        "explain", photos / "0.png", "--checkpoint", SHARED, "--finetune", 2, "--json", "--target", "three"
    )
    assert code == 0
    before, after = (json.loads(line) for line in text.splitlines())
    assert (before["explains"], after["explains"]) == (before["predicted"], "three")
    assert before["predicted"] != "three"


def test_a_class_without_a_pretrained_mask_is_not_compared(saccade_command: Run, photos: Path) -> None:
    explainer, _ = load_checkpoint(SHARED)
    images = np.stack([np.asarray(Image.open(photos / f"{index}.png")) for index in range(3)])
    predicted = probabilities_of(explainer, images).argmax(1)
    names = explainer.explainee.class_names
    asked = [names[predicted[0]], names[(predicted[0] + 1) % 10]]
    code, text, _ = saccade_command(
        "explain", photos, "--checkpoint", SHARED, "--finetune", 2, "--target", asked[0], "--target", asked[1]
    )
    assert code == 1  # the picture that is none
    words = " ".join(text.split())
    compared = sum(names[label] in asked for label in predicted)
    assert 1 <= compared <= 3
    others = int(words.split(" of 6 explain another class")[0].split()[-1])
    assert others == 6 - compared
    assert f"6 explanations tuned for 2 steps, {compared} compared" in words
    assert "insertion-deletion" in words


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--finetune", 2], 2, "--finetune fine-tunes a trained explainer: --checkpoint DIR"),
        (["--checkpoint", SHARED, "--finetune", 2, "--bundle", "x"], 2, "--bundle"),
        (["--checkpoint", SHARED, "--finetune", 2, "--threads", 1], 2, "--threads"),
        (["--bundle", "x", "--tune", "mask"], 2, "--tune belongs to --finetune"),
        (["--checkpoint", SHARED, "--finetune", 2, "--target", "ten"], 1, "no class 'ten'"),
        (["--checkpoint", "nowhere", "--finetune", 2], 1, "is not a checkpoint"),
        (["--checkpoint", SHARED, "--finetune", 2, "--weights", "gone.pth"], 1, "gone.pth"),
    ],
)
def test_what_cannot_be_done_is_said(
    saccade_command: Run, photos: Path, arguments: list[object], code: int, words: str
) -> None:
    found, _, err = saccade_command("explain", photos / "0.png", *arguments)
    assert found == code
    assert words in " ".join(err.split())
    assert "Traceback" not in err


def test_an_image_whose_loss_breaks_off_does_not_stop_the_others(
    saccade_command: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from saccade.cli import finetune as command
    from saccade.errors import ModelError

    tune = command.finetune

    def fragile(explainer: object, pixels: object, *others: object, **named: object) -> object:
        if float(pixels[:, 0, 0, 0].min()) < 0.01:  # type: ignore[index]
            raise ModelError("the preserve loss of image 0 of the batch is not finite")
        return tune(explainer, pixels, *others, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(command, "finetune", fragile)
    for index in range(3):
        image = np.asarray(Image.open(photos / f"{index}.png")).copy()
        image[0, 0] = 0 if index == 1 else 200
        Image.fromarray(image).save(photos / f"{index}.png")
    (photos / "1b.png").unlink()
    code, text, _ = saccade_command("explain", photos, "--checkpoint", SHARED, "--finetune", 2, "--json")
    assert code == 1
    lines = [json.loads(line) for line in text.splitlines()]
    assert ["error" in line for line in lines] == [False, False, True, False, False]
    assert "1.png" in lines[2]["error"]


def test_without_pytorch_it_is_said_what_to_install(
    saccade_command: Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "safetensors", None)
    code, _, err = saccade_command("explain", photos / "0.png", "--checkpoint", SHARED, "--finetune", 2)
    assert code == 1
    assert "saccade[train]" in err


def test_a_checkpoint_without_its_record_is_named(saccade_command: Run, photos: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(SHARED, copied)
    (copied / "explainer.safetensors").write_bytes(b"")
    code, _, err = saccade_command("explain", photos / "0.png", "--checkpoint", copied, "--finetune", 1)
    assert code == 1
    assert "explainer.safetensors" in err
