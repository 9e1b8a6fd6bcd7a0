"""Bootstrap intervals against a loop, against the normal distribution, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from saccade.errors import UsageError
from saccade.evaluate.metrics import (
    ADP,
    Area,
    Contrast,
    Estimate,
    MeanIoU,
    Metric,
    Predict,
    Sample,
    deletion,
    difference,
    estimate,
    measure,
    sic,
)

Array = np.ndarray


def naive_percentile(values: list[float], share: float) -> float:
    ranked = sorted(values)
    position = share * (len(ranked) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (position - low) * (ranked[high] - ranked[low])


def naive_interval(
    statistic: Callable[[list[int]], float], count: int, resamples: int, seed: int
) -> tuple[float, float]:
    generator = np.random.default_rng(seed)
    found = [statistic([int(i) for i in generator.integers(count, size=count)]) for _ in range(resamples)]
    return naive_percentile(found, 0.025), naive_percentile(found, 0.975)


def naive_iou(rows: Array, draw: list[int]) -> float:
    sums = [sum(float(rows[i, column]) for i in draw) for column in range(4)]
    return 50 * (sums[0] / sums[1] + sums[2] / sums[3])


def naive_contrast(rows: Array, draw: list[int]) -> float:
    return sum(float(rows[i, 0]) for i in draw) / sum(float(rows[i, 1]) for i in draw)


@pytest.mark.parametrize(("resamples", "seed"), [(1000, 0), (200, 5)])
def test_the_interval_of_a_mean_equals_a_loop(resamples: int, seed: int, rng: np.random.Generator) -> None:
    rows = rng.gamma(2.0, 1.0, (37, 1))
    found = estimate(Area(), rows, resamples=resamples, seed=seed)
    low, high = naive_interval(lambda draw: sum(rows[i, 0] for i in draw) / len(draw), 37, resamples, seed)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert found.value == pytest.approx(sum(rows[:, 0]) / 37, abs=1e-12)
    assert found.images == 37


def test_the_interval_of_an_area_under_a_curve_equals_a_loop(rng: np.random.Generator) -> None:
    rows, metric = rng.random((25, 17)), deletion()
    areas = [sum((row[i] + row[i + 1]) / 32 for i in range(16)) for row in rows]
    found = estimate(metric, rows, resamples=300)
    low, high = naive_interval(lambda draw: sum(areas[i] for i in draw) / len(draw), 25, 300, 0)
    assert (found.value, found.low, found.high) == pytest.approx((sum(areas) / 25, low, high), abs=1e-9)


@pytest.mark.parametrize(
    ("metric", "naive"), [(MeanIoU(), naive_iou), (Contrast(), naive_contrast)], ids=["iou", "contrast"]
)
def test_the_interval_of_a_ratio_of_sums_resamples_images(
    metric: Metric, naive: Callable[[Array, list[int]], float], rng: np.random.Generator
) -> None:
    rows = rng.integers(10, 60, (20, 4)) + np.array([0, 60, 0, 60.0])
    rows = rows if isinstance(metric, MeanIoU) else rows[:, :2]
    found = estimate(metric, rows, resamples=300, seed=2)
    low, high = naive_interval(lambda draw: naive(rows, draw), 20, 300, 2)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert found.value == pytest.approx(naive(rows, list(range(20))), abs=1e-9)


def test_the_interval_of_a_median_curve_is_that_of_a_loop_up_to_its_coarser_grid(
    make_samples: Callable[..., list[Sample]], sharp: Predict
) -> None:
    metric = sic()
    rows = measure([metric], make_samples(12, 32, 33, predicted=sharp), sharp)["sic"]
    counted = rows[~np.isnan(rows).any(1)]
    assert 5 <= len(counted) < 12, "some images are left out"
    found = estimate(metric, rows, resamples=200)
    low, high = naive_interval(lambda draw: metric.aggregate(counted[draw]), len(counted), 200, 0)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)
    assert found.value == metric.aggregate(rows)
    assert found.images == len(counted)
    assert found.low < found.value < found.high


def test_of_a_large_sample_the_interval_is_the_normal_distributions(rng: np.random.Generator) -> None:
    rows = rng.normal(3, 2, (4000, 1))
    found = estimate(Area(), rows, resamples=2000)
    half = 1.959964 * rows.std(ddof=1) / math.sqrt(4000)
    assert found.low == pytest.approx(rows.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(rows.mean() + half, abs=0.1 * half)


def test_95_percent_of_the_intervals_hold_the_truth() -> None:
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        found = estimate(Area(), generator.exponential(1.0, (60, 1)), resamples=200)
        held += found.low <= 1.0 <= found.high
    assert 0.89 <= held / 200 <= 0.98  # three standard errors about 95 %, less what a percentile bootstrap is short of


def test_rows_of_nan_are_left_out(rng: np.random.Generator) -> None:
    rows = rng.random((30, 17))
    gaps = np.insert(rows, [0, 7, 30], np.nan, axis=0)
    assert estimate(deletion(), gaps) == estimate(deletion(), rows)
    assert estimate(deletion(), gaps).images == 30
    nothing = estimate(deletion(), np.full((4, 17), np.nan))
    assert nothing.images == 0
    assert all(math.isnan(value) for value in (nothing.value, nothing.low, nothing.high))
    assert not nothing.certain


def test_a_difference_of_equal_rows_is_exactly_zero(rng: np.random.Generator) -> None:
    for metric, width in ((Area(), 1), (deletion(), 17), (MeanIoU(), 4), (sic(), 26)):
        rows = np.sort(rng.random((25, width)), axis=1)
        assert difference(metric, rows, rows.copy()) == Estimate(0.0, 0.0, 0.0, 25)


def test_a_difference_is_paired_so_what_images_share_cancels(rng: np.random.Generator) -> None:
    shared = rng.normal(0, 10, (50, 1))
    first, second = shared + rng.normal(0.5, 0.1, (50, 1)), shared
    found = difference(Area(), first, second)
    assert found.value == pytest.approx(float((first - second).mean()))
    assert found.high - found.low < 0.15
    assert found.certain
    widths = [one.high - one.low for one in (estimate(Area(), first), estimate(Area(), second))]
    assert min(widths) > 3, "each by itself is not known to a whole unit"
    low, high = naive_interval(lambda draw: sum(float(first[i, 0] - second[i, 0]) for i in draw) / 50, 50, 1000, 0)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)


def test_a_difference_of_ratios_of_sums_equals_a_loop(rng: np.random.Generator) -> None:
    sets = [rng.integers(10, 60, (20, 4)) + np.array([0, 60, 0, 60.0]) for _ in range(2)]
    found = difference(MeanIoU(), *sets, resamples=300, seed=9)
    low, high = naive_interval(lambda draw: naive_iou(sets[0], draw) - naive_iou(sets[1], draw), 20, 300, 9)
    everything = list(range(20))
    value = naive_iou(sets[0], everything) - naive_iou(sets[1], everything)
    assert (found.value, found.low, found.high) == pytest.approx((value, low, high), abs=1e-9)


def test_swapping_the_sides_turns_the_sign(rng: np.random.Generator) -> None:
    first, second = rng.random((30, 1)), rng.random((30, 1)) + 0.1
    one, two = difference(ADP(), first, second), difference(ADP(), second, first)
    assert (one.value, one.low, one.high) == pytest.approx((-two.value, -two.high, -two.low), abs=1e-12)


def test_a_difference_leaves_out_what_either_side_leaves_out(rng: np.random.Generator) -> None:
    first, second = rng.random((20, 17)), rng.random((20, 17))
    gaps, other = first.copy(), second.copy()
    gaps[3], other[[5, 6]] = np.nan, np.nan
    keep = [i for i in range(20) if i not in (3, 5, 6)]
    found = difference(deletion(), gaps, other)
    assert found == difference(deletion(), first[keep], second[keep])
    assert found.images == 17
    nothing = difference(deletion(), gaps, np.full_like(other, np.nan))
    assert nothing.images == 0
    assert math.isnan(nothing.value)


def test_rows_of_other_images_have_no_paired_difference(rng: np.random.Generator) -> None:
    with pytest.raises(UsageError, match="not 20 and 21"):
        difference(Area(), rng.random((20, 1)), rng.random((21, 1)))


@pytest.mark.parametrize(
    ("low", "high", "certain"),
    [
        (0.1, 0.3, True),
        (-0.3, -0.1, True),
        (-0.1, 0.2, False),
        (0.0, 0.2, False),
        (-0.2, 0.0, False),
        (0.0, 0.0, False),
    ],
)
def test_certain_means_that_the_interval_does_not_hold_0(low: float, high: float, certain: bool) -> None:
    assert Estimate((low + high) / 2, low, high, 10).certain is certain


def test_other_seeds_draw_others_and_the_same_seed_the_same(rng: np.random.Generator) -> None:
    rows = rng.random((40, 1))
    assert estimate(Area(), rows, seed=1) == estimate(Area(), rows, seed=1)
    assert estimate(Area(), rows, seed=1) != estimate(Area(), rows, seed=2)


def test_an_infinite_contrast_has_an_estimate(rng: np.random.Generator) -> None:
    perfect = np.stack([rng.random(10) + 0.5, np.zeros(10)], 1)
    usual = np.stack([rng.random(10) + 0.5, np.full(10, 0.2)], 1)
    for found in (estimate(Contrast(), perfect), difference(Contrast(), perfect, usual)):
        assert found.value == math.inf
        assert not found.low < math.inf


def test_a_bootstrap_without_resamples_is_refused(rng: np.random.Generator) -> None:
    with pytest.raises(UsageError, match="at least once"):
        estimate(Area(), rng.random((5, 1)), resamples=0)
