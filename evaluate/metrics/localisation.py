"""Masks against ground truth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .metric import Answers, Metric, Rows
from .sample import Sample

__all__ = [
    "F1",
    "AveragePrecision",
    "Contrast",
    "MeanIoU",
    "PixelAccuracy",
    "Pointing",
    "PointingBox",
    "Precision",
    "RowF1",
]


class _AgainstEvidence(Metric):
    needs_evidence: ClassVar[bool] = True


@dataclass(frozen=True)
class Pointing(_AgainstEvidence):
    """Pointing game in percent, higher is better: is a pixel of the ground truth nearer than `tolerance` to the mask's
    peak (Zhang et al. 2018; tolerance as in TorchRay)?

    The peak is the first pixel with the largest value. A constant mask has no peak and misses.

    Attributes:
        tolerance: pixels; at 0 the peak must lie on the ground truth.
    """

    tolerance: float = 15.0
    name: str = "pointing"

    def row(self, sample: Sample, answers: Answers) -> tuple[float]:
        """100 or 0."""
        mask, evidence = sample.mask, _evidence(sample)
        if mask.min() == mask.max():
            return (0.0,)
        y, x = divmod(int(mask.argmax()), mask.shape[1])
        if evidence[y, x]:
            return (100.0,)
        rows, columns = np.nonzero(evidence)
        return (100.0 * bool(((rows - y) ** 2 + (columns - x) ** 2).min() < self.tolerance**2),)


@dataclass(frozen=True)
class PointingBox(_AgainstEvidence):
    """Pointing game against the bounding box of the ground truth in percent, higher is better: is the peak in it?

    The peak is that of `Pointing`.
    """

    name: str = "pointing-box"

    def row(self, sample: Sample, answers: Answers) -> tuple[float]:
        """100 or 0."""
        rows, columns = np.nonzero(_evidence(sample))
        box = np.zeros(sample.mask.shape, dtype=np.bool_)
        box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
        return Pointing(0).row(replace(sample, evidence=box), answers)


@dataclass(frozen=True)
class Precision(_AgainstEvidence):
    """Share of the mask that lies inside the ground truth g, higher is better: Σ m·g / Σ m (Quantus: relevance mass
    accuracy). A mask of zeros scores 0.
    """

    name: str = "precision"

    def row(self, sample: Sample, answers: Answers) -> tuple[float]:
        """The share."""
        total = sample.mask.sum(dtype=np.float64)
        return (float(sample.mask[_evidence(sample)].sum(dtype=np.float64) / total) if total > 0 else 0.0,)


@dataclass(frozen=True)
class Contrast(_AgainstEvidence):
    """How many times larger the mask is inside the ground truth than outside, higher is better: the mean over images of
    the mean value inside, over that of the mean value outside.
    """

    name: str = "contrast"

    def row(self, sample: Sample, answers: Answers) -> tuple[float, float]:
        """Mean value inside and outside; NaN where the ground truth is the whole image."""
        evidence = _evidence(sample)
        if evidence.all():
            return float("nan"), float("nan")
        mask = sample.mask
        return float(mask[evidence].mean(dtype=np.float64)), float(mask[~evidence].mean(dtype=np.float64))

    def per_image(self, rows: Rows) -> NDArray[np.float64]:
        """The ratio; NaN where the mask is zero outside."""
        ratio: NDArray[np.float64] = np.divide(
            rows[:, 0], rows[:, 1], out=np.full(len(rows), np.nan), where=rows[:, 1] > 0
        )
        return ratio

    def aggregate(self, rows: Rows) -> float:
        """Ratio of the means: one image whose mask is nearly zero outside does not decide it; infinite if all are."""
        counted = rows[~np.isnan(rows[:, 0])]
        inside, outside = counted.mean(0) if len(counted) else (np.nan, np.nan)
        return float(inside / outside) if outside > 0 else (np.inf if inside > 0 else np.nan)


class _Segmentation(_AgainstEvidence):
    """The map stretched to [0, 1] and cut at its mean: foreground above (Chefer et al. 2021, §4, and their code)."""

    def foreground(self, sample: Sample) -> NDArray[np.bool_]:
        """The predicted foreground (H, W); a constant mask has none."""
        unit = sample.unit_mask
        return np.asarray(unit > unit.mean())


@dataclass(frozen=True)
class PixelAccuracy(_Segmentation):
    """Pixel accuracy in percent, higher is better: pixels whose foreground or background is right, over all pixels of
    the data set.
    """

    name: str = "pa"

    def row(self, sample: Sample, answers: Answers) -> tuple[float, float]:
        """Right pixels and all pixels."""
        evidence = _evidence(sample)
        return float((self.foreground(sample) == evidence).sum()), float(evidence.size)

    def per_image(self, rows: Rows) -> NDArray[np.float64]:
        """Accuracy of each image."""
        return 100 * rows[:, 0] / rows[:, 1]

    def aggregate(self, rows: Rows) -> float:
        """Accuracy over all pixels."""
        return float(100 * rows[:, 0].sum() / rows[:, 1].sum())


@dataclass(frozen=True)
class MeanIoU(_Segmentation):
    """Mean intersection over union of background and foreground in percent, higher is better; intersections and unions
    are summed over the data set before they are divided.
    """

    name: str = "miou"

    def row(self, sample: Sample, answers: Answers) -> tuple[float, float, float, float]:
        """Intersection and union of the background, then of the foreground."""
        found, evidence = self.foreground(sample), _evidence(sample)
        return (
            float((~found & ~evidence).sum()),
            float((~found | ~evidence).sum()),
            float((found & evidence).sum()),
            float((found | evidence).sum()),
        )

    def per_image(self, rows: Rows) -> NDArray[np.float64]:
        """The same of each image alone; a class that neither has counts as found."""
        parts = [
            np.divide(rows[:, i], rows[:, i + 1], out=np.ones(len(rows)), where=rows[:, i + 1] > 0) for i in (0, 2)
        ]
        return np.asarray(50 * (parts[0] + parts[1]))

    def aggregate(self, rows: Rows) -> float:
        """Mean of the two classes' ratios of sums."""
        return float(self.per_image(rows.sum(0, keepdims=True))[0])


