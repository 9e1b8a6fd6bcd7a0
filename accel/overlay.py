"""Pictures of explanations, for people: evidence in colour on the image in grey, an outline, and a legend."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..contracts import Floats, Uint8
from .colormap import colour_table, colourise

__all__ = ["draw_overlay", "enlarge", "with_legend"]

_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_SMALLEST = 320  # pixels; a smaller image is enlarged so that outline and legend are readable
_LARGEST = 4096  # pixels; a thin image is not enlarged beyond this


def draw_overlay(image: Uint8, mask: Floats, *, outline: float | None = 0.5) -> Uint8:
    """Lay a mask over its image.

    Args:
        image: uint8 (H, W, 3).
        mask: float (H, W) in [0, 1]; 1 is evidence.
        outline: draw the line where the mask crosses this value; None draws none.

    Returns:
        uint8 (H, W, 3): the image in grey where the mask is 0, coloured by the mask where it is not.
    """
    opacity = (0.75 * np.clip(mask, 0, 1) ** 0.7)[..., None].astype(np.float32)
    grey = np.repeat((image @ _GREY)[..., None], 3, axis=2) * 0.85 + 12
    lit = colourise(mask) * (0.55 + 0.45 * grey / 255)  # the photograph's light and shade stay visible under the colour
    blended = (1 - opacity) * grey + opacity * lit
    if outline is not None:
        blended[_edge(mask > outline)] = 255
    return (blended.clip(0, 255) + 0.5).astype(np.uint8)


def with_legend(picture: Uint8, title: str, note: str = "") -> Uint8:
    """Add a strip below a picture: a title, a note, and the colour map with what its ends mean."""
    width = picture.shape[1]
    unit = max(12, round(width / 26))
    strip = Image.new("RGB", (width, round(unit * 4.1)), (18, 18, 22))
    draw = ImageDraw.Draw(strip)
    font, small = ImageFont.load_default(unit), ImageFont.load_default(max(10, round(unit * 0.72)))
    margin = unit // 2
    draw.text((margin, margin // 2), _fit(draw, title, font, width - 2 * margin), font=font, fill=(245, 245, 245))
    if note:
        draw.text(
            (margin, margin // 2 + round(unit * 1.3)),
            _fit(draw, note, small, width - 2 * margin),
            font=small,
            fill=(175, 175, 180),
        )
    top = round(unit * 2.75)
    left, right = "0 ignored", "evidence 1"
    label = round(max(draw.textlength(left, small), draw.textlength(right, small))) + margin
    bar_width = max(1, width - 2 * margin - 2 * label)
    bar = Image.fromarray(colour_table()[None].repeat(max(1, round(unit * 0.7)), 0)).resize(
        (bar_width, max(1, round(unit * 0.7)))
    )
    strip.paste(bar, (margin + label, top + round(unit * 0.1)))
    draw.text((margin, top), left, font=small, fill=(200, 200, 205))
    draw.text((margin + label + bar_width + margin, top), right, font=small, fill=(200, 200, 205))
    return np.concatenate([picture, np.asarray(strip)], 0)


def enlarge(image: Uint8, mask: Floats) -> tuple[Uint8, Floats]:
    """Image and mask at a size that people can look at; unchanged if large enough."""
    height, width = mask.shape
    factor = min(-(-_SMALLEST // min(height, width)), _LARGEST // max(height, width))
    if factor <= 1:
        return image, mask
    size = (width * factor, height * factor)
    larger_mask = Image.fromarray(np.ascontiguousarray(mask, dtype=np.float32)).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)), np.asarray(larger_mask)


def _edge(inside: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Pixels just inside the border of a region."""
    padded = np.pad(inside, 1, mode="edge")
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~core


def _fit(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: float) -> str:
    text = " ".join(text.splitlines())
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(text + "…", font) > width:
        text = text[:-1]
    return text + "…"
