"""The mask by itself, and the mask under noise and under randomised weights, against loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from saccade.errors import UsageError
from saccade.evaluate.metrics import (
    Area,
    AreaError,
    NoiseSensitivity,
    Randomisation,
    Sample,
    TotalVariation,
    measure,
    overlap,
)

Array = np.ndarray


def never(images: Array) -> Array:
    raise AssertionError("no classifier is needed")


def explain(images: Array, target: Array) -> Array:
    """A mask that changes with the image and the class, and little with little noise."""
    weights = np.stack([np.cos(target), np.sin(target), np.ones_like(target)], 1)
    return np.tanh(((images / 255.0) * weights[:, None, None]).sum(3) - 0.3)


def test_area_and_its_error_equal_loops(samples: list[Sample]) -> None:
    metrics = (Area(), AreaError(), AreaError(0.4, name="wanted"))
    rows = measure(metrics, samples, never)
    for index, sample in enumerate(samples):
        assert sample.evidence is not None
        area = sum(float(value) for value in sample.mask.flat) / sample.mask.size
        truth = sum(bool(value) for value in sample.evidence.flat) / sample.mask.size
        assert rows["area"][index].tolist() == pytest.approx([area], abs=1e-9)
        assert rows["area-error"][index].tolist() == pytest.approx([abs(area - truth)], abs=1e-9)
        assert rows["wanted"][index].tolist() == pytest.approx([abs(area - 0.4)], abs=1e-9)
    assert rows["area"].min() < 0.4 < rows["area"].max(), "too small is as wrong as too large"
    assert Area().aggregate(rows["area"]) == pytest.approx(sum(rows["area"][:, 0]) / len(samples))


def test_an_area_error_with_a_given_area_needs_no_ground_truth(samples: list[Sample]) -> None:
    bare = Sample(samples[0].image, samples[0].mask, 0)
    assert len(measure([AreaError(0.2)], [bare], never)["area-error"]) == 1
    with pytest.raises(UsageError, match="'area-error' needs ground truth"):
        measure([AreaError()], [bare], never)


def naive_variation(mask: Array) -> float:
    height, width = mask.shape
    down = [abs(float(mask[y + 1, x]) - float(mask[y, x])) for y in range(height - 1) for x in range(width)]
    right = [abs(float(mask[y, x + 1]) - float(mask[y, x])) for y in range(height) for x in range(width - 1)]
    return sum(sum(steps) / len(steps) for steps in (down, right) if steps)


@pytest.mark.parametrize("shape", [(20, 28), (2, 3), (1, 9), (9, 1), (1, 1)], ids=str)
def test_total_variation_equals_a_loop(shape: tuple[int, int], rng: np.random.Generator) -> None:
    masks = rng.random((6, *shape)).astype(np.float32)
    image = np.zeros((*shape, 3), np.uint8)
    rows = measure([TotalVariation()], [Sample(image, mask, 0) for mask in masks], never)["smoothness"]
    np.testing.assert_allclose(rows[:, 0], [naive_variation(mask) for mask in masks], atol=1e-6)


def test_total_variation_of_a_checkerboard_is_2_and_of_a_ramp_its_slopes() -> None:
    y, x = np.mgrid[:10, :14]
    image = np.zeros((10, 14, 3), np.uint8)
    samples = [Sample(image, ((y + x) % 2).astype(np.float32), 0), Sample(image, 0.02 * y + 0.05 * x, 0)]
    rows = measure([TotalVariation()], samples, never)["smoothness"]
    assert rows[:, 0].tolist() == pytest.approx([2.0, 0.07])


def naive_overlap(masks: Array) -> float:
    ratios = []
    for first in range(len(masks)):
        for second in range(first):
            pairs = list(zip(masks[first].flat, masks[second].flat, strict=True))
            union = sum(max(float(a), float(b)) for a, b in pairs)
            ratios.append(sum(min(float(a), float(b)) for a, b in pairs) / union if union else 0.0)
    return sum(ratios) / len(ratios)


def test_overlap_equals_a_loop_over_pairs(rng: np.random.Generator) -> None:
    for count in (2, 3, 5):
        masks = rng.random((count, 12, 9)) ** rng.uniform(0.2, 6, (count, 1, 1))
        assert overlap(masks) == pytest.approx(naive_overlap(masks), abs=1e-6)
        masks[0] = 0
        assert overlap(masks) == pytest.approx(naive_overlap(masks), abs=1e-6)
        assert overlap(masks.astype(np.float32)) == pytest.approx(naive_overlap(masks), abs=1e-6)


def test_overlap_of_equal_disjoint_and_empty_masks() -> None:
    left = np.zeros((4, 6), np.float32)
    left[:, :3] = 0.5
    assert overlap(np.stack([left, left, left])) == 1
    assert overlap(np.stack([left, left[:, ::-1]])) == 0
    assert overlap(np.zeros((2, 4, 6))) == 0


@pytest.mark.parametrize(
    "masks",
    [np.ones((1, 3, 3)), np.ones((3, 3)), np.full((2, 3, 3), np.nan), np.full((2, 3, 3), -0.1)],
    ids=["one", "flat", "nan", "negative"],
)
def test_overlap_refuses_what_are_not_several_masks(masks: Array) -> None:
    with pytest.raises(UsageError, match="two or more"):
        overlap(masks)


@pytest.mark.parametrize(("radius", "draws"), [(0.05, 8), (0.3, 1), (1.0, 3)])
def test_sensitivity_equals_a_loop_over_the_noisy_images(radius: float, draws: int, samples: list[Sample]) -> None:
    shown: list[Array] = []

    def record(images: Array, target: Array) -> Array:
        shown.extend(images.copy())
        return explain(images, target)

    metric = NoiseSensitivity(radius, draws)
    rows = measure([metric], samples, never, explainers={"explain": record})["sensitivity"]
    assert len(shown) == draws * len(samples)
    expected = []
    for index, sample in enumerate(samples):
        size = math.sqrt(sum(float(value) ** 2 for value in sample.mask.flat))
        changes = []
        for noisy in shown[index * draws : (index + 1) * draws]:
            mask = explain(noisy[None], np.array([sample.target]))[0]
            differences = (float(a) - float(b) for a, b in zip(mask.flat, sample.mask.flat, strict=True))
            changes.append(math.sqrt(sum(difference**2 for difference in differences)) / size)
        expected.append(max(changes))
    np.testing.assert_allclose(rows[:, 0], expected, atol=1e-6)
    assert metric.aggregate(rows) == pytest.approx(sum(expected) / len(expected), abs=1e-6)
    assert np.ptp(expected) > 1e-3


def test_the_noise_is_uniform_within_the_radius_and_depends_on_the_image_alone() -> None:
    shown: list[Array] = []

    def record(images: Array, target: Array) -> Array:
        shown.append(images.copy())
        return explain(images, target)

    grey = np.full((40, 50, 3), 128, np.uint8)
    mask = np.random.default_rng(0).random((40, 50))
    other = grey.copy()
    other[0, 0, 0] = 129
    for image, own in ((grey, mask), (grey, 1 - mask), (other, mask)):
        measure([NoiseSensitivity(0.2, 6)], [Sample(image, own, 1)], never, explainers={"explain": record})
    noise = shown[0].astype(float) - 128
    assert np.abs(noise).max() == 51, "of 255, and this many draws come near the end"
    assert noise.mean() == pytest.approx(0, abs=0.5)
    assert noise.std() == pytest.approx(51 / math.sqrt(3), rel=0.02)
    np.testing.assert_array_equal(shown[0], shown[1])
    assert (shown[0] != shown[2]).mean() > 0.9
    assert all((noise[i] != noise[j]).mean() > 0.9 for i in range(6) for j in range(i)), "each draw is another"


def test_noise_is_cut_off_at_black_and_white() -> None:
    shown: list[Array] = []

    def record(images: Array, target: Array) -> Array:
        shown.append(images.copy())
        return explain(images, target)

    for value in (0, 255):
        image = np.full((20, 20, 3), value, np.uint8)
        sample = Sample(image, np.ones((20, 20)), 0)
        measure([NoiseSensitivity(0.1, 4)], [sample], never, explainers={"explain": record})
    assert shown[0].max() <= 26
    assert shown[1].min() >= 229
    assert (shown[0] == 0).mean() == pytest.approx(0.5, abs=0.05)
    assert (shown[1] == 255).mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("radius", "draws"), [(0.0, 8), (1.5, 8), (0.1, 0)])
def test_noise_without_size_or_draws_is_refused(radius: float, draws: int) -> None:
    with pytest.raises(UsageError, match="a radius in"):
        NoiseSensitivity(radius, draws)


def naive_rank_correlation(first: Array, second: Array) -> float:
    """Pearson's correlation of ranks; equal values share the mean of their ranks."""

    def ranks(values: list[float]) -> list[float]:
        ranked = sorted(values)
        return [ranked.index(value) + (ranked.count(value) - 1) / 2 for value in values]

    a, b = ranks(first.reshape(-1).tolist()), ranks(second.reshape(-1).tolist())
    mean = (len(a) - 1) / 2
    covariance = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    return covariance / math.sqrt(sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b))


