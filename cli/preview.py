"""What a training shows while it runs: a progress bar with the losses, masks in the terminal, and preview.png."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..accel.colormap import colourise
from ..accel.overlay import draw_overlay, enlarge, with_legend
from ..contracts import Uint8

__all__ = ["TrainingDisplay", "half_blocks"]

_THUMBNAIL = 16  # columns of one image in the terminal
_LOG_EVERY = 50  # steps, where there is no terminal to draw on


class TrainingDisplay:
    """A live display on a terminal; lines of text every 50 steps elsewhere."""

    def __init__(self, steps: int, out: Path) -> None:
        self.out = out
        self.console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            console=self.console,
        )
        self._task = self._progress.add_task("training", total=steps, losses="")
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

    def step(self, report: Any) -> None:
        """Show a step's losses and area."""
        losses = f"keep {report.preserve:.3f}  remove {report.complement:.3f}  area {report.area:.3f}"
        self._progress.update(self._task, completed=report.step, losses=losses)
        if not self.console.is_terminal and (report.step % _LOG_EVERY == 0 or report.step == 1):
            self.console.print(f"step {report.step}: {losses}", highlight=False)

    def masks(self, images: Uint8, answer: tuple[Sequence[str], Any]) -> None:
        """Show masks of held-out images, and write them to preview.png."""
        titles, masks = answer
        shown = images[: len(masks)]
        if self.console.is_terminal:
            strip = np.concatenate(
                [_thumbnail(image, mask) for image, mask in zip(shown[:4], masks[:4], strict=True)], axis=1
            )
            self._preview = half_blocks(strip)
            self._live.update(self._rendered())
        tiles = []
        for title, image, mask in zip(titles, shown, masks, strict=True):
            large, large_mask = enlarge(image, mask)
            tiles.append(with_legend(draw_overlay(large, large_mask), title))
        rows = [
            np.concatenate(tiles[start : start + 4], axis=1)
            for start in range(0, len(tiles) - len(tiles) % 4 or len(tiles), 4)
        ]
        rows = [row for row in rows if row.shape == rows[0].shape]
        self.out.mkdir(parents=True, exist_ok=True)
        partial = self.out / ".preview.png.partial"
        Image.fromarray(np.concatenate(rows, axis=0)).save(partial, "PNG", compress_level=1)
        partial.replace(self.out / "preview.png")

    def _rendered(self) -> Group:
        return Group(self._preview, self._progress)


def half_blocks(picture: Uint8) -> Text:
    """A picture as text: two pixels per character, upper and lower half."""
    text = Text()
    for top, bottom in zip(picture[0::2], picture[1::2], strict=False):
        for upper, lower in zip(top, bottom, strict=True):
            text.append("▀", style=f"rgb({upper[0]},{upper[1]},{upper[2]}) on rgb({lower[0]},{lower[1]},{lower[2]})")
        text.append("\n")
    return text


def _thumbnail(image: Uint8, mask: np.ndarray[Any, Any]) -> Uint8:
    """Image and mask side by side, small."""
    size = (_THUMBNAIL, _THUMBNAIL)
    pair = [np.asarray(Image.fromarray(part).resize(size, Image.Resampling.BOX)) for part in (image, colourise(mask))]
    return np.concatenate([*pair, np.zeros((_THUMBNAIL, 1, 3), np.uint8)], axis=1)
