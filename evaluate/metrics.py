"""Is a mask faithful? Metrics that need only a function from images to probabilities, so that they run on any engine.

Images are uint8 (N, H, W, 3), masks float (N, H, W) with 1 for evidence, boxes (N, 4) as left, top, right, bottom.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..contracts import Floats, Uint8
from ..errors import UsageError

__all__ = ["Curves", "Predict", "box_hits", "insertion_deletion", "inside_outside"]

Predict = Callable[[Uint8], Floats]
"""From images uint8 (N, H, W, 3) to probabilities (N, K)."""

_PerImage = NDArray[np.float64]


@dataclass(frozen=True)
class Curves:
    """Insertion and deletion curves.

    Attributes:
        fractions: (S,), the share of pixels revealed or removed, 0 … 1.
        insertion: (N, S), probability of the target class as the most important pixels are revealed.
        deletion: (N, S), the same as they are removed.
    """

    fractions: _PerImage
    insertion: _PerImage
    deletion: _PerImage

    @property
    def insertion_auc(self) -> _PerImage:
        """Area under each image's insertion curve, (N,); higher is better."""
        return np.asarray(np.trapezoid(self.insertion, self.fractions, axis=1))

    @property
    def deletion_auc(self) -> _PerImage:
        """Area under each image's deletion curve, (N,); lower is better."""
        return np.asarray(np.trapezoid(self.deletion, self.fractions, axis=1))


def insertion_deletion(
    predict: Predict,
    images: Uint8,
    masks: Floats,
    target: NDArray[np.int64],
    *,
    fill: tuple[int, int, int],
    steps: int = 16,
    batch_size: int = 64,
) -> Curves:
    """Insertion and deletion (Petsiuk et al. 2018, RISE): reveal pixels of a plain canvas, or remove pixels of the
    image, most important first, and watch the target class.

    Args:
        predict: the classifier.
        images: uint8 (N, H, W, 3).
        masks: (N, H, W); pixels of equal value go in the order of a fixed random permutation.
        target: class per image, (N,).
        fill: colour of removed pixels.
        steps: equal steps from 0 to 1, so steps + 1 points.
        batch_size: images per call of `predict`.

    Raises:
        UsageError: shapes that do not fit, or a mask that is not finite.
    """
    count, height, width = images.shape[:3]
    if masks.shape != (count, height, width) or target.shape != (count,):
        raise UsageError(f"images {images.shape}, masks {masks.shape} and target {target.shape} do not belong together")
    if not np.isfinite(masks).all():
        raise UsageError("a mask has values that are not finite")
    fractions = np.linspace(0, 1, steps + 1)
    shuffle = np.random.default_rng(0).permutation(height * width)
    colour = np.array(fill, dtype=np.uint8)
    insertion = np.empty((count, steps + 1))
    deletion = np.empty((count, steps + 1))
    for index in range(count):
        flat = masks[index].reshape(-1)
        order = shuffle[np.argsort(-flat[shuffle], kind="stable")]
        rank = np.empty(order.size, dtype=np.int64)
        rank[order] = np.arange(order.size)
        top = rank.reshape(1, height, width, 1) < np.round(fractions * order.size).astype(np.int64)[:, None, None, None]
        copies = np.concatenate([np.where(top, images[index], colour), np.where(top, colour, images[index])])
        scores = np.concatenate(
            [
                predict(copies[start : start + batch_size])[:, target[index]]
                for start in range(0, len(copies), batch_size)
            ]
        )
        insertion[index], deletion[index] = scores[: steps + 1], scores[steps + 1 :]
    return Curves(fractions, insertion, deletion)


def box_hits(masks: Floats, boxes: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Pointing game against boxes: is the mask's peak (the first, where several are equal) inside the box? (N,)."""
    count, _, width = masks.shape
    y, x = np.divmod(masks.reshape(count, -1).argmax(1), width)
    left, top, right, bottom = boxes.T
    return np.asarray((left <= x) & (x < right) & (top <= y) & (y < bottom))


def inside_outside(masks: Floats, evidence: NDArray[np.bool_]) -> tuple[_PerImage, _PerImage]:
    """Mean mask value inside and outside the ground truth, each (N,)."""
    inside = (masks * evidence).sum((1, 2), dtype=np.float64) / evidence.sum((1, 2))
    outside = (masks * ~evidence).sum((1, 2), dtype=np.float64) / (~evidence).sum((1, 2))
    return inside, outside
