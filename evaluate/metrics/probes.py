"""Probes: altered copies of an image that a metric wants to see answered.

A probe is a value: two metrics that ask for the same probe share its forwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ...contracts import Uint8
from ...errors import UsageError
from .sample import Sample

__all__ = [
    "EXPLAIN",
    "PREDICT",
    "Answer",
    "Bare",
    "Fill",
    "First",
    "Probe",
    "Remove",
    "Shade",
    "Unchanged",
    "fill_image",
]

PREDICT, EXPLAIN = "predict", "explain"

First = Literal["most", "least"]

Fill = Literal["black", "blur"] | tuple[int, int, int]
"""What stands where a pixel is removed: black, the image blurred as by RISE, or a colour such as the data's mean."""


@dataclass(frozen=True)
class Answer:
    """What the classifier says about the copies of a probe.

    Attributes:
        probability: of the target class, (S,).
        correct: is the target class the predicted one? (S,).
        notes: what the probe itself wrote down about each copy, if anything, (S,).
    """

    probability: NDArray[np.float64]
    correct: NDArray[np.bool_]
    notes: NDArray[np.float64] | None = None


class Probe(Protocol):
    """Copies of an image, and who answers them."""

    @property
    def asks(self) -> str:
        """Who answers: ``"predict"``, ``"explain"``, or another name that the caller of `measure` has set."""
        ...

    def render(self, sample: Sample) -> tuple[Uint8, NDArray[np.float64] | None]:
        """The copies, uint8 (S, H, W, 3), and notes about them."""
        ...

    def digest(self, sample: Sample, outputs: NDArray[Any], notes: NDArray[np.float64] | None) -> Any:
        """What metrics get, from the raw answers (S, …) and the notes."""
        ...


class _Predicted:
    """What probes answered by the classifier have in common."""

    asks: ClassVar[str] = PREDICT

    def digest(self, sample: Sample, outputs: NDArray[Any], notes: NDArray[np.float64] | None) -> Answer:
        """Probability of the target, and whether it is the prediction."""
        if outputs.ndim != 2:
            raise UsageError(f"a classifier answers with probabilities (N, K), not {outputs.shape}")
        if not 0 <= sample.target < outputs.shape[1]:
            raise UsageError(
                f"{sample.name}: class {sample.target} is none of the {outputs.shape[1]} that the classifier knows"
            )
        return Answer(outputs[:, sample.target].astype(np.float64), outputs.argmax(1) == sample.target, notes)


@dataclass(frozen=True)
class Unchanged(_Predicted):
    """The image itself."""

    def render(self, sample: Sample) -> tuple[Uint8, None]:
        """One copy."""
        return sample.image[None], None


@dataclass(frozen=True)
class Bare(_Predicted):
    """Nothing but the fill."""

    fill: Fill

    def render(self, sample: Sample) -> tuple[Uint8, None]:
        """One copy."""
        return fill_image(sample.image, self.fill)[None], None


@dataclass(frozen=True)
class Remove(_Predicted):
    """The image without a share of its pixels.

    Attributes:
        fill: what stands in their place.
        shares: of all pixels, ascending; ⌊share · H·W⌋ are removed.
        first: the most important pixels go first, or the least important ones.
    """

    fill: Fill
    shares: tuple[float, ...]
    first: First = "most"

    def render(self, sample: Sample) -> tuple[Uint8, None]:
        """One copy per share; each continues the one before."""
        order = sample.order if self.first == "most" else sample.order[::-1]
        copies = np.empty((len(self.shares), *sample.image.shape), dtype=np.uint8)
        filled = np.ascontiguousarray(fill_image(sample.image, self.fill)).reshape(-1, 3)
        done = 0
        for index, share in enumerate(self.shares):
            copies[index] = copies[index - 1] if index else sample.image
            upto = int(np.floor(share * order.size + 1e-6))  # 0.29 · 100 is 28.999… in floating point
            copies[index].reshape(-1, 3)[order[done:upto]] = filled[order[done:upto]]
            done = upto
        return copies, None


@dataclass(frozen=True)
class Shade(_Predicted):
    """The image times its mask (or times one minus the mask), so black where nothing is kept; rounded to uint8."""

    inverse: bool = False

    def render(self, sample: Sample) -> tuple[Uint8, None]:
        """One copy.

        Raises:
            UsageError: the mask leaves [0, 1].
        """
        mask = sample.mask.astype(np.float64)
        if mask.min() < 0 or mask.max() > 1:
            raise UsageError(f"{sample.name}: to weigh pixels a mask must lie in [0, 1]")
        kept = (1 - mask if self.inverse else mask)[..., None]
        return (sample.image * kept + 0.5).astype(np.uint8)[None], None


def fill_image(image: Uint8, fill: Fill) -> Uint8:
    """The image with every pixel removed, uint8 (H, W, 3)."""
    if fill == "blur":
        return _blurred(image)
    colour = (0, 0, 0) if fill == "black" else fill
    if isinstance(colour, str) or len(colour) != 3 or not all(0 <= part <= 255 for part in colour):
        raise UsageError(f"a fill is 'black', 'blur' or three numbers of 0 … 255, not {fill!r}")
    return np.broadcast_to(np.array(colour, dtype=np.uint8), image.shape)


def _blurred(image: Uint8) -> Uint8:
    """A Gaussian blur of 5 pixels' deviation, cut off at 5, for 224 pixels (Petsiuk et al. 2018), scaled to the image.

    The published code pads with zeros after normalisation; here the border is mirrored, which adds no colour.
    """
    scale = min(image.shape[:2]) / 224
    reach = max(1, round(5 * scale))
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offsets / (5 * scale)) ** 2)
    kernel /= kernel.sum()
    smooth = image.astype(np.float64)
    for axis in (0, 1):
        padding = [(0, 0)] * 3
        padding[axis] = (reach, reach)
        padded = np.pad(smooth, padding, mode="symmetric")
        windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.size, axis=axis)
        smooth = windows @ kernel
    return (smooth + 0.5).astype(np.uint8)
