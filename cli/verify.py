"""``saccade verify``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from .options import EngineOptions, Headers, any_json, bundle_argument, engine_options
from .plain import plain

if TYPE_CHECKING:
    from ..accel.bundle import Bundle
    from ..accel.engine import Engine
    from ..accel.remote_engine import RemoteEngine

__all__ = ["verify"]

_OF_ENGINES = ("engine", "providers", "provider_options", "threads")


@click.command()
@bundle_argument
@click.option(
    "--server",
    metavar="URL",
    help="Ask this server in place of an engine here: Triton, or any that speaks the Open Inference Protocol v2 over "
    "HTTP.",
)
@click.option("--model", metavar="NAME", help="With --server: the model there. [default: the bundle folder's name]")
@click.option(
    "--header",
    "headers",
    multiple=True,
    type=Headers(),
    metavar="NAME:VALUE",
    help="With --server: sent with every request, such as 'Authorization: Bearer …'; repeatable.",
)
@engine_options
@any_json
@click.pass_context
def verify(
    context: click.Context,
    /,
    bundle: Path,
    server: str | None,
    model: str | None,
    headers: tuple[tuple[str, str], ...],
    engine: EngineOptions,
    as_json: bool,
) -> int:
    """Prove again that a bundle explains what the original explains; needs no PyTorch.

    Checks the files' hashes, PyTorch's own answers kept in the bundle, that two runs and any batch give the same, and
    that the mask depends on the image. With --server, all of it over the network. Exit code 1 if a check fails.

    \b
    Examples:
      saccade verify bundle
      saccade verify bundle --server http://localhost:8000
    """
    from ..accel.bundle import open_bundle
    from ..accel.verify import Check, verify_engine

    _refuse_the_others(context, _OF_ENGINES if server is not None else ("model", "headers"), server)
    opened = open_bundle(bundle)
    hashes = Check("files are unchanged", f"{len(opened.manifest.files)} hashes", "equal", True)
    where: dict[str, str | list[str]] = {}
    with _asked(opened, server, model, headers, engine) as running:
        checks = [hashes, *verify_engine(running)]
        if server is not None:
            remote = cast("RemoteEngine", running)
            where = {"server": server, "asked": remote.asked, "not_asked": remote.not_asked()}
    passed = all(check.passed for check in checks)
    if as_json:
        found = {"bundle": str(bundle), **where, "passed": passed, "checks": [vars(check) for check in checks]}
        click.echo(json.dumps(found, indent=2))
    else:
        _print(opened.manifest.name, checks, passed, server)
        if where:
            _print_models(*where["asked"], others=where["not_asked"])
    return 0 if passed else 1


@contextlib.contextmanager
def _asked(
    bundle: Bundle, server: str | None, model: str | None, headers: tuple[tuple[str, str], ...], engine: EngineOptions
) -> Iterator[Engine]:
    """What is verified: an engine here, or a server's."""
    from ..accel.engines import open_engine
    from ..accel.oip_client import OipClient
    from ..accel.remote_engine import RemoteEngine

    if server is None:
        yield open_engine(bundle, **engine.settings(), check=False)
        return
    with contextlib.closing(OipClient(server, headers=dict(headers))) as client:
        yield RemoteEngine(bundle, client, model=model, precision=engine.precision)


def _refuse_the_others(context: click.Context, names: tuple[str, ...], server: str | None) -> None:
    for parameter in context.command.params:
        given = (
            parameter.name and context.get_parameter_source(parameter.name) is not click.core.ParameterSource.DEFAULT
        )
        if given and parameter.name in names:
            why = "goes with --server" if server is None else "is an engine's of this machine, not --server's"
            raise click.UsageError(f"{parameter.opts[0]} {why}")


def _print(name: str, checks: list, passed: bool, server: str | None) -> None:  # type: ignore[type-arg]
    from rich.console import Console
    from rich.table import Table

    table = Table(title=plain(name), title_justify="left", box=None, pad_edge=False)
    for heading in ("check", "measured", "bar", ""):
        table.add_column(heading)
    for check in checks:
        table.add_row(
            check.name, check.measured, check.bar, "[green]pass[/green]" if check.passed else "[red]FAIL[/red]"
        )
    console = Console()
    console.print(table)
    good, bad = ("The bundle is what was proven at its export.", "The bundle does not pass; export it again.")
    if server is not None:
        good = "The server answers what was proven at the bundle's export."
        bad = "The server does not answer what the bundle does; deploy the bundle again, or name another --model."
    console.print(f"[green]{good}[/green]" if passed else f"[red]{bad}[/red]")


def _print_models(explainer: str, *more: str, others: Sequence[str]) -> None:
    """Which of the server's models it was that answered."""
    if f"{explainer}_classifier" not in more:
        click.echo(
            f"No model '{explainer}_classifier' is ready there: the prediction alone was asked of '{explainer}' itself."
        )
    click.echo(f"Asked: {', '.join([explainer, *more])}.")
    if others:
        click.echo(f"Ready too, and not asked: {', '.join(others)}.")
