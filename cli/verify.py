"""``saccade verify``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .options import EngineOptions, any_json, bundle_argument, engine_options

__all__ = ["verify"]


@click.command()
@bundle_argument
@engine_options
@any_json
def verify(bundle: Path, engine: EngineOptions, as_json: bool) -> int:
    """Prove again that a bundle explains what the original explains; needs no PyTorch.

    Checks the files' hashes, PyTorch's own answers kept in the bundle, that two runs and any batch give the same, and
    that the mask depends on the image. Exit code 1 if a check fails.

    \b
    Example:
      saccade verify bundle
    """
    from ..accel.bundle import open_bundle
    from ..accel.engines import open_engine
    from ..accel.verify import Check, verify_engine

    opened = open_bundle(bundle)
    hashes = Check("files are unchanged", f"{len(opened.manifest.files)} hashes", "equal", True)
    running = open_engine(opened, **engine.settings(), check=False)
    checks = [hashes, *verify_engine(running)]
    passed = all(check.passed for check in checks)
    if as_json:
        click.echo(
            json.dumps({"bundle": str(bundle), "passed": passed, "checks": [vars(check) for check in checks]}, indent=2)
        )
    else:
        _print(opened.manifest.name, checks, passed)
    return 0 if passed else 1


def _print(name: str, checks: list, passed: bool) -> None:  # type: ignore[type-arg]
    from rich.console import Console
    from rich.table import Table

    table = Table(title=name, title_justify="left", box=None, pad_edge=False)
    for heading in ("check", "measured", "bar", ""):
        table.add_column(heading)
    for check in checks:
        table.add_row(
            check.name, check.measured, check.bar, "[green]pass[/green]" if check.passed else "[red]FAIL[/red]"
        )
    console = Console()
    console.print(table)
    console.print(
        "[green]The bundle is what was proven at its export.[/green]"
        if passed
        else "[red]The bundle does not pass; export it again.[/red]"
    )
