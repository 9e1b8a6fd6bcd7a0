"""How far two sets of masks are apart, image by image. All functions take (N, …) arrays and return one number per
image.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["change_between", "cosine", "max_abs", "spearman", "top_iou"]

_Array = NDArray[np.floating]
_PerImage = NDArray[np.float64]
_Pixels = NDArray[np.bool_]


def max_abs(a: _Array, b: _Array) -> _PerImage:
    """Largest absolute difference; infinite where either has a value that is not finite."""
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        difference: _PerImage = np.abs(_flat(a) - _flat(b))
    worst: _PerImage = np.where(np.isfinite(difference), difference, np.inf).max(1)
    return worst


def cosine(a: _Array, b: _Array) -> _PerImage:
    """Cosine of the angle between the two, in [-1, 1]; 1 where both are all zero."""
    x, y = _flat(a), _flat(b)
    product = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    both_zero = (np.abs(x).max(1) == 0) & (np.abs(y).max(1) == 0)
    return np.where(both_zero, 1.0, (x * y).sum(1) / np.where(product > 0, product, 1.0))


def spearman(a: _Array, b: _Array) -> _PerImage:
    """Rank correlation, in [-1, 1], ties at their mean rank; values closer than 1e-5 count as ties; 1 where both are
    flat.
    """
    return np.array([_correlation(_ranks(x), _ranks(y)) for x, y in zip(_flat(a), _flat(b), strict=True)])


def top_iou(a: _Array, b: _Array, fraction: float = 0.1, tie: float = 1e-4) -> _PerImage:
    """Overlap (intersection over union) of the pixels with the highest values.

    A pixel that ties with the threshold, to within `tie`, may belong to either set, since a saturated mask has no tenth
    that is *the* top tenth; it counts as agreeing.
    """
    scores = []
    for x, y in zip(_flat(a), _flat(b), strict=True):
        rank = max(1, round(fraction * x.size))
        (top_x, surely_x, surely_not_x), (top_y, surely_y, surely_not_y) = _top(x, rank, tie), _top(y, rank, tie)
        disputed = (surely_x & surely_not_y) | (surely_y & surely_not_x)
        scores.append(1 - int(disputed.sum()) / int((top_x | top_y).sum()))
    return np.array(scores)


def change_between(maps: _Array) -> _PerImage:
    """Largest absolute difference between each map and the next one (the last against the first)."""
    return max_abs(maps, np.roll(maps, 1, axis=0))


def _top(values: _PerImage, rank: int, tie: float) -> tuple[_Pixels, _Pixels, _Pixels]:
    """The pixels with the highest values, those that are surely among them, and those that are surely not."""
    last = np.partition(values, -rank)[-rank]
    next_one = np.partition(values, -rank - 1)[-rank - 1] if rank < values.size else -np.inf
    return values >= last, values > next_one + tie, values < last - tie


def _flat(array: _Array) -> _PerImage:
    return np.asarray(array, dtype=np.float64).reshape(len(array), -1)


def _ranks(values: _PerImage) -> _PerImage:
    rounded = np.round(values * 1e5)
    _, inverse, counts = np.unique(rounded, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse.reshape(-1)])


def _correlation(x: _PerImage, y: _PerImage) -> float:
    x, y = x - x.mean(), y - y.mean()
    product = float(np.linalg.norm(x) * np.linalg.norm(y))
    if product == 0:
        return 1.0 if np.abs(x).max() == np.abs(y).max() == 0 else 0.0
    return float((x * y).sum() / product)
