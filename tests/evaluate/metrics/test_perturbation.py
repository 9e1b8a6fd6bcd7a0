"""Insertion, deletion, positive and negative perturbation against a loop over steps and pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from saccade.errors import UsageError
from saccade.evaluate.metrics import (
    Perturbation,
    Predict,
    Sample,
    deletion,
    insertion,
    insertion_minus_deletion,
    measure,
    negative_perturbation,
    positive_perturbation,
)

Array = np.ndarray
MakeSamples = Callable[..., list[Sample]]
FACTORIES = (insertion, deletion, positive_perturbation, negative_perturbation)


def naive_blur_at(image: Array, y: int, x: int) -> list[int]:
    """One pixel of the Gaussian blur: deviation and reach of 5 pixels at 224, the border mirrored, half rounded up."""
    height, width = image.shape[:2]
    deviation = 5 * min(height, width) / 224
    reach = max(1, round(deviation))

    def mirrored(position: int, length: int) -> int:
        return -1 - position if position < 0 else 2 * length - 1 - position if position >= length else position

    total, weights = [0.0, 0.0, 0.0], 0.0
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            weight = math.exp(-(dy * dy + dx * dx) / (2 * deviation**2))
            weights += weight
            for channel in range(3):
                total[channel] += weight * float(image[mirrored(y + dy, height), mirrored(x + dx, width), channel])
    return [math.floor(value / weights + 0.5) for value in total]


def naive_fill(image: Array, fill: Any) -> Array:
    filled = np.empty_like(image)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            filled[y, x] = naive_blur_at(image, y, x) if fill == "blur" else (0, 0, 0) if fill == "black" else fill
    return filled


def naive_curve(
    sample: Sample, predict: Predict, filled: Array, shares: list[Fraction], first: str, accuracy: bool
) -> list[float]:
    """One altered copy per share, each made from scratch."""
    height, width = sample.mask.shape
    flat = [float(value) for value in sample.mask.reshape(-1)]
    ranking = sorted(range(len(flat)), key=lambda index: flat[index], reverse=first == "most")
    curve = []
    for share in shares:
        copy = sample.image.copy()
        for index in ranking[: math.floor(share * height * width)]:
            copy[index // width, index % width] = filled[index // width, index % width]
        answer = predict(copy[None])[0]
        curve.append(float(answer.argmax() == sample.target) if accuracy else float(answer[sample.target]))
    return curve


def naive_area(curve: list[float], shares: list[Fraction]) -> float:
    return sum(float(shares[i + 1] - shares[i]) * (curve[i] + curve[i + 1]) / 2 for i in range(len(curve) - 1))


def nature_of(metric: Perturbation) -> tuple[str, bool]:
    """First removed, and accuracy or probability, from the metrics' definitions."""
    return {
        "deletion": ("most", False),
        "insertion": ("least", False),
        "positive": ("most", True),
        "negative": ("least", True),
    }[metric.name]


@pytest.mark.parametrize("end", [Fraction(1), Fraction(3, 5)])
@pytest.mark.parametrize("fill", ["black", "blur", (200, 30, 90)], ids=str)
def test_curves_and_areas_equal_a_loop_over_steps(
    fill: Any, end: Fraction, samples: list[Sample], toy: Predict
) -> None:
    fills = [naive_fill(sample.image, fill) for sample in samples]
    for steps in (1, 4, 7, 16):
        shares = [end * step / steps for step in range(steps + 1)]
        metrics = [factory(fill=fill, steps=steps, end=float(end)) for factory in FACTORIES]
        rows = measure(metrics, samples, toy)
        for metric in metrics:
            first, accuracy = nature_of(metric)
            curves = [
                naive_curve(sample, toy, filled, shares, first, accuracy)
                for sample, filled in zip(samples, fills, strict=True)
            ]
            areas = [naive_area(curve, shares) / float(end) for curve in curves]
            np.testing.assert_allclose(rows[metric.name], curves, atol=1e-6)
            np.testing.assert_allclose(metric.per_image(rows[metric.name]), areas, atol=1e-6)
            assert metric.aggregate(rows[metric.name]) == pytest.approx(sum(areas) / len(areas), abs=1e-6)
            grid, mean = metric.curve(rows[metric.name])
            np.testing.assert_allclose(grid, [float(share) for share in shares], atol=1e-9)
            np.testing.assert_allclose(mean, [sum(column) / 8 for column in zip(*curves, strict=True)], atol=1e-6)
            assert np.ptp(areas) > 0.1, "images must differ, or the comparison says nothing"


