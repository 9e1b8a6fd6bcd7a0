"""Does the mask stay when the image hardly changes, and change when the weights do?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...contracts import Uint8
from ...errors import UsageError, require
from .metric import Answers, Metric
from .probes import EXPLAIN
from .sample import Sample

__all__ = ["RANDOMISED", "NoiseSensitivity", "Randomisation"]

RANDOMISED = "randomised"


@dataclass(frozen=True)
class Noisy:
    """Copies of the image with independent uniform noise, rounded to uint8; answered by masks.

    The noise depends on the image alone.
    """

    radius: float
    draws: int
    asks: ClassVar[str] = EXPLAIN

    def render(self, sample: Sample) -> tuple[Uint8, None]:
        """One copy per draw."""
        generator = np.random.default_rng(sample.seed)
        noise = generator.uniform(-255 * self.radius, 255 * self.radius, (self.draws, *sample.image.shape))
        return (sample.image + noise).clip(0, 255).round().astype(np.uint8), None

    def digest(self, sample: Sample, outputs: NDArray[Any], notes: NDArray[np.float64] | None) -> NDArray[Any]:
        """The masks, (draws, H, W)."""
        return _same_size(sample, outputs)


@dataclass(frozen=True)
class Again:
    """The image as it is, answered by the masks of another explainer."""

    asks: str

    def render(self, sample: Sample) -> tuple[Uint8, None]:
        """One copy."""
        return sample.image[None], None

    def digest(self, sample: Sample, outputs: NDArray[Any], notes: NDArray[np.float64] | None) -> NDArray[Any]:
        """The mask, (H, W)."""
        return np.asarray(_same_size(sample, outputs)[0])


@dataclass(frozen=True)
class NoiseSensitivity(Metric):
    """Largest relative change of the mask under noise, lower is better: max over draws of ‖m(x + δ) − m(x)‖₂ / ‖m(x)‖₂
    (Yeh et al. 2019, max-sensitivity).

    Attributes:
        radius: δ is uniform in ± radius, of a pixel's range.
        draws: of the noise, per image.
    """

    radius: float = 0.05
    draws: int = 8
    name: str = "sensitivity"
    higher_is_better: ClassVar[bool | None] = False

    def __post_init__(self) -> None:
        if not 0 < self.radius <= 1 or self.draws < 1:
            raise UsageError(
                f"noise has a radius in (0, 1] and one draw or more, not {self.radius} and {self.draws} draws"
            )

    def probes(self, sample: Sample) -> Sequence[Any]:
        """The noisy copies."""
        return (Noisy(self.radius, self.draws),)

    def row(self, sample: Sample, answers: Answers) -> tuple[float]:
        """The change; NaN for a mask of zeros."""
        mask = sample.mask.astype(np.float64)
        size = np.linalg.norm(mask)
        if size == 0:
            return (float("nan"),)
        change = answers[Noisy(self.radius, self.draws)] - mask
        return (float(np.linalg.norm(change.reshape(self.draws, -1), axis=1).max() / size),)


@dataclass(frozen=True)
class Randomisation(Metric):
    """Sanity check by model randomisation, lower is better: |Spearman's rank correlation| of the mask with that of the
    same explainer after the model's weights were randomised (Adebayo et al. 2018, §3).

    A mask that stays does not depend on what the model has learned. Two constant masks are equal, 1; one constant mask
    has nothing in common with the other, 0.
    """

    name: str = "randomisation"
    higher_is_better: ClassVar[bool | None] = False

    def probes(self, sample: Sample) -> Sequence[Any]:
        """The image, for the randomised explainer."""
        return (Again(RANDOMISED),)

    def row(self, sample: Sample, answers: Answers) -> tuple[float]:
        """The correlation's absolute value."""
        other = answers[Again(RANDOMISED)]
        flat = [bool(mask.min() == mask.max()) for mask in (sample.mask, other)]
        if any(flat):
            return (1.0 if all(flat) else 0.0,)
        stats = require("scipy.stats", extra="evaluate", purpose="the rank correlation")
        return (abs(float(stats.spearmanr(sample.mask.reshape(-1), other.reshape(-1)).statistic)),)


def _same_size(sample: Sample, masks: NDArray[Any]) -> NDArray[Any]:
    if masks.shape[1:] != sample.mask.shape:
        raise UsageError(f"{sample.name}: an explainer gave masks of {masks.shape[1:]}, not {sample.mask.shape}")
    return masks
