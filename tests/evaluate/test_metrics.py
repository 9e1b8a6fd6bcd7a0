import numpy as np
import pytest

from saccade.errors import UsageError
from saccade.evaluate.metrics import box_hits, insertion_deletion, inside_outside


def brightness_model(weights: np.ndarray) -> object:
    """Probability of class 1 is the weighted mean brightness: a classifier whose curves are known."""

    def predict(images: np.ndarray) -> np.ndarray:
        score = (images.mean(3) / 255 * weights).sum((1, 2)) / weights.sum()
        return np.stack([1 - score, score], 1).astype(np.float32)

    return predict


def test_curves_equal_a_pixel_by_pixel_loop(rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (3, 8, 9, 3), dtype=np.uint8)
    masks = rng.random((3, 8, 9)).astype(np.float32)
    target = np.array([1, 0, 1])
    predict = brightness_model(rng.random((8, 9)))
    curves = insertion_deletion(predict, images, masks, target, fill=(10, 20, 30), steps=6, batch_size=4)
    for n in range(3):
        order = sorted(((y, x) for y in range(8) for x in range(9)), key=lambda p: -masks[n][p])
        for step in range(7):
            count = round(step / 6 * 72)
            kept, removed = np.empty((8, 9, 3), np.uint8), images[n].copy()
            kept[:] = (10, 20, 30)
            for y, x in order[:count]:
                kept[y, x] = images[n, y, x]
                removed[y, x] = (10, 20, 30)
            assert curves.insertion[n, step] == pytest.approx(predict(kept[None])[0, target[n]], abs=1e-6)
            assert curves.deletion[n, step] == pytest.approx(predict(removed[None])[0, target[n]], abs=1e-6)
        area = sum((curves.insertion[n, i] + curves.insertion[n, i + 1]) / 2 / 6 for i in range(6))
        assert curves.insertion_auc[n] == pytest.approx(area)


def test_the_truth_beats_its_inverse() -> None:
    weights = np.zeros((16, 16))
    weights[4:9, 5:11] = 1
    images = np.full((1, 16, 16, 3), 255, np.uint8)
    truth = weights[None].astype(np.float32)
    predict = brightness_model(weights)
    good = insertion_deletion(predict, images, truth, np.array([1]), fill=(0, 0, 0))
    bad = insertion_deletion(predict, images, 1 - truth, np.array([1]), fill=(0, 0, 0))
    assert good.insertion_auc[0] > 0.9 > 0.1 > bad.insertion_auc[0]
    assert good.deletion_auc[0] < 0.1 < 0.9 < bad.deletion_auc[0]


def test_a_constant_mask_is_an_order_at_random_not_from_the_corner() -> None:
    weights = np.zeros((20, 20))
    weights[:4] = 1
    curves = insertion_deletion(
        brightness_model(weights),
        np.full((1, 20, 20, 3), 255, np.uint8),
        np.ones((1, 20, 20), np.float32),
        np.array([1]),
        fill=(0, 0, 0),
    )
    assert curves.insertion_auc[0] == pytest.approx(0.5, abs=0.06)


def test_masks_that_do_not_fit_are_refused() -> None:
    images = np.zeros((1, 4, 4, 3), np.uint8)
    with pytest.raises(UsageError, match="belong together"):
        insertion_deletion(
            brightness_model(np.ones((4, 4))), images, np.ones((1, 4, 5), np.float32), np.array([1]), fill=(0, 0, 0)
        )
    with pytest.raises(UsageError, match="finite"):
        insertion_deletion(
            brightness_model(np.ones((4, 4))),
            images,
            np.full((1, 4, 4), np.nan, np.float32),
            np.array([1]),
            fill=(0, 0, 0),
        )


def test_box_hits_at_the_edges_of_the_box() -> None:
    masks = np.zeros((4, 6, 8), np.float32)
    peaks = [(2, 3), (4, 5), (4, 6), (5, 5)]
    for mask, (y, x) in zip(masks, peaks, strict=True):
        mask[y, x] = 1
    boxes = np.tile([3, 2, 6, 5], (4, 1))  # left, top, right, bottom; right and bottom exclusive
    assert box_hits(masks, boxes).tolist() == [True, True, False, False]


def test_inside_outside_are_means() -> None:
    evidence = np.zeros((1, 4, 4), bool)
    evidence[0, :2, :2] = True
    mask = np.where(evidence, 0.8, 0.1).astype(np.float32)
    inside, outside = inside_outside(mask, evidence)
    assert inside[0] == pytest.approx(0.8)
    assert outside[0] == pytest.approx(0.1)
