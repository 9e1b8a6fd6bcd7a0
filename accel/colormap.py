"""The colour map of masks: perceptually uniform, dark to bright, computed rather than listed.

The colours lie on a curve in OKLCH (Ottosson 2020): lightness rises evenly from dark violet over red and orange to pale
yellow, and the points are spaced so that each step is the same distance in OKLab. So equal differences of the mask look
equally large, the map survives printing in grey, and its order is readable for the colour-blind.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..contracts import Floats, Uint8

__all__ = ["colour_table", "colourise"]

_LIGHTNESS = (0.22, 0.93)
_HUE_DEGREES = (285.0, 465.0)  # violet, through red (390) and orange, to yellow (105 + 360)
_CHROMA = 0.17

_TO_LMS = np.array(  # OKLab to the cube roots of cone responses
    [[1.0, 0.3963377774, 0.2158037573], [1.0, -0.1055613458, -0.0638541728], [1.0, -0.0894841775, -1.2914855480]]
)
_TO_LINEAR_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def colourise(values: Floats) -> Uint8:
    """Colours of values in [0, 1]; shape (…,) to uint8 (…, 3)."""
    index = (np.clip(np.nan_to_num(values), 0, 1) * 255 + 0.5).astype(np.intp)
    return colour_table()[index]


@lru_cache(maxsize=1)
def colour_table() -> Uint8:
    """The map as uint8 (256, 3), sRGB."""
    fine = _curve(np.linspace(0, 1, 2048))
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(fine, axis=0), axis=1))])
    even = np.interp(np.linspace(0, along[-1], 256), along, np.linspace(0, 1, 2048))
    return (_srgb(_curve(even)).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _curve(position: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (P, 3) in OKLab; the chroma is what sRGB can show there, up to the wanted one, and fades at both ends."""
    lightness = _LIGHTNESS[0] + (_LIGHTNESS[1] - _LIGHTNESS[0]) * position
    hue = np.radians(_HUE_DEGREES[0] + (_HUE_DEGREES[1] - _HUE_DEGREES[0]) * position)
    direction = np.stack([np.cos(hue), np.sin(hue)], 1)
    chroma = _CHROMA * np.sqrt(np.sin(np.pi * (0.12 + 0.8 * position)))
    low, high = np.zeros_like(chroma), chroma.copy()
    for _ in range(30):
        middle = (low + high) / 2
        rgb = _srgb(np.concatenate([lightness[:, None], middle[:, None] * direction], 1))
        inside = ((rgb >= 0) & (rgb <= 1)).all(1)
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    return np.concatenate([lightness[:, None], low[:, None] * direction], 1)


def _srgb(oklab: NDArray[np.float64]) -> NDArray[np.float64]:
    linear: NDArray[np.float64] = (oklab @ _TO_LMS.T) ** 3 @ _TO_LINEAR_RGB.T
    positive = np.maximum(linear, 0)
    encoded: NDArray[np.float64] = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * positive ** (1 / 2.4) - 0.055)
    return encoded
