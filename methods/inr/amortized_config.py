"""Settings of an amortized coordinate network."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...errors import UsageError
from ..training.config import TrainingConfig
from .config import checked_areas

__all__ = ["AmortizedConfig"]


@dataclass(frozen=True, kw_only=True)
class AmortizedConfig(TrainingConfig):
    """How one network is trained that emits the mask of any image as a function; see `TrainingConfig` for what every
    training has.

    Attributes:
        areas: of the masks that a bundle gives unless asked for others; the training draws its own, from `smallest` to
            `largest`.
        smallest: area that is trained.
        largest: area that is trained.
        drawn: areas of each image in each step.
        parts: masks of one image that have no common pixel, each sufficient where it can be; 1 for one mask.
        preserve: weight of −log p of the class where only what a mask keeps is shown.
        complement: weight of −log(1 − p) where it is taken away; counts for the larger areas alone, since taking a part
            of the evidence away need not make the class go.
        binary: weight of the distance of a mask's sorted values from zeros and ones.
        smooth: weight of a mask's total variation, the mean of what neighbouring points of the grid differ by; without
            it what a large mask takes beyond the evidence is scattered.
        nested: weight of what a mask keeps that a larger one of the same image does not.
        elsewhere: weight of keeping nothing of what comes from an image of another class, in the mixed images that an
            explainer for any class is trained on.
        features: frequencies of the Fourier features of a place.
        frequency: their standard deviation, in cycles per half the image.
        gain: factor of a mask's logits once it is trained, so that fewer pixels are half kept; the area stays what it
            was, since it is exact for any logits.
        grid: positions a side at which the network is asked; 0 takes half the image's longer side, at most 56. Between
            them the mask is bilinear.
    """

    areas: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3)
    smallest: float = 0.02
    largest: float = 0.5
    drawn: int = 2
    parts: int = 1
    preserve: float = 1.0
    complement: float = 0.5
    binary: float = 40.0
    smooth: float = 1.0
    nested: float = 1.0
    elsewhere: float = 2.0
    features: int = 32
    frequency: float = 1.0
    gain: float = 6.0
    grid: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_areas(self.areas)
        if not 0 < self.smallest < self.largest < 1:
            raise UsageError("the smallest and the largest area that are trained lie in (0, 1), in this order")
        if min(self.drawn, self.parts, self.features) < 1 or self.grid < 0:
            raise UsageError("areas drawn, parts and features are at least 1, and the grid is not negative")
        weights = (self.preserve, self.complement, self.binary, self.smooth, self.nested, self.elsewhere)
        if not all(map(math.isfinite, weights)) or min(weights) < 0 or self.preserve + self.complement == 0:
            raise UsageError(
                "the weights of the losses are finite and not negative, and preserve or complement is positive"
            )
        if not 0 < self.frequency < math.inf:
            raise UsageError(f"the frequency {self.frequency} is not positive and finite")
        if not 0 < self.gain < math.inf:
            raise UsageError(f"the gain {self.gain} is not positive and finite")
