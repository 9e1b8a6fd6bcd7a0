from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade.cli.evaluation_data import FolderData, open_data
from saccade.contracts import ImageSpec
from saccade.errors import ImageError, UsageError
from saccade.evaluate.scenes import SceneConfig, SceneSource
from saccade.evaluate.scenes_folder import write_scenes

SPEC = ImageSpec(size=(32, 32))
NAMES = ("ant", "bee", "cat")


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path: Path, rng: np.random.Generator) -> Path:
    for name in ("bee/1.png", "bee/2.png", "ant/deep/3.png"):
        save(tmp_path / "photos" / name, rng.integers(0, 256, (40, 48, 3), dtype=np.uint8))
        truth = np.zeros((40, 48), np.uint8)
        truth[10:20, 12:30] = 255
        save(tmp_path / "truth" / Path(name).with_suffix(".bmp"), truth)
    return tmp_path / "photos"


def test_folders_that_are_called_like_classes_are_labels(photos: Path) -> None:
    data = open_data(str(photos), SPEC, NAMES)
    assert [(Path(example.name).name, example.label) for example in data] == [
        ("3.png", 0),
        ("1.png", 1),
        ("2.png", 1),
    ]
    assert data.has_labels
    assert not data.has_evidence


def test_as_many_folders_as_classes_go_by_sorted_name(photos: Path) -> None:
    (photos / "zoo").mkdir()
    data = open_data(str(photos), SPEC, ("x", "y", "z"))
    assert [example.label for example in data] == [0, 1, 1]


def test_other_folders_are_no_labels(photos: Path) -> None:
    data = open_data(str(photos), SPEC, ("x", "y", "z", "w"))
    assert not data.has_labels
    assert [example.label for example in data] == [None] * 3


def test_a_mask_goes_the_way_of_its_image(photos: Path, tmp_path: Path) -> None:
    data = open_data(str(photos), SPEC, NAMES, masks=tmp_path / "truth")
    for example in data:
        assert example.evidence is not None
        rows, columns = np.nonzero(example.evidence)
        assert (rows.min(), rows.max() + 1) == (8, 16)  # 10 … 20 of 40, at 32
        assert (columns.min(), columns.max() + 1) == (8, 20)  # 12 … 30 of 48, at 32


def test_scenes_written_to_a_folder_are_the_scenes(tmp_path: Path) -> None:
    source = SceneSource("test", SceneConfig(size=32))
    for _ in write_scenes(source, tmp_path, 6):
        pass
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    written = {
        Path(example.name).stem: example
        for example in open_data(str(tmp_path / "images"), SPEC, names, masks=tmp_path / "masks")
    }
    made = list(open_data("scenes", SPEC, names, count=6))
    assert len(made) == len(written) == 6
    for index, example in enumerate(made):
        other = written[f"{index:06d}"]
        assert other.label == example.label
        np.testing.assert_array_equal(other.image, example.image)
        assert other.evidence is not None
        np.testing.assert_array_equal(other.evidence, example.evidence)


def test_count_and_first_choose_a_part(photos: Path) -> None:
    assert [Path(e.name).name for e in open_data(str(photos), SPEC, NAMES, count=1, first=1)] == ["1.png"]
    with pytest.raises(UsageError, match="leaves no image"):
        open_data(str(photos), SPEC, NAMES, first=3)


def test_an_image_that_cannot_be_read_is_passed_over_and_told(photos: Path) -> None:
    (photos / "bee" / "1.png").write_bytes(b"no image")
    data = open_data(str(photos), SPEC, NAMES)
    assert [Path(example.name).name for example in data] == ["3.png", "2.png"]
    assert list(data.failures) == [str(photos / "bee" / "1.png")]


def test_ground_truth_that_does_not_fit_is_refused(photos: Path, tmp_path: Path) -> None:
    truth = tmp_path / "truth"
    save(truth / "bee" / "1.bmp", np.zeros((40, 48), np.uint8))
    with pytest.raises(ImageError, match="has no evidence"):
        list(open_data(str(photos), SPEC, NAMES, masks=truth))
    save(truth / "bee" / "1.bmp", np.full((10, 10), 255, np.uint8))
    with pytest.raises(ImageError, match=r"10×10 pixels and its image 48×40"):
        list(open_data(str(photos), SPEC, NAMES, masks=truth))
    (truth / "bee" / "1.bmp").unlink()
    with pytest.raises(ImageError, match=r"1 of 3 images have no mask"):
        open_data(str(photos), SPEC, NAMES, masks=truth)


def test_scenes_bring_their_own_truth_and_are_square(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave out --masks"):
        open_data("scenes", SPEC, NAMES, masks=tmp_path)
    with pytest.raises(UsageError, match="square"):
        open_data("scenes", ImageSpec(size=(32, 48)), NAMES)


def test_a_single_file_is_data_too(photos: Path) -> None:
    data = open_data(str(photos / "bee" / "1.png"), SPEC, NAMES)
    assert isinstance(data, FolderData)
    assert data.count == 1
    assert not data.has_labels
