"""What every part of Saccade agrees on: how an image becomes a model's input, and what an explanation holds.

`methods` (PyTorch) and `accel` (no PyTorch) do not import one another; both import this, which needs numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError

__all__ = ["Explanation", "Floats", "ImageSpec", "Interpolation", "MaskQuery", "ResizeRule", "Uint8"]

Uint8 = NDArray[np.uint8]
Floats = NDArray[np.float32]
ResizeRule = Literal["squash", "crop"]
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """How an image of any size becomes a model's input: one rule for training and for serving.

    Attributes:
        size: (height, width) of the input, pixels.
        resize: ``"squash"`` takes the whole image; ``"crop"`` takes the centred box of the input's aspect ratio that
            covers the fraction `crop` of what fits.
        crop: fraction of the largest box, for ``resize="crop"``; 0.875 is 224 of 256.
        interpolation: antialiased filter of the resize.
        mean: per channel, of values in [0, 1].
        std: per channel, of values in [0, 1].
    """

    size: tuple[int, int] = (224, 224)
    resize: ResizeRule = "squash"
    crop: float = 0.875
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise UsageError(f"the input size {self.size} is not positive")
        if self.resize not in ("squash", "crop"):
            raise UsageError(f"unknown resize rule '{self.resize}'; there are: squash, crop")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise UsageError(f"unknown interpolation '{self.interpolation}'; there are: bilinear, bicubic")
        if not 0 < self.crop <= 1:
            raise UsageError(f"the crop fraction {self.crop} is not in (0, 1]")
        if min(self.std) <= 0 or not all(map(math.isfinite, (*self.mean, *self.std))):
            raise UsageError(f"mean {self.mean} and std {self.std} must be finite, and std positive")

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """The part of an image that the model sees: (left, top, right, bottom), whole pixels.

        Whole pixels, so that a graph that resizes inside can cut the same box.
        """
        if self.resize == "squash":
            return 0, 0, width, height
        scale = min(height / self.size[0], width / self.size[1]) * self.crop
        box_height = max(1, min(height, math.floor(self.size[0] * scale + 0.5)))
        box_width = max(1, min(width, math.floor(self.size[1] * scale + 0.5)))
        left, top = (width - box_width) // 2, (height - box_height) // 2
        return left, top, left + box_width, top + box_height


@dataclass(frozen=True, kw_only=True)
class MaskQuery:
    """Which masks are asked for where a bundle holds them as functions of place and area.

    Attributes:
        areas: fractions of the image, in (0, 1); empty for the bundle's own.
        size: (height, width) in which the masks are rendered; None for the model's input size.
        box: the part of the image that is rendered, (left, top, right, bottom) as fractions of it.
        parts: so many masks that have no pixel in common, each of the first area, in place of one mask per area; 0 for
            these.
    """

    areas: tuple[float, ...] = ()
    size: tuple[int, int] | None = None
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    parts: int = 0

    def __post_init__(self) -> None:
        for area in self.areas:
            if not 0 < np.float32(area) < 1:
                raise UsageError(f"the area {area} is not inside (0, 1); 0.1 keeps a tenth of the image")
        if self.parts < 0:
            raise UsageError(f"{self.parts} masks cannot be asked for; 0 is one mask per area")
        if self.areas and self.parts * self.areas[0] >= 1:
            raise UsageError(
                f"{self.parts} masks of {self.areas[0]:.0%} of the image each do not fit side by side; ask for fewer, "
                "or for smaller ones"
            )
        if self.size is not None and min(self.size) < 1:
            raise UsageError(f"the size {self.size} of the masks is not positive")
        left, top, right, bottom = self.box
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise UsageError(f"the box {self.box} is not (left, top, right, bottom) as fractions of the image")

    def places(self, default: tuple[int, int]) -> tuple[Floats, Floats]:
        """Where the pixels' centres lie, from −1 to 1 over the image: y of the rows (H,) and x of the columns (W,)."""
        height, width = self.size or default
        left, top, right, bottom = self.box

        def along(first: float, last: float, count: int) -> Floats:
            centres = first + (last - first) * (np.arange(count) + 0.5) / count
            return (2 * centres - 1).astype(np.float32)

        return along(top, bottom, height), along(left, right, width)


@dataclass(frozen=True)
class Explanation:
    """A batch of predictions and their explanations, as numpy arrays.

    Attributes:
        probabilities: float32 (N, K), softmax over the classes.
        target: int64 (N,), the class that each mask explains; (N, T) where several were asked for.
        mask: float32 (N, 1, H, W), or (N, T, H, W) for several classes or areas, in [0, 1]; 1 keeps the pixel, 0
            replaces it by the baseline.
        map: the raw attribution, where a method has one besides the mask.
        diagnostics: numbers that the method gives about itself, (N,) each, such as ``"completeness_gap"``: how far the
            quadrature of a path method is from the integral, 0 for exact.
    """

    probabilities: Floats
    target: NDArray[np.int64]
    mask: Floats
    map: Floats | None = None
    diagnostics: Mapping[str, Floats] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.target)
