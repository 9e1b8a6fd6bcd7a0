"""Softmax and accuracy information curves against a loop over thresholds."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.interpolate import LinearNDInterpolator
from threadpoolctl import threadpool_info, threadpool_limits

from saccade.evaluate.metrics import InformationCurve, Predict, Sample, aic, measure, sic
from saccade.evaluate.metrics.information import Focus, reveal_by_interpolation

Array = np.ndarray
THRESHOLDS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.10, 0.13, 0.21, 0.34, 0.5, 0.75)


def naive_quantile(values: list[float], share: float) -> float:
    ranked = sorted(values)
    position = share * (len(ranked) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (position - low) * (ranked[high] - ranked[low])


def naive_revealed(image: Array, known: set[tuple[int, int]]) -> Array:
    """Each channel by itself; the corners are always known."""
    height, width = image.shape[:2]
    known = known | {(y, x) for y in (0, height - 1) for x in (0, width - 1)}
    points = sorted(known)
    result = image.copy()
    unknown = [(y, x) for y in range(height) for x in range(width) if (y, x) not in known]
    for channel in range(3):
        surface = LinearNDInterpolator(points, [float(image[y, x, channel]) for y, x in points])
        for (y, x), value in zip(unknown, surface(unknown) if unknown else [], strict=True):
            result[y, x, channel] = round(float(value))
    return result


def naive_bytes(image: Array) -> int:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "WEBP", lossless=True, quality=100)
    return len(stream.getvalue())


def naive_height(points: list[tuple[float, float]], at: float) -> float:
    """Linear between points sorted by x; of points with equal x the one that comes last."""
    below = max(index for index, (x, _) in enumerate(points) if x <= at)
    if below == len(points) - 1:
        return points[below][1]
    (x, y), (x_next, y_next) = points[below : below + 2]
    return y + (y_next - y) * (at - x) / (x_next - x)


@dataclass
class NaiveCurve:
    skipped: str
    points: list[tuple[float, float]]
    heights: list[float]

    @property
    def area(self) -> float:
        return sum((self.heights[i] + self.heights[i + 1]) / 2 / 1000 for i in range(1000))


def naive_copies(sample: Sample) -> list[Array]:
    """The seed alone, the seed and the pixels above each quantile, the image."""
    height, width = sample.mask.shape
    chosen = np.random.default_rng(sample.seed).choice(height * width, int(height * width / 100), replace=False)
    seed = {divmod(int(index), width) for index in chosen}
    values = [float(value) for value in sample.mask.reshape(-1)]
    copies = [naive_revealed(sample.image, seed)]
    for threshold in THRESHOLDS:
        least = naive_quantile(values, 1 - threshold)
        focus = {divmod(index, width) for index, value in enumerate(values) if value >= least}
        copies.append(naive_revealed(sample.image, seed | focus))
    return [*copies, sample.image]


def naive_curve(sample: Sample, copies: Array, predict: Predict, accuracy: bool) -> NaiveCurve:
    """From the copies that the classifier was shown."""
    sizes = [naive_bytes(copy) for copy in copies]
    answers = [predict(copy[None])[0] for copy in copies]
    heights = [float(a.argmax() == sample.target) if accuracy else float(a[sample.target]) for a in answers]
    if heights[-1] < 0.8:
        return NaiveCurve("unsure", [], [])
    if sizes[0] >= sizes[-1]:
        return NaiveCurve("no information", [], [])
    if heights[0] >= heights[-1]:
        return NaiveCurve("blurred is enough", [], [])
    points, best = [], 0.0
    for size, height in list(zip(sizes, heights, strict=True))[1:-1]:
        best = max(best, min(1.0, max(0.0, (height - heights[0]) / (heights[-1] - heights[0]))))
        points.append((min(1.0, max(0.0, (size - sizes[0]) / (sizes[-1] - sizes[0]))), best))
    ends = sorted([*points, (0.0, 0.0), (1.0, 1.0)], key=lambda point: point[0])
    return NaiveCurve("", points, [*(naive_height(ends, step / 1000) for step in range(1000)), 1.0])


@pytest.fixture
def focused(make_samples: Callable[..., list[Sample]], sharp: Predict) -> list[Sample]:
    """Images of which some are left out, for each of the reasons."""
    samples = make_samples(14, 32, 33, predicted=sharp)
    flat, halves = np.full((2, 32, 33, 3), 255, np.uint8)
    halves[16:] = 0  # the ramp between them takes more bytes than they do, and is answered otherwise
    for image in (flat, halves):
        samples.append(Sample(image, samples[0].mask, int(sharp(image[None])[0].argmax())))
    return samples


def shown_to(predict: Predict, samples: list[Sample], metric: InformationCurve) -> Array:
    """All copies, (N, thresholds + 2, H, W, 3)."""
    seen: list[Array] = []

    def record(images: Array) -> Array:
        seen.extend(images.copy())
        return predict(images)

    measure([metric], samples, record)
    return np.stack(seen).reshape(len(samples), -1, *samples[0].image.shape)


def test_copies_are_interpolated_from_the_pixels_above_each_quantile(focused: list[Sample], sharp: Predict) -> None:
    """Halfway between two pixels rounding may go either way; how it goes is PAIR's affair, and compared with it."""
    first = focused[0]
    ties = [np.round(first.mask, 1), np.full_like(first.mask, 0.5), (first.mask > 0.95).astype(np.float32)]
    tied = [Sample(first.image, mask, first.target) for mask in ties]
    copies = shown_to(sharp, [*focused, *tied], sic())
    for sample, shown in zip([*focused, *tied], copies, strict=True):
        expected = np.stack(naive_copies(sample)).astype(int)
        differences = np.abs(shown - expected)
        assert differences.max() <= 1
        assert (differences > 0).mean() < 0.005
    assert len({copy.tobytes() for copy in copies[0]}) == 15
    assert len({copy.tobytes() for copy in copies[-2]}) == 2, "of a constant mask all pixels are above each quantile"


