"""What a metric looks at: one image, its mask, and what is known about both."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ...contracts import Floats, Uint8
from ...errors import UsageError

__all__ = ["Sample"]


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and its explanation.

    Attributes:
        image: uint8 (H, W, 3), as the classifier takes it.
        mask: float (H, W); a larger value is more evidence. Metrics that weigh pixels by it expect [0, 1].
        target: the class that the mask explains and whose probability the metrics watch.
        evidence: bool (H, W), the ground truth, where there is one.
        label: the true class, where it is known.
        name: for messages.

    Raises:
        UsageError: shapes that do not fit, a mask that is not of finite floating-point numbers, or ground truth without
            a pixel.
    """

    image: Uint8
    mask: Floats
    target: int
    evidence: NDArray[np.bool_] | None = None
    label: int | None = None
    name: str = field(default="the image")

    def __post_init__(self) -> None:
        image, mask = self.image, self.mask
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UsageError(f"{self.name}: an image is uint8 (H, W, 3), not {image.dtype} {image.shape}")
        if mask.shape != image.shape[:2]:
            raise UsageError(f"{self.name}: a mask of {mask.shape} does not belong to an image of {image.shape[:2]}")
        if not np.issubdtype(mask.dtype, np.floating):
            raise UsageError(f"{self.name}: a mask is of floating-point numbers, not {mask.dtype}")
        if not np.isfinite(mask).all():
            raise UsageError(f"{self.name}: the mask has values that are not finite")
        if self.evidence is not None:
            if self.evidence.shape != mask.shape or self.evidence.dtype != np.bool_:
                raise UsageError(
                    f"{self.name}: ground truth is bool {mask.shape}, not {self.evidence.dtype} {self.evidence.shape}"
                )
            if not self.evidence.any():
                raise UsageError(f"{self.name}: the ground truth has no pixel")

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Flat indices of the pixels, the most important first, (H·W,).

        Pixels of equal value go in the order of one fixed random permutation: a constant mask then removes scattered
        pixels, not the top rows.
        """
        flat = self.mask.reshape(-1)
        shuffle = _permutation(flat.size)
        return shuffle[np.argsort(-flat[shuffle], kind="stable")]

    @cached_property
    def unit_mask(self) -> NDArray[np.float64]:
        """The mask stretched to [0, 1], (H, W); all zeros if it is constant."""
        mask = self.mask.astype(np.float64)
        low, high = mask.min(), mask.max()
        return (mask - low) / (high - low) if high > low else np.zeros_like(mask)

    @cached_property
    def seed(self) -> int:
        """A number that depends on the image alone: what is random is the same for every mask of one image."""
        return zlib.crc32(np.ascontiguousarray(self.image).tobytes())


_permutations: dict[int, NDArray[np.int64]] = {}


def _permutation(size: int) -> NDArray[np.int64]:
    if size not in _permutations:
        _permutations.clear()  # one image size at a time
        _permutations[size] = np.random.default_rng(0).permutation(size)
    return _permutations[size]
