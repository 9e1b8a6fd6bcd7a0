"""How sure is a number? Bootstrap intervals, and differences between explainers on the same images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from .information import InformationCurve
from .metric import Metric, Rows

__all__ = ["Estimate", "difference", "estimate"]

_COARSE = 100  # points of a median curve inside the bootstrap


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % bootstrap interval.

    Attributes:
        value: over all images.
        low: 2.5th percentile of the value over resampled sets of images.
        high: 97.5th percentile.
        images: number of images for which the metric is defined.
    """

    value: float
    low: float
    high: float
    images: int

    @property
    def certain(self) -> bool:
        """The interval does not contain 0."""
        return self.low > 0 or self.high < 0


def estimate(metric: Metric, rows: Rows, *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """The metric over all images, with a percentile bootstrap over images (Efron & Tibshirani 1993, §13).

    Args:
        metric: that made the rows.
        rows: of `measure`, (N, L); images for which the metric is not defined are NaN, and left out.
        resamples: sets of images that are drawn, with replacement.
        seed: of the draws.
    """
    counted = rows[~np.isnan(rows).any(1)]
    if not len(counted):
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    low, high = _interval(_bootstrap(metric, (counted,), resamples, seed)[0])
    return Estimate(metric.aggregate(counted), low, high, len(counted))


def difference(metric: Metric, rows: Rows, other: Rows, *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """The first minus the second, on the same images: each resampled set of images is drawn for both alike.

    Images for which the metric is not defined on both sides are left out on both.

    Args:
        metric: that made the rows.
        rows: of one explainer, (N, L).
        other: of another, of the same images in the same order.
        resamples: sets of images that are drawn, with replacement.
        seed: of the draws.

    Raises:
        UsageError: another number of images on the other side.
    """
    if rows.shape != other.shape:
        raise UsageError(f"a paired difference needs the same images on both sides, not {len(rows)} and {len(other)}")
    both = ~(np.isnan(rows).any(1) | np.isnan(other).any(1))
    if not both.any():
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    first, second = _bootstrap(metric, (rows[both], other[both]), resamples, seed)
    with np.errstate(invalid="ignore"):  # infinite on both sides
        low, high = _interval(first - second)
    value = metric.aggregate(rows[both]) - metric.aggregate(other[both])
    return Estimate(value, low, high, int(both.sum()))


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 %; NaN if none of the values is a number."""
    if np.isnan(values).all():
        return float("nan"), float("nan")
    with np.errstate(invalid="ignore"):  # percentiles between infinite values
        low, high = np.nanpercentile(values, (2.5, 97.5))
    return float(low), float(high)


def _bootstrap(metric: Metric, sets: tuple[Rows, ...], resamples: int, seed: int) -> list[NDArray[np.float64]]:
    """The metric on resampled rows, one array per set; the same draws for all sets."""
    if resamples < 1:
        raise UsageError(f"a bootstrap resamples at least once, not {resamples} times")
    generator = np.random.default_rng(seed)
    count = len(sets[0])
    plain = type(metric).aggregate is Metric.aggregate  # a mean of values per image
    values = [metric.per_image(rows) for rows in sets] if plain else []
    curves = [metric.curves(rows, _COARSE) for rows in sets] if isinstance(metric, InformationCurve) else []
    found = [np.empty(resamples) for _ in sets]
    for resample in range(resamples):
        draw = generator.integers(count, size=count)
        for index, rows in enumerate(sets):
            if plain:
                found[index][resample] = values[index][draw].mean()
            elif isinstance(metric, InformationCurve):
                found[index][resample] = metric.area_of(curves[index][draw])
            else:
                found[index][resample] = metric.aggregate(rows[draw])
    return found
