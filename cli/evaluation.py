"""Evaluate explainers side by side: the same images, the same classifier, the same metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..evaluate.metrics import (
    Estimate,
    Explain,
    InformationCurve,
    Metric,
    Perturbation,
    Predict,
    Sample,
    difference,
    estimate,
    measure,
)
from .evaluation_data import EvaluationData, Example

__all__ = ["Contender", "Curve", "Evaluation", "Score", "decimals", "evaluate_contenders"]

_SHOWN = 6  # images in a report


@dataclass(frozen=True)
class Contender:
    """An explainer that takes part.

    Attributes:
        name: for people.
        explain: from images and classes to masks (N, H, W).
        randomised: makes the same explainer of a model with randomised weights; None if that is not possible.
    """

    name: str
    explain: Explain
    randomised: Callable[[], Explain] | None = None


@dataclass(frozen=True)
class Curve:
    """A mean (or median) curve: x and y, and the half-width of y's 95 % interval, all (S,)."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    margin: NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """What one explainer reached: per metric the value, the difference to the first explainer, and the curve."""

    name: str
    values: Mapping[str, Estimate]
    differences: Mapping[str, Estimate]
    curves: Mapping[str, Curve]


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        metrics: in the order of the table.
        scores: one per explainer, in the order given.
        images: number of images.
        accuracy: share of images whose label is the predicted class; None without labels.
        shown: a few of the samples, and below each all explainers' masks.
    """

    metrics: Sequence[Metric]
    scores: Sequence[Score]
    images: int
    accuracy: float | None
    shown: Sequence[tuple[Sample, Sequence[NDArray[Any]]]]


@dataclass
class _Pass:
    """What is counted while the images go by."""

    images: int = 0
    labelled: int = 0
    right: int = 0
    first: list[Sample] = field(default_factory=list)


def evaluate_contenders(
    contenders: Sequence[Contender],
    metrics: Sequence[Metric],
    data: EvaluationData,
    predict: Predict,
    *,
    of_label: bool = False,
    batch_size: int = 64,
    on_progress: Callable[[str, int], None] = lambda name, done: None,
) -> Evaluation:
    """Measure every explainer on all images, one after the other.

    Args:
        contenders: the first one is what the others are compared with.
        metrics: with different names.
        data: the images; gone through once per explainer.
        predict: the classifier that all metrics watch.
        of_label: explain and watch the true class in place of the predicted one.
        batch_size: images per call.
        on_progress: told the explainer's name and the number of images done.

    Raises:
        UsageError: the data lack what a metric needs, or names that are not unique.
    """
    names = [contender.name for contender in contenders]
    if len(set(names)) < len(names):
        raise UsageError(f"two explainers have the same name: {', '.join(names)}")
    _check(metrics, data, of_label)
    rows: list[dict[str, NDArray[np.float64]]] = []
    passes: list[_Pass] = []
    for contender in contenders:
        own = [metric for metric in metrics if metric.name != "randomisation" or contender.randomised]
        explainers = {"explain": contender.explain}
        if contender.randomised and any(metric.name == "randomisation" for metric in metrics):
            explainers["randomised"] = contender.randomised()
        seen = _Pass()

        def done(count: int, name: str = contender.name) -> None:
            on_progress(name, count)

        samples = _samples(data, contender.explain, predict, of_label, batch_size, seen)
        rows.append(measure(own, samples, predict, explainers=explainers, batch_size=batch_size, on_done=done))
        passes.append(seen)
    first = passes[0]
    return Evaluation(
        metrics=metrics,
        scores=[_score(names[index], metrics, found, rows[0], index) for index, found in enumerate(rows)],
        images=first.images,
        accuracy=first.right / first.labelled if first.labelled else None,
        shown=[(sample, [seen.first[place].mask for seen in passes]) for place, sample in enumerate(first.first)],
    )


def decimals(estimate: Estimate) -> int:
    """Decimals that an estimate deserves."""
    largest = max(abs(estimate.low), abs(estimate.high))
    return 1 if largest >= 10 else 2 if largest >= 1.5 else 4


def _check(metrics: Sequence[Metric], data: EvaluationData, of_label: bool) -> None:
    if of_label and not data.has_labels:
        raise UsageError("--target label needs labels: one folder per class, called like the classes, or scenes")
    if needy := [metric.name for metric in metrics if metric.needs_evidence]:
        if not data.has_evidence:
            raise UsageError(f"{', '.join(needy)}: needs ground truth; give a folder of masks with --masks, or scenes")


def _samples(
    data: EvaluationData, explain: Explain, predict: Predict, of_label: bool, batch_size: int, seen: _Pass
) -> Iterator[Sample]:
    for examples in _chunks(data, batch_size):
        images = np.stack([example.image for example in examples])
        target = np.asarray(predict(images)).argmax(1)
        for example, prediction in zip(examples, target, strict=True):
            seen.images += 1
            seen.labelled += example.label is not None
            seen.right += example.label == prediction
        if of_label:
            target = np.array([example.label for example in examples])
        masks = np.asarray(explain(images, target.astype(np.int64)))
        for example, mask, chosen in zip(examples, masks, target, strict=True):
            sample = _sample(example, mask, int(chosen))
            if len(seen.first) < _SHOWN:
                seen.first.append(sample)
            yield sample


def _chunks(data: EvaluationData, size: int) -> Iterator[list[Example]]:
    examples = iter(data)
    while chunk := list(islice(examples, size)):
        yield chunk


def _sample(example: Example, mask: NDArray[Any], target: int) -> Sample:
    return Sample(example.image, mask, target, example.evidence, example.label, example.name)


def _score(
    name: str,
    metrics: Sequence[Metric],
    rows: Mapping[str, NDArray[np.float64]],
    reference: Mapping[str, NDArray[np.float64]],
    index: int,
) -> Score:
    measured = [metric for metric in metrics if metric.name in rows]
    return Score(
        name=name,
        values={metric.name: estimate(metric, rows[metric.name]) for metric in measured},
        differences={
            metric.name: difference(metric, rows[metric.name], reference[metric.name])
            for metric in measured
            if index and metric.name in reference
        },
        curves={
            metric.name: _curve(metric, rows[metric.name])
            for metric in measured
            if isinstance(metric, (Perturbation, InformationCurve))
        },
    )


def _curve(metric: Perturbation | InformationCurve, rows: NDArray[np.float64]) -> Curve:
    if isinstance(metric, InformationCurve):
        x, y = metric.curve(rows, 100)
        return Curve(x, y, np.zeros_like(y))
    x, y = metric.curve(rows)
    return Curve(x, y, 1.96 * rows.std(0) / len(rows) ** 0.5)
