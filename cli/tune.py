"""``saccade tune``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import Count, Number, any_json, bundle_argument
from .plain import plain

if TYPE_CHECKING:
    from ..accel.manifest import Tuning
    from ..accel.tune import Trial

__all__ = ["tune"]


@click.command()
@bundle_argument
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8"]),
    default="fp32",
    show_default=True,
    help="Which graph of the bundle.",
)
@click.option(
    "--batch-size",
    "batch",
    type=Count(1),
    metavar="N",
    help="Images per call. [default: the bundle's own]",
)
@click.option(
    "--seconds",
    type=Number(min=0.1),
    default=3.0,
    show_default=True,
    metavar="S",
    help="Timed seconds of one trial.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be written into the bundle.")
@any_json
def tune(bundle: Path, precision: str, batch: int | None, seconds: float, dry_run: bool, as_json: bool) -> None:
    """Find ONNX Runtime's fastest settings on this machine's processor, and keep them in the bundle.

    Threads, memory and graph optimisation are tried one after the other, each in turn with the best so far. The bundle
    keeps the settings for machines with this processor and as many cores, and takes them there from now on.

    \b
    Example:
      saccade tune bundle --batch-size 8
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    from ..accel.bundle import open_bundle
    from ..accel.machine import machine_class
    from ..accel.tune import store_tuning
    from ..accel.tune import tune as search

    opened = open_bundle(bundle)
    columns = (TextColumn("{task.description}"), BarColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=1.0)
        found, trials = search(
            opened,
            precision=precision,
            batch=batch,
            seconds=seconds,
            on_trial=lambda name, done: progress.update(bar, completed=done, description=name),
        )
    if not dry_run:
        store_tuning(opened, precision, found)
    if as_json:
        report = {
            "machine": machine_class(),
            "precision": precision,
            "batch": batch or opened.manifest.batch,
            "tuning": found.model_dump(),
            "trials": [vars(trial) for trial in trials],
            "written": not dry_run,
        }
        click.echo(json.dumps(report, indent=2))
    else:
        _print(found, trials, machine_class(), None if dry_run else bundle)


def _print(found: Tuning, trials: Sequence[Trial], where: str, bundle: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=where, title_justify="left", box=None, pad_edge=False)
    for heading in ("tried", "images/s", "taken"):
        table.add_column(heading)
    for trial in trials:
        said = "yes" if trial.taken else "no: another explanation" if trial.refused else "no"
        table.add_row(trial.name, "" if trial.refused else f"{trial.gain:.3f}×", said)
    console = Console()
    console.print(table)
    changed = {name: value for name, value in found.model_dump(exclude_defaults=True).items() if name != "gain"}
    if changed:
        settings = ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in changed.items())
        console.print(f"[bold]{found.gain:.2f}[/bold] times the default's images/s with {settings}", highlight=False)
    else:
        console.print("The default settings are the fastest here.")
    if bundle is not None:
        console.print(f"Written into {plain(bundle)} for this class of machines.", highlight=False, soft_wrap=True)
