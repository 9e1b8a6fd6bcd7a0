"""Pictures of explanations, for people: evidence in colour on the image in grey, an outline, and a legend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..contracts import Floats, Uint8
from .colormap import colour_table, colourise

__all__ = ["draw_overlay", "draw_parts", "enlarge", "with_legend", "with_names"]

_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_SMALLEST = 320  # pixels; a smaller image is enlarged so that outline and legend are readable
_LARGEST = 4096  # pixels; a thin image is not enlarged beyond this
_DISTINCT = np.array(  # told apart by most people who see colours differently (Okabe & Ito 2008)
    [[230, 159, 0], [86, 180, 233], [0, 158, 115], [204, 121, 167], [240, 228, 66], [213, 94, 0], [0, 114, 178]],
    dtype=np.float32,
)


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


def draw_parts(image: Uint8, masks: Sequence[Floats]) -> Uint8:
    """Lay several masks over their image, one colour each.

    Args:
        image: uint8 (H, W, 3).
        masks: float (H, W) in [0, 1], without a pixel above one half in common; after seven the colours repeat.

    Returns:
        uint8 (H, W, 3): the image in grey where all masks are 0.
    """
    grey = np.repeat((image @ _GREY)[..., None], 3, axis=2) * 0.85 + 12
    picture = grey.copy()
    for mask, colour in zip(masks, _colours(len(masks)), strict=True):
        opacity = (0.6 * np.clip(mask, 0, 1))[..., None]
        picture = (1 - opacity) * picture + opacity * colour * (0.55 + 0.45 * grey / 255)
    for mask, colour in zip(masks, _colours(len(masks)), strict=True):
        picture[_edge(mask > 0.5)] = colour
    return (picture.clip(0, 255) + 0.5).astype(np.uint8)


def with_legend(picture: Uint8, title: str, note: str = "") -> Uint8:
    """Add a strip below a picture: a title, a note, and the colour map with what its ends mean."""
    strip, unit = _strip(picture.shape[1], title, note)
    draw, small = ImageDraw.Draw(strip), ImageFont.load_default(max(10, round(unit * 0.72)))
    width, margin, top = picture.shape[1], unit // 2, round(unit * 2.75)
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


def with_names(picture: Uint8, title: str, note: str, names: Sequence[str]) -> Uint8:
    """Add a strip below a picture of `draw_parts`: a title, a note, and the masks' names in their colours."""
    strip, unit = _strip(picture.shape[1], title, note)
    draw, small = ImageDraw.Draw(strip), ImageFont.load_default(max(10, round(unit * 0.72)))
    left, top = unit // 2, round(unit * 2.75)
    for name, colour in zip(names, _colours(len(names)), strict=True):
        fill = tuple(round(float(value)) for value in colour)
        draw.rectangle((left, top + unit // 6, left + unit // 2, top + unit // 6 + unit // 2), fill=fill)
        draw.text((left + round(unit * 0.75), top), name, font=small, fill=(200, 200, 205))
        left += round(unit * 1.5 + draw.textlength(name, small))
    return np.concatenate([picture, np.asarray(strip)], 0)


def _strip(width: int, title: str, note: str) -> tuple[Image.Image, int]:
    """A dark strip with a title and a note, and the height of its text."""
    unit = max(12, round(width / 26))
    strip = Image.new("RGB", (width, round(unit * 4.1)), (18, 18, 22))
    draw = ImageDraw.Draw(strip)
    font, small = ImageFont.load_default(unit), ImageFont.load_default(max(10, round(unit * 0.72)))
    margin = unit // 2
    draw.text((margin, margin // 2), _fit(draw, title, font, width - 2 * margin), font=font, fill=(245, 245, 245))
    if note:
        at = (margin, margin // 2 + round(unit * 1.3))
        draw.text(at, _fit(draw, note, small, width - 2 * margin), font=small, fill=(175, 175, 180))
    return strip, unit


def _colours(count: int) -> Floats:
    return _DISTINCT[np.arange(count) % len(_DISTINCT)]


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
