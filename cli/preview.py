"""What a training shows while it runs: a progress bar with the losses, masks in the terminal, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..accel.colormap import colourise
from ..accel.overlay import draw_overlay, with_legend
from ..contracts import Floats, Uint8
from ..errors import OutputError
from .curve import draw_curve

if TYPE_CHECKING:
    from ..methods.train import StepReport

__all__ = ["CURVE_FILE", "MASKS_FOLDER", "PREVIEW_FILE", "TrainingDisplay", "half_blocks"]

CURVE_FILE, PREVIEW_FILE, MASKS_FOLDER = "curve.png", "preview.png", "masks"

_THUMBNAIL = 16  # columns of one image in the terminal
_LOG_EVERY = 50  # steps, where there is no terminal to draw on
_TILE = 224  # pixels, height of one image in preview.png
_GAP = 8
_BACKGROUND = (18, 18, 22)


class TrainingDisplay:
    """A live display on a terminal; lines of text every 50 steps elsewhere.

    Args:
        steps: of the whole training.
        out: folder for the pictures.
        history: rows of the steps that a resumed training has behind it.
    """

    def __init__(self, steps: int, out: Path, history: Sequence[Mapping[str, float]] = ()) -> None:
        self.out = out
        self.console = Console(stderr=True)
        self._history = list(history)
        self._progress = Progress(
            TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=self.console
        )
        self._task = self._progress.add_task("training", total=steps, completed=len(self._history))
        self._losses = Text()
        self._validation = ""
        self._preview = Text()
        self._live = Live(self._rendered(), console=self.console, refresh_per_second=4, transient=False)

    def __enter__(self) -> TrainingDisplay:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._live.update(self._rendered())
            self._live.stop()

    def step(self, report: StepReport) -> None:
        """Show a step's losses, and the newest validation."""
        self._history.append(report.row())
        if report.validation is not None:
            self._validation = f"  validation {report.validation:.4f}"
        losses = "  ".join(f"{name} {value:.3f}" for name, value in report.terms.items())
        self._losses = Text(f"{losses}  total {report.total:.3f}{self._validation}", style="dim")
        self._progress.update(self._task, completed=report.step)
        if self.console.is_terminal:
            self._live.update(self._rendered())
        elif report.step % _LOG_EVERY == 0 or report.step == 1 or report.validation is not None:
            self.console.print(f"step {report.step}: {self._losses}", highlight=False, soft_wrap=True)

    def pictures(self, images: Uint8, titles: Sequence[str], masks: Floats, *, keep: bool) -> None:
        """Show masks of held-out images, and write preview.png and curve.png.

        Args:
            images: uint8 (N, H, W, 3).
            titles: what the classifier says, one per image.
            masks: (N, H, W).
            keep: write the masks also as masks/step-000100.png, where the next ones do not replace them.

        Raises:
            OutputError: the folder cannot be written.
        """
        if self.console.is_terminal:
            pairs = [_thumbnail(image, mask) for image, mask in zip(images[:4], masks[:4], strict=True)]
            self._preview = half_blocks(np.concatenate(pairs, axis=1))
            self._live.update(self._rendered())
        last = self._history[-1]
        score = f"; validation {last['validation']:.4f}" if "validation" in last else ""
        grid = with_legend(
            mask_grid(images, titles, masks),
            f"step {last['step']:.0f}",
            f"held-out images and what the mask keeps; total loss {last['total']:.3f}{score}",
        )
        png = BytesIO()
        Image.fromarray(grid).save(png, "PNG", compress_level=4)
        if keep:
            _write(self.out / MASKS_FOLDER / f"step-{last['step']:06.0f}.png", png.getvalue())
        _write(self.out / PREVIEW_FILE, png.getvalue())
        _write(self.out / CURVE_FILE, draw_curve(self._history))

    def _rendered(self) -> Group:
        return Group(self._preview, self._progress, self._losses)


def half_blocks(picture: Uint8) -> Text:
    """A picture as text: two pixels per character, upper and lower half."""
    text = Text()
    for top, bottom in zip(picture[0::2], picture[1::2], strict=False):
        for upper, lower in zip(top, bottom, strict=True):
            text.append("▀", style=f"rgb({upper[0]},{upper[1]},{upper[2]}) on rgb({lower[0]},{lower[1]},{lower[2]})")
        text.append("\n")
    return text


def mask_grid(images: Uint8, titles: Sequence[str], masks: Floats) -> Uint8:
    """Each image beside its overlay, a title below, two such pairs in a row; uint8 (h, w, 3)."""
    width = round(_TILE * images.shape[2] / images.shape[1])
    caption = 24
    cell = (2 * width + 3 * _GAP, _TILE + caption + _GAP)
    rows = -(-len(images) // 2)
    grid = Image.new("RGB", (cell[0] * min(2, len(images)), cell[1] * rows + _GAP), _BACKGROUND)
    draw = ImageDraw.Draw(grid)
    for place, (image, title, mask) in enumerate(zip(images, titles, masks, strict=True)):
        left, top = (place % 2) * cell[0] + _GAP, (place // 2) * cell[1] + _GAP
        large = Image.fromarray(image).resize((width, _TILE), Image.Resampling.BICUBIC)
        values = Image.fromarray(np.ascontiguousarray(mask, np.float32)).resize(large.size, Image.Resampling.BILINEAR)
        overlay = Image.fromarray(draw_overlay(np.asarray(large), np.asarray(values)))
        grid.paste(large, (left, top))
        grid.paste(overlay, (left + width + _GAP, top))
        draw.text((left, top + _TILE + 4), title, font=ImageFont.load_default(15), fill=(225, 225, 230))
    return np.asarray(grid)


def _thumbnail(image: Uint8, mask: np.ndarray[Any, Any]) -> Uint8:
    """Image and mask side by side, small."""
    size = (_THUMBNAIL, _THUMBNAIL)
    pair = [np.asarray(Image.fromarray(part).resize(size, Image.Resampling.BOX)) for part in (image, colourise(mask))]
    return np.concatenate([*pair, np.zeros((_THUMBNAIL, 1, 3), np.uint8)], axis=1)


def _write(file: Path, content: bytes) -> None:
    """Replace a file at once, so that a viewer never finds half a picture."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(f"cannot write the picture '{file}': {error.strerror or error}") from None
