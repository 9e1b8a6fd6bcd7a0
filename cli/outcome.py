"""Where the results of ``saccade explain`` go: files, records on standard output, and what a table shows at the end."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType

import click
from rich.console import Console

from ..accel.results import Failure, ImageExplanation, ResultWriter
from .plain import plain

__all__ = ["Outcome"]

_SHOWN = 20  # rows of a table


class Outcome:
    """Takes results as they come; a context in which an error leaves no ``results.jsonl``.

    Args:
        out: folder of the results; None for the default one, or none with JSON.
        formats: see `ResultWriter`.
        as_json: print records.

    Attributes:
        folder: of the results, or None.
        done: explanations.
        failed: images that could not be explained.
        shown: the first explanations, for a table.
    """

    def __init__(self, out: Path | None, formats: tuple[str, ...], as_json: bool) -> None:
        self.folder = out or (None if as_json else Path("explanations"))
        self.done = self.failed = 0
        self.shown: list[ImageExplanation] = []
        self._writer = ResultWriter(self.folder, formats) if self.folder else None
        self._as_json = as_json

    def __enter__(self) -> Outcome:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer:
            if kind is None:
                self._writer.close()
            else:
                self._writer.discard()

    def take(self, result: ImageExplanation | Failure, console: Console) -> None:
        """Write a result, and say on the console what was skipped."""
        record = self._writer.write(result) if self._writer else result.record()
        if self._as_json:
            click.echo(json.dumps(record, ensure_ascii=False))
        if isinstance(result, Failure):
            self.failed += 1
            console.print(f"[red]skipped[/red] {plain(result.reason)}", highlight=False, soft_wrap=True)
            return
        self.done += 1
        if len(self.shown) < _SHOWN:
            self.shown.append(result)

    @property
    def more(self) -> int:
        """Explanations that the table does not show."""
        return self.done - len(self.shown)

    @property
    def exit_code(self) -> int:
        """1 if an image could not be explained."""
        return 1 if self.failed else 0
