from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from squares import SPEC, history_of, squares

from saccade.cli.curve import draw_curve
from saccade.cli.preview import mask_grid
from saccade.cli.training_data import FolderStream, SceneStream, open_training_data
from saccade.errors import ImageError, OutputError
from saccade.evaluate.metrics import Sample, deletion, insertion, measure
from saccade.evaluate.scenes import SceneConfig, SceneSource
from saccade.methods.checkpoint import load_checkpoint, read_record
from saccade.methods.ltx.config import LTXConfig
from saccade.methods.ltx.model import LTXExplainer, build_ltx
from saccade.methods.train import masks_of, probabilities_of

Run = Callable[..., tuple[int, str, str]]
MODEL = ("train", "ltx", "--model", "python:squares:random_model")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images, so that 4 are held out; one of the others cannot be read."""
    folder = tmp_path_factory.mktemp("photos")
    for index, image in enumerate(squares(3, 40)[0]):
        Image.fromarray(image).save(folder / f"{index:02}.png")
    taken = {file.name for file in open_training_data(str(folder), SPEC, 8, 0).held_out.files}  # type: ignore[union-attr]
    next(file for file in sorted(folder.iterdir()) if file.name not in taken).write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A training's folder, what it printed on stdout, and on stderr."""
    import contextlib
    import io

    from saccade.cli.main import saccade

    out, printed, said = tmp_path_factory.mktemp("runs") / "run", io.StringIO(), io.StringIO()
    arguments = [*MODEL, "--data", str(photos), "--out", str(out), "--steps", "9", "--batch-size", "6", "--json"]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        saccade.main([*arguments, "--validate-every", "4", "--entropy", "0.5"], standalone_mode=False)
    return out, printed.getvalue(), said.getvalue()


