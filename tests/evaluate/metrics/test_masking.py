"""Average drop, increase in confidence and drop in deletion against a loop over pixels."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from saccade.errors import UsageError
from saccade.evaluate.metrics import ADD, ADP, PIC, Predict, Sample, measure

Array = np.ndarray
METRICS = (ADP(), PIC(), ADD())


def naive_shaded(image: Array, mask: Array, inverse: bool) -> Array:
    """Every value times mask or one minus mask, half rounded up."""
    shaded = np.empty_like(image)
    for y, x, channel in np.ndindex(*image.shape):
        weight = 1 - float(mask[y, x]) if inverse else float(mask[y, x])
        shaded[y, x, channel] = math.floor(float(image[y, x, channel]) * weight + 0.5)
    return shaded


def naive_values(sample: Sample, predict: Predict) -> dict[str, float]:
    before, kept, taken = (
        float(predict(image[None])[0, sample.target])
        for image in (
            sample.image,
            naive_shaded(sample.image, sample.mask, inverse=False),
            naive_shaded(sample.image, sample.mask, inverse=True),
        )
    )
    return {
        "adp": 100 * max(0.0, before - kept) / before,
        "pic": 100.0 if kept > before else 0.0,
        "add": 100 * max(0.0, before - taken) / before,
    }


def test_values_equal_a_loop_over_pixels(make_samples: Callable[..., list[Sample]], toy: Predict) -> None:
    samples = make_samples(16, predicted=toy)
    expected = [naive_values(sample, toy) for sample in samples]
    rows = measure(METRICS, samples, toy)
    for metric in METRICS:
        values = [one[metric.name] for one in expected]
        assert len(set(values)) > 1, "images must differ, or the comparison says nothing"
        np.testing.assert_allclose(metric.per_image(rows[metric.name]), values, atol=1e-6)
        assert metric.aggregate(rows[metric.name]) == pytest.approx(sum(values) / len(values), abs=1e-6)
    assert 0 in {one["adp"] for one in expected}, "one image gains, and its drop is cut off at 0"


def test_a_mask_that_keeps_all_drops_and_gains_nothing(samples: list[Sample], toy: Predict) -> None:
    ones = [Sample(sample.image, np.ones_like(sample.mask), sample.target) for sample in samples]
    rows = measure(METRICS, ones, toy)
    assert (rows["adp"] == 0).all()
    assert (rows["pic"] == 0).all(), "equal is no increase"
    black = [toy(np.zeros_like(sample.image)[None])[0, sample.target] for sample in samples]
    before = [toy(sample.image[None])[0, sample.target] for sample in samples]
    drops = [100 * max(0, p - o) / p for p, o in zip(before, black, strict=True)]
    np.testing.assert_allclose(rows["add"][:, 0], drops, atol=1e-6)


def test_what_a_mask_keeps_its_inverse_removes(samples: list[Sample], toy: Predict) -> None:
    binary = [Sample(sample.image, (sample.mask > 0.4).astype(np.float32), sample.target) for sample in samples]
    inverse = [Sample(sample.image, 1 - sample.mask, sample.target) for sample in binary]
    rows, other = measure(METRICS, binary, toy), measure(METRICS, inverse, toy)
    np.testing.assert_array_equal(rows["adp"], other["add"])
    np.testing.assert_array_equal(rows["add"], other["adp"])
    assert not np.array_equal(rows["adp"], rows["add"])


def test_a_probability_of_zero_has_nothing_to_lose(samples: list[Sample]) -> None:
    def nothing(images: Array) -> Array:
        return np.zeros((len(images), 5))

    rows = measure(METRICS, samples, nothing)
    assert all((rows[metric.name] == 0).all() for metric in METRICS)


@pytest.mark.parametrize("value", [-0.01, 1.01])
@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_masks_outside_0_to_1_cannot_weigh_pixels(
    metric: ADP | PIC | ADD, value: float, samples: list[Sample], toy: Predict
) -> None:
    mask = samples[0].mask.copy()
    mask[3, 4] = value
    with pytest.raises(UsageError, match=r"a bee: .* must lie in \[0, 1\]"):
        measure([metric], [Sample(samples[0].image, mask, 0, name="a bee")], toy)


def test_the_direction_is_that_of_the_definition() -> None:
    assert [metric.higher_is_better for metric in METRICS] == [False, True, True]