def test_the_published_protocol_of_ltx_equals_a_loop(samples: list[Sample], toy: Predict) -> None:
    shares = [Fraction(step, 10) for step in range(10)]
    metrics = [factory(protocol="ltx", fill="blur", steps=3) for factory in FACTORIES]  # fill and steps do not matter
    rows = measure(metrics, samples, toy)
    for metric in metrics:
        first, accuracy = nature_of(metric)
        areas = [
            100 * naive_area(naive_curve(sample, toy, np.zeros_like(sample.image), shares, first, accuracy), shares)
            for sample in samples
        ]
        np.testing.assert_allclose(metric.per_image(rows[metric.name]), areas, atol=1e-6)
        assert metric.aggregate(rows[metric.name]) == pytest.approx(sum(areas) / len(areas), abs=1e-6)


def bright(images: Array) -> Array:
    """Class 1 is the share of white."""
    share = images.mean((1, 2, 3)) / 255
    return np.stack([1 - share, share], 1)


def white_sample(size: int = 20) -> Sample:
    mask = np.random.default_rng(0).permutation(size * size).reshape(size, size).astype(np.float64)
    return Sample(np.full((size, size, 3), 255, np.uint8), mask, 1)


@pytest.mark.parametrize(
    ("alive_above", "expected"), [(0.0, 90.0), (0.95, 5.0), (1.1, 0.0)], ids=["always", "flips at 10 %", "never"]
)
def test_known_areas_of_the_published_protocol(alive_above: float, expected: float) -> None:
    def predict(images: Array) -> Array:
        alive = (images.mean((1, 2, 3)) / 255 > alive_above).astype(np.float64)
        return np.stack([1 - alive, alive], 1)

    for metric in (positive_perturbation("ltx"), negative_perturbation("ltx"), deletion("ltx"), insertion("ltx")):
        rows = measure([metric], [white_sample()], predict)[metric.name]
        assert metric.aggregate(rows) == pytest.approx(expected, abs=1e-9)