@dataclass(frozen=True)
class AveragePrecision(_Segmentation):
    """Average precision in percent, higher is better, as published: one micro average over 2·H·W pairs, each pixel once
    as background with score 1 − s and once as foreground with score s. A random mask scores about 50.
    """

    name: str = "map"

    def row(self, sample: Sample, answers: Answers) -> tuple[float]:
        """The image's value."""
        score, truth = sample.unit_mask.reshape(-1), _evidence(sample).reshape(-1)
        return (100 * average_precision(np.concatenate([1 - score, score]), np.concatenate([~truth, truth])),)


@dataclass(frozen=True)
class F1(_Segmentation):
    """F1 of the foreground in percent, higher is better: 2·TP / (2·TP + FP + FN) of each image, then the mean."""

    name: str = "f1"

    def row(self, sample: Sample, answers: Answers) -> tuple[float]:
        """The image's value."""
        found, evidence = self.foreground(sample), _evidence(sample)
        return (float(200 * (found & evidence).sum() / (found.sum() + evidence.sum())),)


@dataclass(frozen=True)
class RowF1(_Segmentation):
    """F1 as in the published code, to compare with published numbers: the mean F1 of an image's rows in percent, as
    that code takes the rows for the samples of a batch. A row without foreground counts 0, so a perfect mask does not
    reach 100.
    """

    name: str = "f1-rows"

    def row(self, sample: Sample, answers: Answers) -> tuple[float]:
        """The image's value."""
        found, evidence = self.foreground(sample), _evidence(sample)
        hits = 2.0 * (found & evidence).sum(1)
        either = found.sum(1) + evidence.sum(1)
        return (float(100 * np.divide(hits, either, out=np.zeros(len(hits)), where=either > 0).mean()),)


def average_precision(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    """Σ (R_k − R_{k−1}) · P_k over the distinct scores, from the largest on; 0 without a positive."""
    if not truth.any():
        return 0.0
    order = np.argsort(-scores, kind="stable")
    scores, truth = scores[order], truth[order]
    last = np.append(np.flatnonzero(np.diff(scores)), scores.size - 1)  # the last pair of each score
    hits = np.cumsum(truth, dtype=np.float64)[last]
    precision, recall = hits / (last + 1), hits / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def _evidence(sample: Sample) -> NDArray[np.bool_]:
    assert sample.evidence is not None, "`measure` asks metrics with needs_evidence only where there is ground truth"
    return sample.evidence
