"""The mask by itself: how large, how smooth, how much several masks share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...contracts import Floats
from ...errors import UsageError
from .metric import Answers, Metric
from .sample import Sample

__all__ = ["Area", "AreaError", "TotalVariation", "overlap"]


@dataclass(frozen=True)
class Area(Metric):
    """Mean value of the mask; neither end is good in itself."""

    name: str = "area"
    higher_is_better: ClassVar[bool | None] = None

    def row(self, sample: Sample, answers: Answers) -> tuple[float]:
        """The mean."""
        return (float(sample.mask.mean(dtype=np.float64)),)


@dataclass(frozen=True)
class AreaError(Metric):
    """Distance of the mask's area from the wanted one, lower is better: |mean m − a|.

    Attributes:
        area: the wanted area in [0, 1]; None takes that of the ground truth.
    """

    area: float | None = None
    name: str = "area-error"
    higher_is_better: ClassVar[bool | None] = False

    @property
    def needs_evidence(self) -> bool:  # type: ignore[override]
        """Only where no area is given."""
        return self.area is None

    def row(self, sample: Sample, answers: Answers) -> tuple[float]:
        """The distance."""
        wanted = self.area
        if wanted is None:
            assert sample.evidence is not None, "asked only where there is ground truth"
            wanted = float(sample.evidence.mean())
        return (abs(float(sample.mask.mean(dtype=np.float64)) - wanted),)


@dataclass(frozen=True)
class TotalVariation(Metric):
    """Smoothness, lower is smoother: mean |m[y+1, x] − m[y, x]| plus mean |m[y, x+1] − m[y, x]| (anisotropic total
    variation per pixel; Rudin et al. 1992).
    """

    name: str = "smoothness"
    higher_is_better: ClassVar[bool | None] = False

    def row(self, sample: Sample, answers: Answers) -> tuple[float]:
        """Sum of the two means; 0 along an axis of one pixel."""
        mask = sample.mask.astype(np.float64)
        return (float(sum(np.abs(np.diff(mask, axis=axis)).mean() for axis in (0, 1) if mask.shape[axis] > 1)),)


def overlap(masks: Floats) -> float:
    """How much several masks of one image share: the mean over pairs of Σ min(a, b) / Σ max(a, b); 0 is disjoint, 1 is
    equal. Two masks of zeros share nothing.

    Args:
        masks: (J, H, W) in [0, 1], J ≥ 2.
    """
    if masks.ndim != 3 or len(masks) < 2 or not np.isfinite(masks).all() or masks.min() < 0:
        raise UsageError(f"overlap takes two or more finite masks (J, H, W) of 0 … 1, not {masks.shape}")
    ratios = []
    for first in range(len(masks)):
        for second in range(first + 1, len(masks)):
            union = np.maximum(masks[first], masks[second]).sum(dtype=np.float64)
            shared = np.minimum(masks[first], masks[second]).sum(dtype=np.float64)
            ratios.append(float(shared / union) if union > 0 else 0.0)
    return float(np.mean(ratios))