def test_randomisation_equals_a_loop_over_ranks(samples: list[Sample], rng: np.random.Generator) -> None:
    others = np.stack([sample.mask * rng.uniform(-1, 1) + rng.random(sample.mask.shape) for sample in samples])
    others[0] = -(samples[0].mask ** 3)
    others[1] = np.round(others[1], 1)  # with equal values
    rows = measure(
        [Randomisation()], samples, never, explainers={"randomised": lambda images, target: others}, batch_size=8
    )["randomisation"]
    expected = [abs(naive_rank_correlation(sample.mask, other)) for sample, other in zip(samples, others, strict=True)]
    np.testing.assert_allclose(rows[:, 0], expected, atol=1e-6)
    assert rows[0, 0] == pytest.approx(1), "turned upside down it is still the same mask"
    assert np.ptp(expected) > 0.1


def test_randomisation_of_constant_masks(samples: list[Sample]) -> None:
    flat = np.full_like(samples[0].mask, 0.4)
    for own, other, expected in ((flat, 2 * flat, 1.0), (flat, samples[0].mask, 0.0), (samples[0].mask, flat, 0.0)):
        sample = Sample(samples[0].image, own, 0)
        answer = other[None]
        rows = measure([Randomisation()], [sample], never, explainers={"randomised": lambda i, t, a=answer: a})
        assert rows["randomisation"].tolist() == [[expected]]


def test_directions() -> None:
    assert Area().higher_is_better is None
    lower = (AreaError(), TotalVariation(), NoiseSensitivity(), Randomisation())
    assert all(metric.higher_is_better is False for metric in lower)
