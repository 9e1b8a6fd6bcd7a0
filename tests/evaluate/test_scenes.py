import hashlib

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from saccade.errors import UsageError
from saccade.evaluate.scene_material import PHOTOGRAPHS, SPLITS, load_material
from saccade.evaluate.scenes import CLASS_NAMES, SceneConfig, SceneSource, scene_dataset


def test_a_scene_is_the_same_every_time_and_another_for_another_seed_index_or_split() -> None:
    first = SceneSource("train").scene(5)
    np.testing.assert_array_equal(first.image, SceneSource("train").scene(5).image)
    others = [
        SceneSource("train", SceneConfig(seed=1)).scene(5),
        SceneSource("train").scene(6),
        SceneSource("val").scene(5),
        SceneSource("train", SceneConfig(variant="context")).scene(5),
    ]
    assert all(not np.array_equal(first.image, other.image) for other in others)


def test_no_digit_and_no_photograph_is_in_two_splits() -> None:
    assert len({name for names in PHOTOGRAPHS.values() for name in names}) == sum(map(len, PHOTOGRAPHS.values()))
    digests = {
        split: {hashlib.sha256(d.tobytes()).hexdigest() for d in load_material(split).digits} for split in SPLITS
    }
    counts = {split: len(load_material(split).labels) for split in SPLITS}
    assert sum(counts.values()) == 1797
    for one in SPLITS:
        assert len(set(load_material(one).labels)) == 10
        for other in SPLITS:
            if one != other:
                assert len(digests[one] & digests[other]) <= 1  # scikit-learn's set holds hardly any exact twins


@pytest.mark.parametrize("size", [64, 96, 224])
def test_ground_truth_is_the_digit(size: int) -> None:
    source = SceneSource("test", SceneConfig(size=size))
    for index in range(40):
        scene = source.scene(index)
        assert scene.image.shape == (size, size, 3)
        assert scene.image.dtype == np.uint8
        rows, columns = np.nonzero(scene.evidence)
        assert scene.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        height = scene.box[3] - scene.box[1]
        assert 14 * size / 96 <= height <= 58 * size / 96
        assert not scene.context.any()


def test_evidence_is_what_changes_when_another_digit_is_planted() -> None:
    """Two scenes that differ only in the digit differ where one of the digits is, and nowhere else far from both."""
    source = SceneSource("test")
    for index in range(20):
        scene = source.scene(index)
        inside = scene.image[scene.evidence].astype(float).mean(0)
        ring = ndimage.binary_dilation(scene.evidence, iterations=6) & ~ndimage.binary_dilation(
            scene.evidence, iterations=2
        )
        outside = scene.image[ring].astype(float).mean(0)
        assert np.abs(inside - outside).max() > 15, "the digit does not stand out from what surrounds it"


def test_digits_are_readable_by_contrast() -> None:
    weights = np.array([0.2126, 0.7152, 0.0722])
    visible = []
    for index in range(200):
        scene = SceneSource("test").scene(index)
        luminance = scene.image / 255 @ weights
        near = ndimage.binary_dilation(scene.evidence, iterations=5) & ~ndimage.binary_dilation(
            scene.evidence, iterations=1
        )
        visible.append(np.abs(luminance[near] - np.median(luminance[scene.evidence])) > 0.15)
    assert np.mean([share.mean() > 0.6 for share in visible]) > 0.97


def test_context_has_a_second_separate_patch() -> None:
    source = SceneSource("train", SceneConfig(variant="context"))
    for index in range(40):
        scene = source.scene(index)
        assert scene.context.sum() > 400
        assert not (scene.context & scene.evidence).any()


def test_the_context_texture_goes_with_the_class() -> None:
    """The stripes' direction, read from the patch by its gradients alone, separates the five directions."""
    source = SceneSource("test", SceneConfig(variant="context", distractors=0))
    right = 0
    scenes = [source.scene(index) for index in range(60)]
    for scene in scenes:
        grey = scene.image.astype(float).mean(2)
        gy, gx = np.gradient(ndimage.gaussian_filter(grey, 1))
        core = ndimage.binary_erosion(scene.context, iterations=4)
        angle = 0.5 * np.arctan2((2 * gx * gy)[core].sum(), (gx**2 - gy**2)[core].sum())  # structure tensor's direction
        nearest = round((angle % np.pi) / (np.pi / 5)) % 5
        right += nearest == scene.label % 5
    assert right >= 57


def test_clutter_zero_is_a_plain_background() -> None:
    scene = SceneSource("train", SceneConfig(clutter=0)).scene(3)
    away = ~ndimage.binary_dilation(scene.evidence, iterations=8)
    assert scene.image[away].astype(float).std(0).max() < 1


def test_batch_stacks_scenes() -> None:
    source = SceneSource("val")
    batch = source.batch([4, 2])
    np.testing.assert_array_equal(batch.images[1], source.scene(2).image)
    np.testing.assert_array_equal(batch.boxes[0], source.scene(4).box)
    assert batch.labels[0] == source.scene(4).label
    assert len(CLASS_NAMES) == 10


def test_torch_dataset() -> None:
    from torch.utils.data import DataLoader, Dataset

    data = scene_dataset(SceneSource("val"), 5, start=2)
    assert isinstance(data, Dataset)
    images, labels, evidence = next(iter(DataLoader(data, batch_size=5)))
    np.testing.assert_array_equal(images[1].permute(1, 2, 0).numpy(), SceneSource("val").scene(3).image)
    assert labels[0] == SceneSource("val").scene(2).label
    assert evidence.shape == (5, 96, 96)
    with pytest.raises(IndexError):
        data[5]


@pytest.mark.parametrize("wrong", [{"size": 8}, {"variant": "x"}, {"clutter": 2}, {"contrast": 0.9}])
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        SceneConfig(**wrong)  # type: ignore[arg-type]


def test_unknown_split_is_refused() -> None:
    with pytest.raises(UsageError, match="train, val, test"):
        SceneSource("dev")  # type: ignore[arg-type]


def test_photographs_are_real_photographs() -> None:
    for split in SPLITS:
        for photograph in load_material(split).photographs:
            assert min(photograph.shape[:2]) >= 300
            assert np.asarray(Image.fromarray(photograph).convert("L")).std() > 5


def test_a_pair_has_two_digits_of_different_classes_apart_from_each_other() -> None:
    scenes = SceneSource("test", SceneConfig(variant="pair")).batch(range(60))
    assert (scenes.labels != scenes.seconds).all()
    assert set(scenes.seconds.tolist()) == set(range(10))
    assert scenes.evidence.any((1, 2)).all()
    assert scenes.context.any((1, 2)).all()
    shared = (scenes.evidence & scenes.context).sum((1, 2))
    assert (shared > 0).mean() < 0.1  # no room is found in few scenes
    plain = SceneSource("test").batch(range(60))
    assert (plain.seconds == -1).all()
    assert not plain.context.any()
