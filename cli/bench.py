"""``saccade bench``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import BatchSizes, Count, Names, Number, any_json, bundle_argument, by_provider, runtime_options
from .plain import plain

if TYPE_CHECKING:
    from ..accel.bench import BenchRow

__all__ = ["bench"]


class _Bench(click.Command):
    """``bench BUNDLE``, and ``bench serve URL``."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """That of the command that is meant; a bundle called "serve" is given as ``./serve``."""
        if args[:1] == ["serve"]:
            from .bench_serve import bench_serve

            return bench_serve.make_context("bench serve", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command(cls=_Bench)
@bundle_argument
@click.option(
    "--engine",
    "engines",
    type=Names(),
    default="onnx",
    show_default=True,
    metavar="NAME,…|all",
    help="Engines to hold side by side: onnx, openvino, tensorrt.",
)
@click.option(
    "--precision",
    "precisions",
    type=Names(),
    default="fp32",
    show_default=True,
    metavar="NAME,…|all",
    help="Graphs of the bundle: fp32 and those of export --precision.",
)
@click.option(
    "--compare",
    type=Names(),
    default="",
    metavar="NAME,…",
    help="Hold the original explainer in PyTorch beside them: torch-eager, torch-compile.",
)
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), metavar="DIR", help="With --compare: of a trained explainer."
)
@click.option(
    "--weights", type=click.Path(path_type=Path), metavar="FILE", help="With --compare: the classifier's weights file."
)
@click.option(
    "--batch-sizes", type=BatchSizes(), default="1,8", show_default=True, metavar="N,N,…", help="Images per call."
)
@click.option(
    "--seconds",
    type=Number(min=0.1),
    default=5.0,
    show_default=True,
    metavar="S",
    help="Timed seconds per engine and batch size.",
)
@click.option(
    "--targets",
    type=Count(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Classes that each image is explained for.",
)
@runtime_options
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), metavar="PNG", help="Draw images/s over latency."
)
@any_json
def bench(
    bundle: Path,
    engines: tuple[str, ...],
    precisions: tuple[str, ...],
    compare: tuple[str, ...],
    checkpoint: Path | None,
    weights: Path | None,
    batch_sizes: tuple[int, ...],
    seconds: float,
    targets: int,
    providers: tuple[str, ...],
    provider_options: tuple[tuple[str, str, str], ...],
    threads: int | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Measure what an explanation costs: latency, images/s, memory, and the cost in forwards.

    A forward is the time of the plain classifier, cut out of the same file and run in turn with the full graph on the
    same engine, so the cost means the same on every machine. Engines and precisions are called in turn, in one run.

    \b
    Examples:
      saccade bench bundle --batch-sizes 1,8,32
      saccade bench bundle --engine all --precision all --plot bench.png
      saccade bench bundle --compare torch-eager,torch-compile --checkpoint runs/ltx

    A server is measured by: saccade bench serve URL (its --help says how).
    """
    from rich.console import Console
    from rich.progress import Progress

    from ..accel.bench import bench_engines
    from ..accel.bundle import open_bundle
    from ..accel.machine import machine
    from ..errors import EngineError, OutputError, SaccadeError
    from .bench_candidates import make_candidates, make_rivals

    opened = open_bundle(bundle)
    candidates = make_candidates(
        opened,
        engines,
        precisions,
        providers=providers,
        provider_options=by_provider(provider_options),
        threads=threads,
    )
    candidates += make_rivals(opened, compare, checkpoint, weights, threads)
    left_out: list[str] = []

    def leave_out(name: str, error: SaccadeError) -> None:
        if "all" not in (*engines, *precisions):
            raise error
        if (line := f"{name}: {error}") not in left_out:
            left_out.append(line)

    with Progress(console=Console(stderr=True), transient=True) as progress:
        warm = progress.add_task("opening and warming up", total=len(candidates))
        bars = {batch: progress.add_task(f"batch {batch}", total=1.0) for batch in batch_sizes}
        rows = bench_engines(
            candidates,
            batch_sizes,
            seconds=seconds,
            targets=targets,
            on_progress=lambda batch, done: progress.update(bars[batch], completed=done),
            on_open=lambda: progress.advance(warm),
            on_failure=leave_out,
        )
    if not rows:
        raise EngineError(f"nothing of what was asked for runs here: {'; '.join(left_out)}")
    if plot is not None:
        from .bench_plot import draw_bench

        try:
            plot.write_bytes(draw_bench(rows, opened.manifest.name))
        except OSError as error:
            raise OutputError(f"cannot write '{plot}': {error.strerror or error}") from None
    if as_json:
        about = {"bundle": str(bundle), "threads": threads, "machine": machine(), "left_out": left_out}
        click.echo(json.dumps([{**vars(row), **about} for row in rows], indent=2))
    else:
        _print(opened.manifest.name, rows, left_out)
        if plot is not None:
            click.echo(f"picture in {plot}")


def _print(name: str, rows: Sequence[BenchRow], left_out: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    lines = dict.fromkeys((row.engine, row.precision) for row in rows)
    alone = len(lines) == 1
    if alone:
        name = f"{name}, {' '.join(next(iter(lines)))}"
    table = Table(title=plain(name), title_justify="left", box=None, pad_edge=False)
    if not alone:
        table.add_column("engine", no_wrap=True)
        table.add_column("", no_wrap=True)
    spread = ("25–75 %",) if alone else ()
    for heading in ("batch", "p50 ms", "p95", "p99", "images/s", "forwards", *spread, "MiB"):
        table.add_column(heading, justify="right", no_wrap=True)
    gpu = any(row.gpu_mib is not None for row in rows)
    if gpu:
        table.add_column("GPU MiB", justify="right", no_wrap=True)
    table.add_column("cosine", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            *(() if alone else (row.engine, row.precision)),
            str(row.batch),
            f"{row.p50_ms:.2f}",
            f"{row.p95_ms:.2f}",
            f"{row.p99_ms:.2f}",
            f"{row.images_per_second:.0f}",
            f"[bold]{row.forwards:.3f}[/bold]",
            *((f"{row.forwards_low:.2f}–{row.forwards_high:.2f}",) if alone else ()),
            "?" if row.memory_mib is None else f"{row.memory_mib:.0f}",
            *(("?" if row.gpu_mib is None else f"{row.gpu_mib:.0f}",) if gpu else ()),
            f"{row.mask_cosine:.5f}",
        )
    console = Console()
    console.print(table)
    console.print(
        "forwards: time of prediction and explanation over that of the prediction alone on the same engine, pair by "
        "pair, median; cosine: of the worst golden sample's mask with PyTorch's",
        style="dim",
    )
    for line in left_out:
        console.print(f"left out: {plain(line)}", style="yellow", highlight=False, soft_wrap=True)