def test_curves_and_areas_equal_a_loop_over_thresholds(focused: list[Sample], sharp: Predict) -> None:
    metrics = (sic(), aic())
    rows = measure(metrics, focused, sharp)
    copies = shown_to(sharp, focused, sic())
    reasons: set[str] = set()
    for metric in metrics:
        curves = [
            naive_curve(sample, shown, sharp, metric.name == "aic")
            for sample, shown in zip(focused, copies, strict=True)
        ]
        reasons |= {curve.skipped for curve in curves}
        for row, curve in zip(rows[metric.name], curves, strict=True):
            expected = [[math.nan, math.nan]] * 13 if curve.skipped else curve.points
            np.testing.assert_allclose(row.reshape(2, 13).T, expected, atol=1e-6)
        areas = [math.nan if curve.skipped else curve.area for curve in curves]
        np.testing.assert_allclose(metric.per_image(rows[metric.name]), areas, atol=1e-6)
        counted = [curve.heights for curve in curves if not curve.skipped]
        assert len(counted) >= 5
        assert len({round(area, 6) for area in areas if area == area}) >= 4
        median = [statistics.median(column) for column in zip(*counted, strict=True)]
        grid, found = metric.curve(rows[metric.name])
        np.testing.assert_allclose(grid, np.arange(1001) / 1000, atol=1e-12)
        np.testing.assert_allclose(found, median, atol=1e-6)
        assert metric.aggregate(rows[metric.name]) == pytest.approx(NaiveCurve("", [], median).area, abs=1e-6)
    assert reasons == {"", "unsure", "no information", "blurred is enough"}, "every way to be left out is tried"


def test_the_smallest_prediction_decides_who_is_left_out(focused: list[Sample], sharp: Predict) -> None:
    sure = np.array([float(sharp(sample.image[None])[0, sample.target]) for sample in focused])
    counts = []
    for least in (0.0, 0.95, 0.999):
        metric = InformationCurve("sic", "probability", least, Focus(thresholds=(0.1,)))
        rows = measure([metric], focused, sharp)["sic"]
        left_out = np.isnan(rows).all(1)
        assert left_out[sure < least].all()
        assert (left_out == np.isnan(rows).any(1)).all(), "a row is whole or not there"
        counts.append(left_out.sum())
    assert counts[0] < counts[1] < counts[2]


def test_the_first_copy_depends_on_the_image_alone_and_the_last_is_the_image(
    samples: list[Sample], toy: Predict
) -> None:
    image = samples[0].image
    others = [Sample(image, 1 - samples[0].mask, 0), Sample(image, samples[1].mask, 1), samples[1]]
    shown = shown_to(toy, [samples[0], *others], sic())
    assert (shown[1:3, [0, 14]] == shown[0, [0, 14]]).all()
    assert not (shown[1, 1:14] == shown[0, 1:14]).all()
    assert not (shown[3, 0] == shown[0, 0]).all()
    np.testing.assert_array_equal(shown[0, 14], image)


def test_both_curves_share_their_copies(samples: list[Sample], toy: Predict) -> None:
    calls: list[int] = []

    def count(images: Array) -> Array:
        calls.append(len(images))
        return toy(images)

    measure([sic(), aic()], samples, count)
    assert sum(calls) == 15 * len(samples)


def test_thresholds_may_be_chosen(focused: list[Sample], sharp: Predict) -> None:
    coarse = InformationCurve("sic", "probability", focus=Focus(thresholds=THRESHOLDS[::4]))
    rows, full = measure([coarse], focused, sharp)["sic"], measure([sic()], focused, sharp)["sic"]
    np.testing.assert_allclose(rows[:, : len(THRESHOLDS[::4])], full[:, : len(THRESHOLDS) : 4], atol=1e-12)


def test_no_image_left_is_nan() -> None:
    assert math.isnan(sic().aggregate(np.full((3, 26), np.nan)))


def test_interpolation_keeps_blas_to_one_thread(focused: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    """SciPy solves two equations per triangle; shared out on busy cores, each waits for a thread without a turn."""
    from scipy import interpolate

    griddata, seen = interpolate.griddata, []

    def watched(*arguments: Any, **options: Any) -> Any:
        seen.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return griddata(*arguments, **options)

    monkeypatch.setattr(interpolate, "griddata", watched)
    known = np.zeros(focused[0].image.shape[:2], bool)
    known[::3, ::2] = True
    with threadpool_limits(2, user_api="blas"):
        before = threadpool_info()
        reveal_by_interpolation(focused[0].image, known)
        assert threadpool_info() == before
    assert seen
    assert set(seen) == {1}
