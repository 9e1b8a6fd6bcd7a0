"""How far masks are apart: every measure against a definition that is written out, or another library."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from saccade.accel.compare import change_between, cosine, max_abs, spearman, top_iou


@pytest.fixture
def pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    a = rng.random((5, 1, 8, 9)).astype(np.float32)
    return a, (a + 0.3 * rng.standard_normal(a.shape)).astype(np.float32)


def test_max_abs_is_the_largest_difference_of_each_image(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pair
    expected = [
        max(abs(float(x) - float(y)) for x, y in zip(p.flat, q.flat, strict=True)) for p, q in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(max_abs(a, b), expected, rtol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_max_abs_is_infinite_where_either_is_not_finite(bad: float) -> None:
    a, b = np.zeros((4, 2, 2), np.float32), np.ones((4, 2, 2), np.float32)
    a[1, 0, 1] = bad
    b[2, 1, 1] = bad
    a[3, 0, 0] = b[3, 0, 0] = bad
    np.testing.assert_array_equal(max_abs(a, b), [1, np.inf, np.inf, np.inf])


def test_cosine_is_the_normalised_inner_product(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pair
    for got, p, q in zip(cosine(a, b), a.astype(float), b.astype(float), strict=True):
        inner = math.fsum((p * q).flat)
        assert got == pytest.approx(inner / math.sqrt(math.fsum((p * p).flat) * math.fsum((q * q).flat)), abs=1e-12)


def test_cosine_of_the_same_the_opposite_and_the_orthogonal() -> None:
    a = np.array([[1.0, 2], [1, 2], [1, 2]])
    np.testing.assert_allclose(cosine(a, np.array([[3.0, 6], [-1, -2], [-2, 1]])), [1, -1, 0], atol=1e-15)


def test_cosine_of_zeros_is_one_and_of_zeros_with_something_is_zero() -> None:
    np.testing.assert_array_equal(cosine(np.zeros((2, 3)), np.array([[0.0, 0, 0], [0, 1, 0]])), [1, 0])


def test_spearman_equals_scipy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = (np.round(array.astype(float), 3) for array in pair)  # no two closer than the tie unless equal
    for got, p, q in zip(spearman(a, b), a, b, strict=True):
        assert got == pytest.approx(stats.spearmanr(p.ravel(), q.ravel()).statistic, abs=1e-10)


def test_spearman_equals_scipy_with_many_ties(rng: np.random.Generator) -> None:
    a, b = rng.integers(0, 4, (6, 50)) / 4, rng.integers(0, 3, (6, 50)) / 3
    for got, p, q in zip(spearman(a, b), a, b, strict=True):
        assert got == pytest.approx(stats.spearmanr(p, q).statistic, abs=1e-10)


def test_spearman_sees_only_the_order(rng: np.random.Generator) -> None:
    a = rng.permutation(40)[None] / 40
    np.testing.assert_allclose(spearman(a, np.exp(3 * a)), [1])
    np.testing.assert_allclose(spearman(a, -(a**3) - 10 * a), [-1])


def test_spearman_takes_values_closer_than_a_hundred_thousandth_as_ties() -> None:
    a = np.array([[0.1, 0.1 + 1e-7, 0.9, 0.9 + 1e-7]])
    b = np.array([[0.1 + 1e-7, 0.1, 0.9 + 1e-7, 0.9]])
    np.testing.assert_allclose(spearman(a, b), [1])


def test_spearman_of_flat_images() -> None:
    flat, rising = np.full((1, 5), 0.4), np.arange(5)[None] / 5
    assert spearman(flat, flat).tolist() == [1]
    assert spearman(flat, rising).tolist() == [0]


def naive_iou(x: list[float], y: list[float], count: int) -> float:
    top_x = set(sorted(range(len(x)), key=lambda i: -x[i])[:count])
    top_y = set(sorted(range(len(y)), key=lambda i: -y[i])[:count])
    return len(top_x & top_y) / len(top_x | top_y)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5, 1.0])
def test_top_iou_equals_intersection_over_union_of_sets(rng: np.random.Generator, fraction: float) -> None:
    a = np.stack([rng.permutation(80) for _ in range(6)]) / 80  # all values are different
    b = a.copy()
    for row in b:
        swapped = rng.integers(0, 80, 30)
        row[swapped] = row[np.roll(swapped, 1)]
    b = np.argsort(np.argsort(b, 1), 1) / 80
    count = max(1, round(80 * fraction))
    got = top_iou(a.reshape(6, 1, 8, 10), b.reshape(6, 1, 8, 10), fraction)
    np.testing.assert_allclose(got, [naive_iou(list(x), list(y), count) for x, y in zip(a, b, strict=True)])
    if fraction < 1:
        assert got.min() < 1


def test_top_iou_of_apart_sets_is_zero() -> None:
    rising = np.arange(20)[None] / 20
    assert top_iou(rising, rising[:, ::-1]).tolist() == [0]
    assert top_iou(rising, rising).tolist() == [1]


def test_top_iou_lets_pixels_near_the_threshold_belong_to_either_set() -> None:
    saturated = np.ones((1, 20)) - np.arange(20) * 1e-6
    assert top_iou(saturated, saturated[:, ::-1]).tolist() == [1]
    assert top_iou(saturated, saturated[:, ::-1], tie=0).tolist() == [0]


def test_top_iou_takes_no_part_of_a_saturated_mask_as_its_top() -> None:
    saturated, rising = np.ones((1, 20)) - np.arange(20) * 1e-6, np.arange(20)[None] / 20
    assert top_iou(saturated, rising).tolist() == [1]
    assert top_iou(rising, saturated).tolist() == [1]


def test_change_between_is_the_largest_difference_to_the_map_before(rng: np.random.Generator) -> None:
    maps = rng.random((5, 1, 4, 4)).astype(np.float32)
    expected = [np.abs(maps[i].astype(float) - maps[i - 1]).max() for i in range(5)]
    np.testing.assert_allclose(change_between(maps), expected)


def test_change_between_equal_maps_is_zero() -> None:
    assert change_between(np.full((3, 1, 4, 4), 0.7, np.float32)).tolist() == [0, 0, 0]
