"""``saccade bench``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import BatchSizes, any_json, bundle_argument, engine_options

if TYPE_CHECKING:
    from ..accel.bench import BenchRow

__all__ = ["bench"]


@click.command()
@bundle_argument
@click.option(
    "--batch-sizes", type=BatchSizes(), default="1,8", show_default=True, metavar="N,N,…", help="Images per call."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1),
    default=5.0,
    show_default=True,
    metavar="S",
    help="Timed seconds per batch size.",
)
@click.option(
    "--targets",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Classes that each image is explained for.",
)
@engine_options
@any_json
def bench(
    bundle: Path,
    batch_sizes: tuple[int, ...],
    seconds: float,
    targets: int,
    engine: str,
    providers: tuple[str, ...],
    threads: int | None,
    precision: str,
    as_json: bool,
) -> None:
    """Measure what an explanation costs: latency, images/s, memory, and the cost in forwards.

    A forward is the time of the plain classifier, cut out of the same file and run in turn with the full graph, so
    the cost means the same on every machine.

    \b
    Example:
      saccade bench bundle --batch-sizes 1,8,32
    """
    from rich.console import Console
    from rich.progress import Progress

    from ..accel.bench import bench_engine, machine
    from ..accel.engines import open_engine

    running = open_engine(bundle, engine, providers=providers or None, threads=threads, precision=precision)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bars = {batch: progress.add_task(f"batch {batch}", total=1.0) for batch in batch_sizes}
        rows = bench_engine(
            running,
            batch_sizes,
            seconds=seconds,
            targets=targets,
            on_progress=lambda batch, done: progress.update(bars[batch], completed=done),
        )
    if as_json:
        about = {
            "bundle": str(bundle),
            "engine": engine,
            "threads": threads,
            "precision": precision,
            "machine": machine(),
        }
        click.echo(json.dumps([{**vars(row), **about} for row in rows], indent=2))
    else:
        _print(running.bundle.manifest.name, rows)


def _print(name: str, rows: list[BenchRow]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=name, title_justify="left", box=None, pad_edge=False)
    for heading in ("batch", "p50 ms", "p95 ms", "images/s", "predict p50 ms", "forwards", "25–75 %", "peak MiB"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            str(row.batch),
            f"{row.p50_ms:.2f}",
            f"{row.p95_ms:.2f}",
            f"{row.images_per_second:.0f}",
            f"{row.predict_p50_ms:.2f}",
            f"[bold]{row.forwards:.3f}[/bold]",
            f"{row.forwards_low:.3f}–{row.forwards_high:.3f}",
            "?" if row.peak_mib is None else f"{row.peak_mib:.0f}",
        )
    console = Console()
    console.print(table)
    console.print(
        "forwards: time of prediction and explanation over that of the prediction alone, pair by pair, median",
        style="dim",
    )