def held_out(photos: Path) -> list[Path]:
    """One file in ten, by the documented rule."""
    files = sorted(photos.iterdir())
    return [files[int(index)] for index in np.random.default_rng(0).permutation(len(files))[: len(files) // 10]]


def insertion_minus_deletion(explainer: LTXExplainer, files: list[Path], steps: int) -> float:
    images = np.stack([np.asarray(Image.open(file)) for file in files])
    masks = masks_of(explainer, images)[1][:, 0]
    targets = probabilities_of(explainer, images).argmax(1)
    samples = [Sample(*row) for row in zip(images, masks, map(int, targets), strict=True)]
    metrics = [make(fill=(102, 102, 102), steps=steps) for make in (insertion, deletion)]
    rows = measure(metrics, samples, partial(probabilities_of, explainer))
    return float(np.subtract(*(metric.aggregate(rows[metric.name]) for metric in metrics)))


# ---- what a training leaves


def test_the_report_compares_the_untrained_explainer_with_the_trained_one(
    photos: Path, trained: tuple[Path, str, str]
) -> None:
    out, printed, _ = trained
    report = json.loads((out / "report.json").read_text())
    assert json.loads(printed) == report
    assert [explainer["name"] for explainer in report["explainers"]] == ["untrained", "trained"]
    explainer, record = load_checkpoint(out)
    torch.manual_seed(0)
    untrained = build_ltx(explainer.explainee, record.config)
    for stored, ours in zip(report["explainers"], (untrained, explainer), strict=True):
        assert set(stored["metrics"]) == {"insertion", "deletion", "insertion-deletion", "area"}
        expected = insertion_minus_deletion(ours, held_out(photos), 16)
        assert stored["metrics"]["insertion-deletion"]["value"] == pytest.approx(expected, abs=1e-6)
        images = np.stack([np.asarray(Image.open(file)) for file in held_out(photos)])
        assert stored["metrics"]["area"]["value"] == pytest.approx(masks_of(ours, images)[1].mean(), rel=1e-4)
    assert report["images"] == 4
    assert "4 held-out images" in report["data"]
    assert (report["steps"], report["weights"]) == (9, "last")


def test_the_validation_is_insertion_minus_deletion_of_the_images_held_out(
    photos: Path, trained: tuple[Path, str, str]
) -> None:
    out, _, said = trained
    scores = {row["step"]: row["validation"] for row in history_of(out) if "validation" in row}
    assert list(scores) == [4, 8, 9]
    assert scores[9] == pytest.approx(insertion_minus_deletion(load_checkpoint(out)[0], held_out(photos), 8), abs=1e-6)
    best = max(scores, key=lambda step: scores[step])  # the first of equal ones
    assert (read_record(out).best_step, read_record(out).best_score) == (best, scores[best])
    assert "training on 36 images; validation: 4 held-out images drawn from" in re.sub(r"\s+", " ", said)
    assert re.search(
        r"step 9: preserve [\d.]+  complement [\d.]+  area [\d.]+  entropy [\d.]+  total .* validation", said
    )


def test_the_pictures_are_there(trained: tuple[Path, str, str]) -> None:
    out, _, _ = trained
    assert {file.name for file in (out / "masks").iterdir()} == {f"step-00000{step}.png" for step in (4, 8, 9)}
    assert (out / "preview.png").read_bytes() == (out / "masks" / "step-000009.png").read_bytes()
    assert (out / "masks" / "step-000004.png").read_bytes() != (out / "preview.png").read_bytes()
    for name in ("preview.png", "curve.png"):
        with Image.open(out / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 10
    assert (out / "curve.png").read_bytes() == draw_curve(history_of(out))
    assert {file.name for file in out.iterdir()} == {
        *("checkpoint.json", "explainer.safetensors", "history.jsonl", "training_state.pt", "samples.npz"),
        *("curve.png", "preview.png", "masks", "report.json"),
    }


def test_a_finished_training_resumes_to_the_same_report(
    saccade_command: Run, photos: Path, trained: tuple[Path, str, str], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(trained[0], tmp_path / "run"))
    settings = ("--steps", 9, "--batch-size", 6, "--validate-every", 4, "--entropy", 0.5)
    code, printed, _ = saccade_command(*MODEL, "--data", photos, "--out", out, "--json", "--resume", *settings)
    assert code == 0
    assert json.loads(printed) == json.loads(trained[1]) | {"checkpoint": str(out)}


def test_a_training_resumes_with_the_images_it_began_with_wherever_they_lie(
    saccade_command: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, moved, out = tmp_path / "photos", tmp_path / "elsewhere", tmp_path / "run"
    shutil.copytree(photos, here)
    from saccade.methods import train as train_module

    monkeypatch.setattr(train_module, "SAVE_EVERY", 2)
    command = (*MODEL, "--steps", 4, "--batch-size", 6, "--validate-every", 0)
    whole = tmp_path / "whole"
    assert saccade_command(*command, "--out", whole, "--data", here)[0] == 0
    save, saved = train_module.save_checkpoint, []

    def save_once(*arguments: Any) -> None:
        if saved:
            raise OutputError("the disk is full")
        saved.append(save(*arguments))

    with monkeypatch.context() as full:
        full.setattr(train_module, "save_checkpoint", save_once)
        assert saccade_command(*command, "--out", out, "--data", here)[0] == 1
    assert read_record(out).step == 2
    here.rename(moved)
    first = next(file for file in sorted(moved.iterdir()) if file.name not in {name.name for name in held_out(moved)})
    content = first.read_bytes()
    for change in ("added", "changed"):
        if change == "added":
            Image.new("RGB", (32, 32)).save(moved / "41.png")
        else:
            first.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        code, _, err = saccade_command(*command, "--out", out, "--data", moved, "--resume")
        assert code == 1
        assert "some were added, removed or changed" in " ".join(err.split())
        (moved / "41.png").unlink(missing_ok=True)
        first.write_bytes(content)
    assert saccade_command(*command, "--out", out, "--data", moved, "--resume")[0] == 0
    ours, theirs = (load_file(folder / "explainer.safetensors") for folder in (out, whole))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_a_training_resumes_with_the_images_it_was_validated_on(
    saccade_command: Run, photos: Path, tmp_path: Path
) -> None:
    command = (*MODEL, "--data", photos, "--out", tmp_path / "run", "--steps", 2, "--validate-every", 1)
    assert saccade_command(*command)[0] == 0
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (32, 32)).save(other / "1.png")
    code, _, err = saccade_command(*command, "--resume", "--validation", other)
    assert code == 1
    assert "images" in err


def test_a_training_that_starts_from_another_is_compared_with_it(
    saccade_command: Run, photos: Path, trained: tuple[Path, str, str], tmp_path: Path
) -> None:
    command = (*MODEL, "--data", photos, "--out", tmp_path / "run", "--steps", 1, "--patience", 1, "--json")
    code, printed, _ = saccade_command(*command, "--start", trained[0])
    assert code == 0
    report = json.loads(printed)
    before, after = report["explainers"]
    assert (before["name"], after["name"]) == ("before", "trained")
    assert before["metrics"] == next(
        explainer["metrics"] for explainer in json.loads(trained[1])["explainers"] if explainer["name"] == "trained"
    )
    assert report["data"].endswith("; by these the best weights were chosen too")


def test_a_resumed_training_does_not_need_its_start(
    saccade_command: Run, photos: Path, trained: tuple[Path, str, str], tmp_path: Path
) -> None:
    start = Path(shutil.copytree(trained[0], tmp_path / "start"))
    command = (*MODEL, "--data", photos, "--out", tmp_path / "run", "--steps", 1, "--json", "--start", start)
    assert saccade_command(*command)[0] == 0
    shutil.rmtree(start)
    code, printed, _ = saccade_command(*command, "--resume")
    assert code == 0
    assert [explainer["name"] for explainer in json.loads(printed)["explainers"]] == ["untrained", "trained"]


def test_people_get_a_table_and_the_next_command(saccade_command: Run, photos: Path, tmp_path: Path) -> None:
    code, printed, _ = saccade_command(*MODEL, "--data", photos, "--out", tmp_path / "run", "--steps", 2)
    assert code == 0
    assert re.search(r"insertion ↑ +untrained +[\d.]+", printed)
    assert f"saccade export --checkpoint {tmp_path / 'run'}" in re.sub(r"\n", "", printed)


def test_scenes_are_validated_on_their_own_split_and_reported_with_pointing() -> None:
    data = open_training_data("scenes", SPEC, 4, 0)
    assert data.held_out is not None
    assert (data.held_out.title, data.reported.title) == (
        "64 planted scenes, val split, from index 0",
        "128 planted scenes, test split, from index 0",
    )
    assert data.reported.has_evidence


# ---- images


def test_no_image_that_is_held_out_is_trained_on(photos: Path) -> None:
    data = open_training_data(str(photos), SPEC, 9, 3)
    seen = {name for step in range(40) for name in data.stream.names(step)}
    kept = {str(file) for file in held_out(photos)}
    assert data.held_out is not None
    assert {example.name for example in data.held_out} == kept
    assert len(kept) == 4
    broken = {str(file) for file in photos.iterdir() if file.read_bytes() == b"no picture"}
    assert seen == {str(file) for file in photos.iterdir()} - kept - broken


@pytest.mark.parametrize("stream", ["folder", "scenes", "pairs"])
def test_the_parts_of_a_step_are_the_step(photos: Path, stream: str) -> None:
    files = sorted(photos.iterdir())[1:]
    images: Any = (
        FolderStream(files, SPEC, 7, 5) if stream == "folder" else SceneStream(96, 7, 5, pairs=stream == "pairs")
    )
    for step in (0, 6):
        whole = images(step)
        assert whole.shape == ((7, 32, 32, 3) if stream == "folder" else (7, 96, 96, 3))
        for count in (2, 3):
            for rank in range(count):
                part = slice(rank, None, count)
                np.testing.assert_array_equal(images.part(step, part), whole[part])
    if stream == "folder":
        for image, name in zip(images(6), images.names(6), strict=True):
            original = np.asarray(Image.open(name))
            assert any(np.array_equal(image, view) for view in (original, original[:, ::-1]))


def test_for_any_class_every_second_scene_has_two_digits() -> None:
    stream = open_training_data("scenes", SPEC, 4, 2, pairs=True).stream
    sources = [SceneSource("train", SceneConfig(size=32, seed=3, variant=variant)) for variant in ("digit", "pair")]
    for step in (0, 3):
        expected = [sources[index % 2].scene(index).image for index in range(4 * step, 4 * step + 4)]
        np.testing.assert_array_equal(stream(step), np.stack(expected))


def test_own_images_to_validate_with_leave_all_others_to_train_on(photos: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for index, image in enumerate(squares(4, 3)[0]):
        Image.fromarray(image).save(own / f"{index}.png")
    data = open_training_data(str(photos), SPEC, 8, 0, own)
    assert data.held_out is not None
    assert {Path(example.name).parent for example in data.held_out} == {own}
    assert data.about.startswith("40 images; validation: 3 held-out images in")
    with pytest.raises(ImageError, match=r"all images of .* are held out"):
        open_training_data(str(own), SPEC, 8, 0, own)


def test_patience_with_too_few_images_asks_for_more(saccade_command: Run, tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    Image.fromarray(squares(4, 1)[0][0]).save(tmp_path / "few" / "one.png")
    arguments = (*MODEL, "--data", tmp_path / "few", "--out", tmp_path / "run", "--steps", 1, "--batch-size", 4)
    code, _, said = saccade_command(*arguments, "--patience", 2)
    assert code == 1
    assert "too small; give --validation DIR" in said
    code, printed, said = saccade_command(*arguments, "--json")
    assert code == 0
    assert "none held out" in said
    assert json.loads(printed)["data"] == "1 of the images that were trained on"


def test_images_that_break_the_loss_are_named_by_their_files(
    saccade_command: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import squares as task

    class NoRedAtTheTop(task.SquareCNN):
        """Not a number for images whose red square touches the upper half, masked or not."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = super().forward(x)
            red = (x[:, 0, :12] - x[:, 1, :12]).amax((1, 2)) > 1
            return logits + torch.where(red & torch.is_grad_enabled(), float("nan"), 0.0)[:, None]

    monkeypatch.setattr(task, "SquareCNN", NoRedAtTheTop)
    code, _, said = saccade_command(*MODEL, "--data", photos, "--out", tmp_path / "run", "--batch-size", 12)
    assert code == 1
    named = re.findall(r"\S+\.png", said.partition("Error: ")[2].replace("\n", ""))
    assert named
    for name in named:
        top = np.asarray(Image.open(name)).astype(int)[:12]
        assert (top[..., 0] - top[..., 1]).max() > 100


# ---- settings


@pytest.mark.parametrize(
    ("spec", "area"),
    [
        ("torchvision:resnet101", 50),
        ("timm:vit_base_patch16_224", 50),
        ("timm:vit_small_patch16_224", 30),
        ("hf:WinKawaks/vit-small-patch16-224", 30),
        ("timm:deit_small_patch16_224", 30),
        ("torchvision:vit_b_16", 50),
        ("timm:mobilevit_s", 50),
    ],
)
def test_the_published_settings(spec: str, area: float) -> None:
    config = LTXConfig.published(spec)
    assert (config.form, config.baseline, config.area_form, config.evidence) == ("own", "black", "softplus", False)
    assert (config.preserve, config.complement, config.entropy, config.area) == (1, 0, 0, area)
    assert LTXConfig.published(spec, area=7, form="shared") == LTXConfig.published(spec, form="shared", area=7.0)
    assert LTXConfig.published(spec, area=7).area == 7


def test_options_win_over_the_recipe_even_where_they_name_its_default(
    saccade_command: Run, photos: Path, tmp_path: Path
) -> None:
    arguments = (*MODEL, "--data", photos, "--steps", 1, "--json")
    recipe = ("--recipe", "published", "--complement", "1.0", "--batch-size", 4)
    assert saccade_command(*arguments, "--out", tmp_path / "published", *recipe)[0] == 0
    expected = LTXConfig.published("python:squares:random_model", complement=1.0, batch_size=4, steps=1)
    assert read_record(tmp_path / "published").config == expected
    assert saccade_command(*arguments, "--out", tmp_path / "saccade", "--batch-size", 4)[0] == 0
    assert read_record(tmp_path / "saccade").config == LTXConfig(steps=1, batch_size=4)


def test_fp16_on_a_processor_is_one_sentence(saccade_command: Run, photos: Path, tmp_path: Path) -> None:
    arguments = (*MODEL, "--data", photos, "--out", tmp_path / "run", "--device", "cpu")
    code, _, said = saccade_command(*arguments, "--precision", "fp16")
    assert code == 1
    assert said == "Error: --precision fp16 needs a GPU and the device is 'cpu'; take bf16 or fp32\n"


def test_two_processes_of_the_command_train_what_one_trains(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("lightning_fabric")
    program = tmp_path / "saccade_program.py"
    program.write_text("from saccade.cli.main import main\n\nif __name__ == '__main__':\n    main()\n")
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    printed = []
    for count in ("1", "2"):
        arguments = [*MODEL, "--data", str(photos), "--out", str(tmp_path / count), "--devices", count]
        done = subprocess.run(
            [
                sys.executable,
                str(program),
                *arguments,
                *("--device", "cpu", "--steps", "5", "--batch-size", "5", "--json"),
            ],
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        printed.append(json.loads(done.stdout))
    one, two = (load_file(tmp_path / count / "explainer.safetensors") for count in ("1", "2"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5, msg=name)
    assert [row["step"] for row in history_of(tmp_path / "2")] == [1, 2, 3, 4, 5]


# ---- pictures


def test_the_grid_shows_every_image_beside_its_mask() -> None:
    images = np.stack([np.full((32, 32, 3), 60 * place + 20, np.uint8) for place in range(3)])
    masks = np.zeros((3, 32, 32), np.float32)
    masks[1] = 1
    grid = mask_grid(images, ["a", "b", "c"], masks)
    rows, columns = grid.shape[0] // 2, grid.shape[1] // 4
    for place in range(3):
        middle = (place // 2 * rows + rows // 2 - 10, place % 2 * 2 * columns)
        shown, overlay = grid[middle[0], middle[1] + columns // 2], grid[middle[0], middle[1] + columns * 3 // 2]
        assert shown.tolist() == images[place, 0, 0].tolist()
        coloured = int(overlay.max()) - int(overlay.min()) > 30
        assert coloured == (place == 1)


def test_the_curve_changes_with_what_it_shows() -> None:
    rows = [
        {"step": step, "preserve": 1 / step, "area": 0.5, "total": 1 / step + 0.5, "learning_rate": 1e-3}
        for step in range(1, 30)
    ]
    plain = draw_curve(rows)
    assert draw_curve(rows) == plain
    assert draw_curve([row | {"validation": 0.5} for row in rows]) != plain
    assert draw_curve([row | {"entropy": 0.5} for row in rows]) != plain
    assert draw_curve(rows[:1]).startswith(b"\x89PNG")
