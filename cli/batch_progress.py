"""What ``saccade batch`` shows while it runs, and says at the end."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TextIO

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ..accel.batch.job import BatchJob, Summary
from .plain import plain

__all__ = ["follow", "report", "results_alone"]

_BETWEEN_LINES = 60.0  # seconds, where no bar can be drawn
_SHOWN = 20  # failures, in the end


@contextmanager
def results_alone() -> Iterator[TextIO]:
    """Stdout for the results alone: what else writes there from now on goes to stderr.

    Ray and its threads write of actors that died, at any moment up to the end of the process.
    """
    real = sys.stdout
    try:
        number, other = real.fileno(), sys.stderr.fileno()
    except (OSError, ValueError, AttributeError):  # it is no file
        yield real
        return
    real.flush()
    own = os.fdopen(os.dup(number), "w", encoding=real.encoding, errors=real.errors)
    os.dup2(other, number)
    with own, redirect_stdout(sys.stderr):
        yield own


def follow(job: BatchJob) -> float:
    """Run a job with a bar on stderr, or where that is no terminal a line a minute; the seconds that it took."""
    console = Console(stderr=True)
    began = told = time.monotonic()
    images, failed, weight = job.before.images, job.before.failed, job.weight_before
    if images:
        console.print(f"{images:,} images are done already", highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[counted]}"),
        TimeRemainingColumn(),
    )
    total = "" if job.images is None else f" of {job.images:,}"
    try:
        shown = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        with redirect_stdout(sys.stderr), shown as progress:  # what Ray says of actors that died is not a result
            bar = progress.add_task("explaining", total=job.weight, completed=weight, counted="")
            for answered in job.run():
                images += answered.images
                failed += len(answered.failures)
                weight += answered.weight
                spent = time.monotonic() - began
                rate = (images - job.before.images) / spent
                counted = f"{images:,}{total} images, {rate:.1f}/s" + (f", {failed:,} failed" if failed else "")
                progress.update(bar, completed=weight, counted=counted)
                if not console.is_terminal and time.monotonic() - told > _BETWEEN_LINES:
                    told = time.monotonic()
                    left = spent * (job.weight - weight) / max(1, weight - job.weight_before)
                    console.print(f"{counted}, {left / 60:.0f} min left", highlight=False)
    except KeyboardInterrupt:
        done = job.summary()
        console.print(
            f"{done.images:,}{total} images are finished in '{job.config.folder}'; the same command goes on from there",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
        raise
    return time.monotonic() - began


def report(job: BatchJob, seconds: float, as_json: bool, out: TextIO) -> int:
    """Say what the folder holds now; the exit code, 1 if an image could not be explained, or not all is finished."""
    found = job.summary()
    done = found.images - job.before.images
    if as_json:
        click.echo(
            json.dumps(
                {
                    "folder": str(job.config.folder),
                    "images": found.images,
                    "failed": found.failed,
                    "rows": found.rows,
                    "shards": found.shards,
                    "shards_finished": found.finished,
                    "images_before": job.before.images,
                    "seconds": round(seconds, 3),
                    "images_per_second": round(done / seconds, 2) if done else None,
                    "failures": [{"key": key, "error": reason} for key, reason in found.failures],
                }
            ),
            file=out,
        )
    else:
        _print(job, found, done, seconds, out)
    return 1 if found.failed or found.finished < found.shards else 0


def _print(job: BatchJob, found: Summary, done: int, seconds: float, out: TextIO) -> None:
    console = Console(file=out)
    for key, reason in found.failures[:_SHOWN]:
        said = reason if key in reason else f"{key}: {reason}"
        console.print(f"[red]failed[/red] {plain(said)}", highlight=False, soft_wrap=True)
    if found.failed > _SHOWN:
        console.print(f"… and {found.failed - _SHOWN:,} more: the rows with an error", style="dim")
    rate = f", {done / seconds:.1f} images/s" if done else ""
    failed = f", [red]{found.failed:,} could not be read[/red]" if found.failed else ""
    console.print(
        f"{found.images - found.failed:,} explained{failed}{rate}; {found.finished:,} Parquet "
        f"file{'s' if found.finished != 1 else ''} in [bold]{plain(job.config.folder)}[/bold]",
        highlight=False,
        soft_wrap=True,
    )
    if left := found.shards - found.finished:
        which = "1 shard is" if left == 1 else f"{left:,} shards are"
        console.print(f"{which} in the hands of other runs and not finished", highlight=False)
