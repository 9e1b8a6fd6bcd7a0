"""One pass over a stream: the same numbers in any batch, each copy once, nothing kept."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from saccade.evaluate.metrics import (
    ADP,
    METRIC_NAMES,
    Area,
    Metric,
    NoiseSensitivity,
    Predict,
    Randomisation,
    Sample,
    deletion,
    insertion,
    make_metrics,
    measure,
    negative_perturbation,
    positive_perturbation,
)

Array = np.ndarray
MakeSamples = Callable[..., list[Sample]]
CURVES = (insertion(), deletion(), positive_perturbation(), negative_perturbation())


def explain(images: Array, target: Array) -> Array:
    return np.cos(images.astype(np.float64) / 70 + target[:, None, None, None]).mean(3)


def randomised(images: Array, target: Array) -> Array:
    return images.astype(np.float64).max(3) * (target + 1)[:, None, None]


EXPLAINERS = {"explain": explain, "randomised": randomised}


def assert_same_rows(rows: dict[str, Array], other: dict[str, Array]) -> None:
    assert list(rows) == list(other)
    for name in rows:
        np.testing.assert_allclose(rows[name], other[name], rtol=0, atol=1e-12, err_msg=name)


class Counting:
    """Counts and keeps the images of each call of a classifier."""

    def __init__(self, predict: Predict) -> None:
        self.predict = predict
        self.calls: list[int] = []
        self.kept: list[Array] = []

    def __call__(self, images: Array) -> Array:
        self.calls.append(len(images))
        self.kept.extend(images.copy())
        return self.predict(images)


def test_no_metric_depends_on_the_batch_size(samples: list[Sample], toy: Predict) -> None:
    metrics = make_metrics(METRIC_NAMES, tolerance=4.0)
    alone = [measure(metrics, [sample], toy, explainers=EXPLAINERS) for sample in samples]
    expected = {metric.name: np.concatenate([rows[metric.name] for rows in alone]) for metric in metrics}
    for batch_size in (1, 3, 7, 64, 1000):
        assert_same_rows(measure(metrics, samples, toy, explainers=EXPLAINERS, batch_size=batch_size), expected)


# Answers that share memory with the batch, or with each other, must be copied before the next batch is written.
@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_answers_may_be_views_of_the_batch(batch_size: int, samples: list[Sample], toy: Predict) -> None:
    def view(images: Array, target: Array) -> Array:
        return images[..., 0]

    def copy(images: Array, target: Array) -> Array:
        return images[..., 0].copy()

    found, expected = (
        measure([NoiseSensitivity()], samples, toy, explainers={"explain": answer}, batch_size=batch_size)
        for answer in (view, copy)
    )
    assert_same_rows(found, expected)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_a_classifier_may_write_all_its_answers_to_one_place(
    batch_size: int, samples: list[Sample], toy: Predict
) -> None:
    place = np.empty((64, 5))

    def reuse(images: Array) -> Array:
        place[: len(images)] = toy(images)
        return place[: len(images)]

    assert_same_rows(
        measure(CURVES, samples, reuse, batch_size=batch_size), measure(CURVES, samples, toy, batch_size=batch_size)
    )


@pytest.mark.parametrize(
    ("metrics", "copies"),
    [
        (CURVES, 2 * 15 + 2),
        ((deletion(),), 15 + 2),
        ((deletion(), positive_perturbation()), 15 + 2),
        ((insertion(), negative_perturbation()), 15 + 2),
        ((*CURVES, *make_metrics(["adp", "pic", "add"])), 2 * 15 + 2 + 2),
        ((deletion(fill="black"), insertion(fill="blur")), 2 * 15 + 3),
        (make_metrics(["area", "pointing", "f1"]), 0),
    ],
    ids=["curves", "deletion", "most first", "least first", "and masking", "two fills", "no classifier"],
)
def test_each_distinct_copy_is_predicted_once(
    metrics: tuple[Metric, ...], copies: int, samples: list[Sample], toy: Predict
) -> None:
    predict = Counting(toy)
    measure(metrics, samples, predict)
    assert sum(predict.calls) == copies * len(samples)
    for sample in samples:
        predict = Counting(toy)
        measure(metrics, [sample], predict)
        assert len(predict.kept) == len({image.tobytes() for image in predict.kept}) == copies


@pytest.mark.parametrize("batch_size", [1, 5, 64, 100])
def test_batches_are_full_except_the_last(batch_size: int, samples: list[Sample], toy: Predict) -> None:
    predict = Counting(toy)
    measure(CURVES, samples, predict, batch_size=batch_size)
    assert predict.calls[:-1] == [batch_size] * (len(predict.calls) - 1)
    assert 0 < predict.calls[-1] <= batch_size
    assert sum(predict.calls) == 32 * len(samples)


@pytest.mark.parametrize("batch_size", [1, 11])
@pytest.mark.parametrize("names", [["randomisation"], ["adp"], ["adp", "sensitivity"], ["deletion"], ["area"]], ids=str)
def test_samples_are_taken_only_when_needed_and_let_go_when_done(
    names: list[str], batch_size: int, make_samples: MakeSamples, toy: Predict
) -> None:
    alive: list[weakref.ref[Sample]] = []
    progress: list[int] = []
    waiting: list[int] = []
    pool = [(sample.image, sample.mask, sample.target, sample.evidence) for sample in make_samples(30)]

    def stream() -> Iterator[Sample]:
        for parts in pool:
            sample = Sample(*parts)
            alive.append(weakref.ref(sample))
            yield sample

    def done(count: int) -> None:
        progress.append(count)
        waiting.append(len(alive) - count)
        if len(alive) % 8 == 0:
            gc.collect()
            held = sum(reference() is not None for reference in alive)
            assert held <= max(batch_size, 1) + 1, "those that wait, and the one in hand"

    metrics = make_metrics(names)
    measure(metrics, stream(), toy, explainers=EXPLAINERS, batch_size=batch_size, on_done=done)
    assert max(waiting) <= batch_size - 1, "each sample that waits has a copy in the batch"
    if names == ["deletion"]:
        assert max(waiting) <= 1, "a sample has more copies than there are places"
    assert progress == sorted(progress)
    assert progress[-1] == 30
    assert waiting[0] <= 1, "nothing was taken ahead"


def test_rows_are_in_the_order_of_the_samples_when_oracles_finish_in_different_orders(
    make_samples: MakeSamples, toy: Predict
) -> None:
    """Masks need one answer per sample and curves 17: with batches of 16 one runs ahead of the other."""
    samples = make_samples(41)
    metrics = (Area(), Randomisation(), deletion(), ADP())
    rows = measure(metrics, samples, toy, explainers=EXPLAINERS, batch_size=16)
    assert np.unique(rows["area"]).size == len(samples), "an area tells which sample it is"
    for index, sample in enumerate(samples):
        alone = measure(metrics, [sample], toy, explainers=EXPLAINERS)
        assert rows["area"][index, 0] == pytest.approx(sample.mask.mean(dtype=np.float64), abs=1e-12)
        assert_same_rows({name: found[index : index + 1] for name, found in rows.items()}, alone)


def test_explainers_are_told_the_class_of_each_image(samples: list[Sample], toy: Predict) -> None:
    seen: list[tuple[bytes, int]] = []

    def record(images: Array, target: Array) -> Array:
        assert target.shape == (len(images),)
        seen.extend((image.tobytes(), int(which)) for image, which in zip(images, target, strict=True))
        return randomised(images, target)

    measure([Randomisation(), deletion()], samples, toy, explainers={"randomised": record}, batch_size=3)
    assert seen == [(sample.image.tobytes(), sample.target) for sample in samples]
    assert len({which for _, which in seen}) > 2


def test_memory_does_not_grow_with_the_number_of_samples(toy: Predict) -> None:
    size = 64

    def stream(count: int) -> Iterator[Sample]:
        generator = np.random.default_rng(0)
        for _ in range(count):
            image = generator.integers(0, 256, (size, size, 3), dtype=np.uint8)
            yield Sample(image, generator.random((size, size), dtype=np.float32), 1)

    def predict(images: Array) -> Array:
        bright = images[:, ::8, ::8].mean((1, 2, 3)) / 255
        return np.stack([1 - bright, bright], 1)

    metrics = (deletion(steps=4), ADP())
    peaks = []
    for count in (20, 100, 400):  # the first is to warm up
        gc.collect()
        tracemalloc.start()
        rows = measure(metrics, stream(count), predict, batch_size=32)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(rows["adp"]) == count
    assert peaks[2] < 1.3 * peaks[1]
    assert peaks[2] < 100 * (size * size * (3 + 4 + 8)), "what a hundred samples with their orders would take"


def test_a_classifier_may_write_into_its_batch(samples: list[Sample], toy: Predict) -> None:
    before = [(sample.image.copy(), sample.mask.copy()) for sample in samples]

    def vandal(images: Array) -> Array:
        answers = toy(images)
        images[:] = 0
        return answers

    metrics = make_metrics(METRIC_NAMES)
    rows = measure(metrics, samples, vandal, explainers=EXPLAINERS, batch_size=5)
    for sample, (image, mask) in zip(samples, before, strict=True):
        np.testing.assert_array_equal(sample.image, image)
        np.testing.assert_array_equal(sample.mask, mask)
    assert_same_rows(rows, measure(metrics, samples, toy, explainers=EXPLAINERS))
