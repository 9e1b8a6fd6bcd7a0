"""A bundle is opened only if it is whole and unchanged; each refusal says what to do."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saccade.accel.bundle import Bundle, file_sha256, open_bundle
from saccade.accel.manifest import GOLDEN_FILE, GRAPH_FILE, MANIFEST_FILE
from saccade.errors import BundleError, UsageError


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / MANIFEST_FILE
    stored = json.loads(path.read_text(encoding="utf-8"))
    change(stored)
    path.write_text(json.dumps(stored), encoding="utf-8")


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bundle_opens_with_its_manifest_and_golden_samples(tiny_bundle_kept: Path) -> None:
    for path in (tiny_bundle_kept, str(tiny_bundle_kept)):
        bundle = open_bundle(path)
        assert bundle.path == tiny_bundle_kept
        assert bundle.graph == tiny_bundle_kept / GRAPH_FILE
        assert bundle.manifest.class_names == ("ant", "bee", "cat", "dog", "emu")
        assert bundle.manifest.image.size == (32, 32)
    golden = open_bundle(tiny_bundle_kept).golden
    count = len(golden.images)
    assert count >= 1
    assert golden.images.shape == (count, 32, 32, 3)
    assert golden.images.dtype == np.uint8
    assert golden.target.shape == (count,)
    assert golden.probabilities.shape == (count, 5)
    assert golden.mask.shape == (count, 1, *open_bundle(tiny_bundle_kept).manifest.mask_size)
    np.testing.assert_allclose(golden.probabilities.sum(1), 1, atol=1e-5)


def test_file_sha256_is_that_of_the_content(tmp_path: Path, rng: np.random.Generator) -> None:
    content = rng.bytes(300_000)
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("name", [GRAPH_FILE, GOLDEN_FILE])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_one_changed_byte_is_refused(tiny_bundle: Path, name: str, place: float) -> None:
    data = bytearray((tiny_bundle / name).read_bytes())
    data[round(place * (len(data) - 1))] ^= 1
    (tiny_bundle / name).write_bytes(data)
    refused(tiny_bundle, name, "damaged", "again")


@pytest.mark.parametrize("name", [GRAPH_FILE, GOLDEN_FILE])
def test_a_missing_file_is_refused(tiny_bundle: Path, name: str) -> None:
    (tiny_bundle / name).unlink()
    refused(tiny_bundle, name, "missing", "again")


def test_a_folder_in_place_of_a_file_is_refused(tiny_bundle: Path) -> None:
    (tiny_bundle / GRAPH_FILE).unlink()
    (tiny_bundle / GRAPH_FILE).mkdir()
    refused(tiny_bundle, GRAPH_FILE, "missing")


def test_a_folder_without_a_manifest_is_no_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    (tiny_bundle / MANIFEST_FILE).unlink()
    for folder in (tiny_bundle, tmp_path / "nowhere"):
        refused(folder, str(folder), "is not a bundle", MANIFEST_FILE, "saccade export")


@pytest.mark.parametrize(
    "text", ["", "{", "not json", "[1, 2]", "7", "null", '"text"', "\xff\xfe", "{}", '{"schema_version": "new"}']
)
def test_a_manifest_that_is_none_is_refused(tiny_bundle: Path, text: str) -> None:
    (tiny_bundle / MANIFEST_FILE).write_bytes(text.encode("latin-1"))
    refused(tiny_bundle, MANIFEST_FILE, "damaged", "export the bundle again")


@pytest.mark.parametrize("version", ["Infinity", "NaN", "[]", "null"])
def test_a_schema_version_that_is_no_number_is_refused(tiny_bundle: Path, version: str) -> None:
    edit_manifest(tiny_bundle, lambda stored: stored.update(schema_version=1))
    text = (tiny_bundle / MANIFEST_FILE).read_text(encoding="utf-8")
    (tiny_bundle / MANIFEST_FILE).write_text(
        text.replace('"schema_version": 1', f'"schema_version": {version}'), encoding="utf-8"
    )
    refused(tiny_bundle, MANIFEST_FILE, "damaged")


def test_a_newer_schema_is_refused_with_the_way_to_read_it(tiny_bundle: Path) -> None:
    edit_manifest(tiny_bundle, lambda stored: stored.update(schema_version=2, something="new"))
    refused(tiny_bundle, "schema version 2", "up to 1", "pip install -U saccade")


@pytest.mark.parametrize("key", ["class_names", "image", "files", "parity", "mask_size", "method"])
def test_a_missing_key_is_refused_by_name(tiny_bundle: Path, key: str) -> None:
    edit_manifest(tiny_bundle, lambda stored: stored.pop(key))
    refused(tiny_bundle, MANIFEST_FILE, f"'{key}'", "export the bundle again")


def test_a_missing_key_deep_inside_is_refused_by_its_place(tiny_bundle: Path) -> None:
    edit_manifest(tiny_bundle, lambda stored: stored["files"][GRAPH_FILE].pop("sha256"))
    refused(tiny_bundle, f"files.{GRAPH_FILE}.sha256")


def test_an_unknown_key_is_refused(tiny_bundle: Path) -> None:
    edit_manifest(tiny_bundle, lambda stored: stored.update(extra=1))
    refused(tiny_bundle, "'extra'")


@pytest.mark.parametrize("change", [{"size": [0, 32]}, {"resize": "stretch"}, {"crop": 2.0}, {"std": [1.0, 0.0, 1.0]}])
def test_an_image_rule_that_cannot_work_is_refused(tiny_bundle: Path, change: dict[str, Any]) -> None:
    edit_manifest(tiny_bundle, lambda stored: stored["image"].update(change))
    refused(tiny_bundle, MANIFEST_FILE, "image", "damaged")


@pytest.mark.parametrize("name", ["../x", "sub/../../x", "sub/x", "..", ".", ""])
def test_a_file_outside_the_folder_is_refused_even_with_the_right_hash(tiny_bundle: Path, name: str) -> None:
    content = b"something else"
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (tiny_bundle / "sub").mkdir()
    for path in (tiny_bundle.parent / "x", tiny_bundle / "sub" / "x"):
        path.write_bytes(content)
    edit_manifest(tiny_bundle, lambda stored: stored["files"].update({name: entry}))
    refused(tiny_bundle, "outside the bundle")


def test_an_absolute_path_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    entry = {"sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}
    edit_manifest(tiny_bundle, lambda stored: stored["files"].update({str(tmp_path / "x"): entry}))
    refused(tiny_bundle, "outside the bundle")


@pytest.mark.parametrize("name", [GRAPH_FILE, GOLDEN_FILE])
def test_a_manifest_that_does_not_list_a_file_is_refused(tiny_bundle: Path, name: str) -> None:
    edit_manifest(tiny_bundle, lambda stored: stored["files"].pop(name))
    refused(tiny_bundle, "does not list", name)


def test_a_bundle_may_hold_more_files_and_may_lie_behind_a_link(tiny_bundle: Path, tmp_path: Path) -> None:
    (tiny_bundle / "NOTES.txt").write_text("mine")
    link = tmp_path / "link"
    os.symlink(tiny_bundle, link)
    assert open_bundle(link).manifest == open_bundle(tiny_bundle).manifest


def test_a_bundle_may_be_opened_by_a_relative_path(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_bundle)
    assert open_bundle(".").manifest == open_bundle(tiny_bundle).manifest


def test_a_moved_bundle_still_opens(tiny_bundle: Path, tmp_path: Path) -> None:
    moved = shutil.move(tiny_bundle, tmp_path / "elsewhere" / "deep")
    assert open_bundle(moved).golden.images.shape[0] > 0


# ---- target classes


@pytest.fixture
def bundle(tiny_bundle_kept: Path) -> Bundle:
    return open_bundle(tiny_bundle_kept)


def test_no_target_is_the_predicted_class(bundle: Bundle) -> None:
    assert bundle.target_index(None) == -1


@pytest.mark.parametrize(("target", "index"), [("ant", 0), ("emu", 4), (0, 0), (4, 4), ("0", 0), ("3", 3)])
def test_a_target_is_found_by_name_or_index(bundle: Bundle, target: str | int, index: int) -> None:
    assert bundle.target_index(target) == index


def test_a_class_whose_name_is_a_number_is_found_by_its_name_first(bundle: Bundle) -> None:
    names = ("4", "0", "cat", "dog", "emu")
    numbered = Bundle(bundle.path, bundle.manifest.model_copy(update={"class_names": names}))
    assert numbered.target_index("4") == 0
    assert numbered.target_index(4) == 4
    assert numbered.target_index("3") == 3


def test_an_unknown_class_is_refused_with_the_nearest_names(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"no class 'bees'.*did you mean bee\?.*0 to 4"):
        bundle.target_index("bees")


def test_a_class_like_no_other_is_refused_with_those_there_are(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"'zzzzzz'.*ant, bee, cat, dog, emu"):
        bundle.target_index("zzzzzz")


@pytest.mark.parametrize("target", [-1, 5, 1000, "-1", "5"])
def test_an_index_out_of_range_is_refused_with_the_range(bundle: Bundle, target: str | int) -> None:
    with pytest.raises(UsageError, match=rf"5 classes, index 0 to 4; {target} is not"):
        bundle.target_index(target)