# `even_grid` rounds shares to 12 digits, so one third of 96×96 pixels is a little less than 3072 in floating point.
@pytest.mark.parametrize("size", [20, 36, 72, 96, 224])
def test_each_step_removes_exactly_the_whole_number_of_pixels_below_its_share(size: int) -> None:
    wrong = []
    for steps in (1, 2, 3, 5, 6, 7, 9, 10, 12, 16, 36, 48, 100):
        curve = measure([deletion(fill="black", steps=steps)], [white_sample(size)], bright)["deletion"][0]
        removed = np.round((1 - curve) * size * size).astype(int).tolist()
        if removed != [step * size * size // steps for step in range(steps + 1)]:
            wrong.append(steps)
    assert wrong == []


def test_a_grid_of_ones_own_may_start_and_end_inside(samples: list[Sample], toy: Predict) -> None:
    shares = [Fraction(1, 4), Fraction(1, 2), Fraction(4, 5)]
    metric = Perturbation("mine", "least", "probability", fill=(9, 8, 7), grid=(0.25, 0.5, 0.8), scale=3.0)
    rows = measure([metric], samples, toy)["mine"]
    for index, sample in enumerate(samples):
        curve = naive_curve(sample, toy, naive_fill(sample.image, (9, 8, 7)), shares, "least", False)
        assert metric.per_image(rows)[index] == pytest.approx(3 * naive_area(curve, shares) / 0.55, abs=1e-6)


@pytest.mark.parametrize("shape", [(9, 12), (80, 85), (120, 100), (224, 230)], ids=str)
def test_the_blurred_fill_is_the_gaussian_of_its_definition(shape: tuple[int, int], rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    seen: list[Array] = []

    def record(images: Array) -> Array:
        seen.append(images.copy())
        return bright(images)

    measure([deletion(fill="blur", steps=1)], [Sample(image, np.ones(shape, np.float32), 0)], record)
    unchanged, blurred = np.concatenate(seen)
    np.testing.assert_array_equal(unchanged, image)
    corners = [(y, x) for y in (0, 1, shape[0] - 1) for x in (0, 1, shape[1] - 1)]
    inside = [(int(rng.integers(shape[0])), int(rng.integers(shape[1]))) for _ in range(150)]
    for y, x in corners + inside:
        assert blurred[y, x].tolist() == naive_blur_at(image, y, x)


def test_pixels_of_equal_value_go_scattered_and_more_important_ones_before_them() -> None:
    mask = np.zeros((40, 40), np.float32)
    mask[:10] = 1  # a quarter
    sample = Sample(np.full((40, 40, 3), 255, np.uint8), mask, 1)
    seen: list[Array] = []

    def record(images: Array) -> Array:
        seen.append(images.copy())
        return bright(images)

    for metric, first in ((deletion(fill="black", steps=8), "top"), (insertion(fill="black", steps=8), "bottom")):
        seen.clear()
        measure([metric], [sample], record)
        gone = np.stack([copy[..., 0] == 0 for copy in np.concatenate(seen)])  # in any order
        gone = gone[np.argsort(gone.sum((1, 2)))]
        assert gone.sum((1, 2)).tolist() == [200 * step for step in range(9)]
        assert all((gone[i] <= gone[i + 1]).all() for i in range(8)), "each step goes on from the one before"
        if first == "top":
            assert gone[2, :10].all()
            assert not gone[2, 10:].any()
        else:
            assert gone[6, 10:].all()
            assert not gone[6, :10].any()
        part = gone[1, :10] if first == "top" else gone[3, 10:]
        assert 0.35 < part[:, :20].sum() / part.sum() < 0.65, "half of the equal ones, left and right alike"
        half = len(part) // 2
        assert 0.35 < part[:half].sum() / part.sum() < 0.65, "and above and below alike"


def test_the_direction_is_that_of_the_definition() -> None:
    assert [factory().higher_is_better for factory in FACTORIES] == [True, False, False, True]


@pytest.mark.parametrize("grid", [(0.5,), (0.5, 0.2), (0.0, 0.5, 0.5), (-0.1, 1.0), (0.0, 1.1)], ids=str)
def test_grids_that_do_not_ascend_in_0_to_1_are_refused(grid: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="ascending shares"):
        Perturbation("mine", "most", "probability", grid=grid)


@pytest.mark.parametrize(("steps", "end"), [(0, 1.0), (4, 0.0), (4, 1.5)])
def test_steps_and_ends_that_make_no_grid_are_refused(steps: int, end: float) -> None:
    with pytest.raises(UsageError, match="at least one step"):
        deletion(steps=steps, end=end)


def test_an_unknown_protocol_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match=r"'rize'.*rise, ltx"):
        insertion(protocol="rize")  # type: ignore[arg-type]


@pytest.mark.parametrize("fill", ["grey", (1, 2), (0, 0, 256), (-1, 0, 0)], ids=str)
def test_fills_that_are_no_colour_are_refused(fill: Any) -> None:
    with pytest.raises(UsageError, match="a fill is 'black', 'blur' or three numbers"):
        measure([deletion(fill=fill)], [white_sample()], bright)


@pytest.mark.parametrize("protocol", ["rise", "ltx"])
def test_insertion_minus_deletion_is_the_difference_and_costs_no_forward_more(
    protocol: Any, samples: list[Sample], toy: Predict
) -> None:
    seen = 0

    def count(images: Array) -> Array:
        nonlocal seen
        seen += len(images)
        return toy(images)

    both = [insertion(protocol, steps=5), deletion(protocol, steps=5)]
    apart = measure(both, samples, count)
    needed, seen = seen, 0
    together = insertion_minus_deletion(protocol, steps=5)
    rows = measure([*both, together], samples, count)
    assert seen == needed
    areas = [metric.per_image(apart[metric.name]) for metric in both]
    np.testing.assert_allclose(together.per_image(rows[together.name]), areas[0] - areas[1], rtol=0, atol=1e-12)
