"""``saccade train inr``, and what comes after it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from squares import squares

from saccade.accel.bundle import open_bundle

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index, image in enumerate(squares(3, 40)[0]):
        Image.fromarray(image).save(folder / f"{index:02}.png")
    return folder


def test_a_network_is_trained_exported_and_asked_for_any_areas(
    saccade_command: Run, photos: Path, tmp_path: Path
) -> None:
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    code, said, _ = saccade_command(
        "train", "inr", "--model", "python:squares:random_model", "--data", photos, "--out", run, "--steps", 30,
        "--batch-size", 8, "--parts", 2, "--areas", "0.1,0.3", "--learning-rate", "0.02", "--json",
    )  # fmt: skip
    assert code == 0
    assert [entry["name"] for entry in json.loads(said)["explainers"]] == ["untrained", "trained"]
    with Image.open(run / "preview.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10
    code, said, _ = saccade_command("export", "--checkpoint", run, "--out", bundle)
    assert code == 0
    code, said, _ = saccade_command("verify", bundle)
    assert code == 0
    for options, variants in (
        ((), ["0.1", "0.3"]),
        (("--areas", "0.04,0.2,0.6"), ["0.04", "0.2", "0.6"]),
        (("--several", 2, "--areas", "0.2"), ["mask 1", "mask 2", "together"]),
    ):
        out = tmp_path / f"out {len(variants)} {variants[0]}"
        code, said, _ = saccade_command(
            "explain", photos / "00.png", "--bundle", bundle, *options, "--out", out, "--format", "npz", "--json"
        )
        assert code == 0
        lines = [json.loads(line) for line in said.splitlines()]
        assert [line["variant"] for line in lines] == variants
        masks = np.stack([np.load(out / line["files"]["npz"])["mask"] for line in lines])
        for line, mask in zip(lines, masks, strict=True):
            if line["variant"] == "together":
                np.testing.assert_array_equal(mask, masks[:2].max(0))
                continue
            assert float(mask.mean()) == pytest.approx(line["asked_area"], abs=2e-3)
        if "mask 1" in variants:
            assert int((masks[:2] > 0.5).sum(0).max()) <= 1

    masks_of: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, options in (("whole", ("--size", "80x120")), ("part", ("--size", "40x30", "--box", "0.5,0,0.75,0.5"))):
        out = tmp_path / name
        code, said, _ = saccade_command(
            "explain", photos / "00.png", "--bundle", bundle, "--areas", "0.3", *options, "--out", out, "--json",
            "--format", "npz", "--format", "mask", "--format", "overlay",
        )  # fmt: skip
        assert code == 0
        files = json.loads(said)["files"]
        with Image.open(out / files["mask"]) as picture:
            masks_of[name] = np.load(out / files["npz"])["mask"], np.asarray(picture)
    whole, part = masks_of["whole"], masks_of["part"]
    assert whole[0].shape == (80, 120)
    np.testing.assert_allclose(part[0], whole[0][:40, 60:90], atol=1e-5)
    assert part[1].shape == whole[1].shape == (32, 32)
    left, top, right, bottom = open_bundle(bundle).manifest.image.box(32, 32)
    width, height = right - left, bottom - top
    for name, (mask, picture) in masks_of.items():
        first, last = (left, right) if name == "whole" else (left + round(width / 2), left + round(3 * width / 4))
        end = bottom if name == "whole" else top + round(height / 2)
        expected = Image.fromarray(np.ascontiguousarray(mask)).resize(
            (last - first, end - top), Image.Resampling.BILINEAR
        )
        np.testing.assert_allclose(picture[top:end, first:last], 255 * np.asarray(expected), atol=0.51)
        assert not np.delete(picture.copy(), slice(top, end), 0)[:, first:last].any()
        assert not np.delete(picture.copy(), slice(first, last), 1).any()

    code, said, _ = saccade_command(
        "explain", photos / "00.png", "--bundle", bundle, "--areas", "0.04,0.2", "--out", tmp_path / "table"
    )
    assert code == 0
    assert said.splitlines()[0].split()[:3] == ["image", "class", "mask"]  # each row says which
    assert {"0.04", "0.2"} <= set(said.split())
    code, said, _ = saccade_command("evaluate", bundle, "--data", photos, "--metrics", "area", "--json")
    assert code == 0
    found = json.loads(said)["explainers"][0]["metrics"]["area"]["value"]
    assert found == pytest.approx(np.geomspace(0.02, 0.5, 8).mean(), abs=0.02)  # a map of all areas trained


def test_what_a_network_cannot_do_is_said(
    saccade_command: Run, photos: Path, tmp_path: Path, tiny_bundle_kept: Path
) -> None:
    for options in (("--areas", "0.1"), ("--several", 2), ("--size", "64"), ("--box", "0,0,0.5,0.5")):
        code, _, said = saccade_command("explain", photos, "--bundle", tiny_bundle_kept, *options)
        assert code == 1
        assert "functions of both come from: saccade train inr" in said
    for options, reason in (
        (("--size", "0"), "'0' is not a size in pixels"),
        (("--size", "64x"), "'64x' is not a size in pixels"),
        (("--box", "0,0,1"), "not left,top,right,bottom"),
        (("--box", "0.5,0,0.5,1"), "not a part of the image"),
        (("--box", "nan,0,1,1"), "not a part of the image"),
    ):
        code, _, said = saccade_command("explain", photos, "--bundle", tiny_bundle_kept, *options)
        assert code == 2
        assert reason in " ".join(said.split())
    train = ("train", "inr", "--model", "python:squares:random_model", "--data", photos, "--steps", 1)
    code, _, said = saccade_command(*train, "--areas", "0.1,1.2", "--out", tmp_path / "a")
    assert code == 1
    assert "not inside (0, 1)" in said
    code, _, said = saccade_command(*train, "--areas", "many", "--out", tmp_path / "a")
    assert code == 2
    assert "not a list of areas" in said
    code, _, said = saccade_command(*train, "--out", tmp_path / "run")
    assert code == 0
    code, _, said = saccade_command("explain", photos, "--checkpoint", tmp_path / "run", "--finetune", 2)
    assert code == 1
    assert "--finetune goes on from one of train ltx" in said
