"""Pointing, precision, contrast and segmentation against loops over pixels and against scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from saccade.evaluate.metrics import (
    F1,
    AveragePrecision,
    Contrast,
    MeanIoU,
    Metric,
    PixelAccuracy,
    Pointing,
    PointingBox,
    Precision,
    RowF1,
    Sample,
    measure,
)

Array = np.ndarray
ALL = (
    Pointing(),
    PointingBox(),
    Precision(),
    Contrast(),
    PixelAccuracy(),
    MeanIoU(),
    AveragePrecision(),
    F1(),
    RowF1(),
)


def never(images: Array) -> Array:
    raise AssertionError("masks against ground truth need no classifier")


def rows_of(metric: Metric, samples: list[Sample]) -> Array:
    return measure([metric], samples, never)[metric.name]


def truth_of(sample: Sample) -> Array:
    assert sample.evidence is not None
    return sample.evidence


def pixels(sample: Sample) -> list[tuple[float, bool]]:
    """Value and ground truth of every pixel."""
    truth = truth_of(sample)
    return [(float(sample.mask[y, x]), bool(truth[y, x])) for y, x in np.ndindex(*truth.shape)]


def naive_scores(sample: Sample) -> list[float]:
    values = [value for value, _ in pixels(sample)]
    low, high = min(values), max(values)
    return [(value - low) / (high - low) for value in values]


def naive_foreground(sample: Sample) -> list[bool]:
    scores = naive_scores(sample)
    mean = math.fsum(scores) / len(scores)
    return [score > mean for score in scores]


def naive_pointing(sample: Sample, tolerance: float) -> float:
    truth = truth_of(sample)
    values = {(y, x): float(sample.mask[y, x]) for y, x in np.ndindex(*truth.shape)}
    peak = max(values, key=lambda pixel: values[pixel])
    distances = [math.dist(peak, pixel) for pixel in values if truth[pixel]]
    return 100.0 if min(distances) == 0 or min(distances) < tolerance else 0.0


@pytest.mark.parametrize("tolerance", [0.0, 1.5, 4.0, 15.0])
def test_pointing_equals_a_loop_over_distances(
    tolerance: float, make_samples: Callable[..., list[Sample]], rng: np.random.Generator
) -> None:
    samples = []
    for sample in make_samples(24, 60, 70):
        y, x = np.argwhere(truth_of(sample))[0]
        truth = np.zeros_like(truth_of(sample))
        truth[y : y + 9, x : x + 7] = True
        offset = rng.integers(-20, 21, 2) if rng.random() < 0.6 else (0, 0)  # the peak moves out of the ground truth
        samples.append(Sample(sample.image, np.roll(sample.mask, offset, (0, 1)), 0, truth))
    expected = [naive_pointing(sample, tolerance) for sample in samples]
    assert set(expected) == {0.0, 100.0}
    metric = Pointing(tolerance)
    rows = rows_of(metric, samples)
    assert metric.per_image(rows).tolist() == expected
    assert metric.aggregate(rows) == pytest.approx(sum(expected) / len(expected))


def test_a_peak_at_the_tolerance_misses_and_one_nearer_hits() -> None:
    for offset, hit in (((9, 12), 0.0), ((9, 11), 100.0), ((0, 15), 0.0), ((14, 0), 100.0)):
        mask, truth = np.zeros((40, 40), np.float32), np.zeros((40, 40), np.bool_)
        mask[20, 20] = 1
        truth[20 + offset[0], 20 + offset[1]] = True
        sample = Sample(np.zeros((40, 40, 3), np.uint8), mask, 0, truth)
        assert rows_of(Pointing(15.0), [sample]).tolist() == [[hit]]


def test_of_equal_peaks_the_first_counts() -> None:
    truth = np.zeros((10, 12), np.bool_)
    truth[2, 3] = True
    for peaks, hit in ((((2, 3), (2, 4)), 100.0), (((2, 2), (2, 3)), 0.0), (((1, 9), (2, 3)), 0.0)):
        mask = np.zeros((10, 12), np.float32)
        for peak in peaks:
            mask[peak] = 1
        sample = Sample(np.zeros((10, 12, 3), np.uint8), mask, 0, truth)
        assert rows_of(Pointing(0.0), [sample]).tolist() == [[hit]]


def test_pointing_at_the_box_equals_a_loop_over_its_sides(rng: np.random.Generator) -> None:
    samples, expected = [], []
    for _ in range(60):
        truth = np.zeros((12, 15), np.bool_)
        corners = [(int(rng.integers(12)), int(rng.integers(15))) for _ in range(2)]
        for corner in corners:
            truth[corner] = True  # the box between them is empty
        mask = rng.random((12, 15))
        y, x = max(np.ndindex(12, 15), key=lambda pixel: mask[pixel])
        (top, bottom), (left, right) = (sorted(corner[axis] for corner in corners) for axis in (0, 1))
        samples.append(Sample(np.zeros((12, 15, 3), np.uint8), mask, 0, truth))
        expected.append(100.0 if top <= y <= bottom and left <= x <= right else 0.0)
    assert 5 < expected.count(100.0) < 55
    assert rows_of(PointingBox(), samples)[:, 0].tolist() == expected
    assert all(sample.evidence is not None and sample.evidence.sum() <= 2 for sample in samples), "samples stay"


def test_the_box_holds_its_sides_and_nothing_beyond() -> None:
    truth = np.zeros((6, 8), np.bool_)
    truth[2, 3] = truth[4, 5] = True
    hits = []
    for peak in ((2, 3), (4, 5), (2, 5), (3, 4), (1, 3), (5, 5), (2, 2), (4, 6)):
        mask = np.zeros((6, 8), np.float32)
        mask[peak] = 1
        hits.append(Sample(np.zeros((6, 8, 3), np.uint8), mask, 0, truth))
    assert rows_of(PointingBox(), hits)[:, 0].tolist() == [100.0] * 4 + [0.0] * 4


def test_precision_and_contrast_equal_loops(samples: list[Sample]) -> None:
    insides, outsides = [], []
    for sample, share in zip(samples, rows_of(Precision(), samples)[:, 0], strict=True):
        inside = [value for value, true in pixels(sample) if true]
        outside = [value for value, true in pixels(sample) if not true]
        assert share == pytest.approx(sum(inside) / (sum(inside) + sum(outside)), abs=1e-6)
        insides.append(sum(inside) / len(inside))
        outsides.append(sum(outside) / len(outside))
    rows = rows_of(Contrast(), samples)
    np.testing.assert_allclose(rows, np.array([insides, outsides]).T, atol=1e-6)
    ratios = [a / b for a, b in zip(insides, outsides, strict=True)]
    np.testing.assert_allclose(Contrast().per_image(rows), ratios, atol=1e-6)
    assert Contrast().aggregate(rows) == pytest.approx(sum(insides) / sum(outsides), abs=1e-6)
    assert abs(sum(insides) / sum(outsides) - sum(ratios) / len(ratios)) > 1e-4, "ratio of means, not mean of ratios"


def test_images_that_are_all_ground_truth_have_no_contrast_and_are_left_out(samples: list[Sample]) -> None:
    whole = Sample(samples[0].image, samples[0].mask, 0, np.ones_like(truth_of(samples[0])))
    rows = rows_of(Contrast(), [*samples, whole])
    assert np.isnan(rows[-1]).all()
    assert Contrast().aggregate(rows) == Contrast().aggregate(rows[:-1])


def test_without_any_image_that_has_contrast_the_aggregate_is_nan(samples: list[Sample]) -> None:
    whole = [Sample(sample.image, sample.mask, 0, np.ones_like(truth_of(sample))) for sample in samples]
    assert math.isnan(Contrast().aggregate(rows_of(Contrast(), whole)))


def test_pixel_accuracy_and_iou_equal_sums_over_the_data_set(samples: list[Sample]) -> None:
    right = total = 0
    both, either = {False: 0, True: 0}, {False: 0, True: 0}
    accuracies, ious = [], []
    for sample in samples:
        pairs = list(zip(naive_foreground(sample), truth_of(sample).reshape(-1).tolist(), strict=True))
        correct = sum(found == true for found, true in pairs)
        right, total = right + correct, total + len(pairs)
        accuracies.append(100 * correct / len(pairs))
        alone = []
        for kind in (False, True):
            intersection = sum(found == kind and true == kind for found, true in pairs)
            union = sum(found == kind or true == kind for found, true in pairs)
            both[kind] += intersection
            either[kind] += union
            alone.append(intersection / union)
        ious.append(50 * sum(alone))
    rows = measure([PixelAccuracy(), MeanIoU()], samples, never)
    np.testing.assert_allclose(PixelAccuracy().per_image(rows["pa"]), accuracies, atol=1e-6)
    assert PixelAccuracy().aggregate(rows["pa"]) == pytest.approx(100 * right / total, abs=1e-6)
    np.testing.assert_allclose(MeanIoU().per_image(rows["miou"]), ious, atol=1e-6)
    expected = 50 * (both[False] / either[False] + both[True] / either[True])
    assert MeanIoU().aggregate(rows["miou"]) == pytest.approx(expected, abs=1e-6)
    assert abs(expected - sum(ious) / len(ious)) > 1e-3, "ratio of sums, not mean of ratios"


def test_average_precision_equals_scikit_learns_micro_average(samples: list[Sample]) -> None:
    coarse = [Sample(s.image, np.round(s.mask, 1), s.target, s.evidence) for s in samples]  # many equal scores
    for group in (samples, coarse):
        expected = []
        for sample in group:
            truth = truth_of(sample).reshape(-1)
            scores = np.array(naive_scores(sample))
            expected.append(
                100
                * average_precision_score(
                    np.stack([~truth, truth], 1), np.stack([1 - scores, scores], 1), average="micro"
                )
            )
        rows = rows_of(AveragePrecision(), group)
        np.testing.assert_allclose(AveragePrecision().per_image(rows), expected, atol=1e-6)
        assert AveragePrecision().aggregate(rows) == pytest.approx(np.mean(expected), abs=1e-6)
        assert np.ptp(expected) > 1


def test_a_random_mask_has_an_average_precision_of_about_50(rng: np.random.Generator) -> None:
    truth = np.zeros((100, 100), np.bool_)
    truth[20:40, 30:60] = True
    image = np.zeros((100, 100, 3), np.uint8)
    rows = rows_of(AveragePrecision(), [Sample(image, rng.random((100, 100)), 0, truth) for _ in range(10)])
    assert rows.mean() == pytest.approx(50, abs=1)


def test_f1_equals_scikit_learns_per_image_and_per_row(samples: list[Sample]) -> None:
    images, rows_means = [], []
    for sample in samples:
        truth, found = truth_of(sample), np.array(naive_foreground(sample)).reshape(sample.mask.shape)
        images.append(100 * f1_score(truth.reshape(-1), found.reshape(-1)))
        per_row = [
            f1_score(t, f, zero_division=0) if t.any() or f.any() else 0.0 for t, f in zip(truth, found, strict=True)
        ]
        rows_means.append(100 * sum(per_row) / len(per_row))
    rows = measure([F1(), RowF1()], samples, never)
    np.testing.assert_allclose(F1().per_image(rows["f1"]), images, atol=1e-6)
    assert F1().aggregate(rows["f1"]) == pytest.approx(np.mean(images), abs=1e-6)
    np.testing.assert_allclose(RowF1().per_image(rows["f1-rows"]), rows_means, atol=1e-6)
    assert RowF1().aggregate(rows["f1-rows"]) == pytest.approx(np.mean(rows_means), abs=1e-6)
    assert np.abs(np.subtract(images, rows_means)).min() > 0.1


def test_a_perfect_mask_of_100_of_224_rows_has_a_row_f1_of_44_6_percent() -> None:
    truth = np.zeros((224, 224), np.bool_)
    truth[60:160, 30:200] = True
    sample = Sample(np.zeros((224, 224, 3), np.uint8), truth.astype(np.float32), 0, truth)
    assert round(RowF1().aggregate(rows_of(RowF1(), [sample])), 1) == 44.6
    assert F1().aggregate(rows_of(F1(), [sample])) == 100


def test_a_perfect_mask_is_perfect_and_its_inverse_the_worst(samples: list[Sample]) -> None:
    best = {
        "pointing": 100,
        "pointing-box": 100,
        "precision": 1,
        "contrast": math.inf,
        "pa": 100,
        "miou": 100,
        "map": 100,
        "f1": 100,
    }
    worst = {"precision": 0, "contrast": 0, "pa": 0, "miou": 0, "f1": 0, "f1-rows": 0}
    perfect = [Sample(s.image, truth_of(s).astype(np.float32), 0, s.evidence) for s in samples]
    inverse = [Sample(s.image, (~truth_of(s)).astype(np.float32), 0, s.evidence) for s in samples]
    rows, other = measure(ALL, perfect, never), measure(ALL, inverse, never)
    assert {m.name: m.aggregate(rows[m.name]) for m in ALL if m.name in best} == pytest.approx(best)
    assert {m.name: m.aggregate(other[m.name]) for m in ALL if m.name in worst} == pytest.approx(worst)


def test_scale_and_offset_of_the_mask_do_not_change_a_segmentation(samples: list[Sample]) -> None:
    metrics = (Pointing(), PointingBox(), PixelAccuracy(), MeanIoU(), AveragePrecision(), F1(), RowF1())
    moved = [Sample(s.image, s.mask.astype(np.float64) * 17 - 5, 0, s.evidence) for s in samples]
    rows, other = measure(metrics, samples, never), measure(metrics, moved, never)
    for metric in metrics:
        np.testing.assert_allclose(rows[metric.name], other[metric.name], atol=1e-9)


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_all_of_them_need_ground_truth_and_higher_is_better(metric: Metric) -> None:
    assert metric.needs_evidence
    assert metric.higher_is_better is True
