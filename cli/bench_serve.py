"""``saccade bench serve``."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import BatchSizes, Count, Names, Number, any_json
from .plain import plain

if TYPE_CHECKING:
    from ..accel.traffic.load import LoadRow

__all__ = ["bench_serve"]

_SHARES = (0.25, 0.5, 0.75, 0.9, 1.1)  # of the best throughput, as rates


class Rates(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """Requests per second as ``50,100``, ``auto`` or ``none``."""

    name = "rates"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...] | None:
        """Parse a comma-separated list of positive numbers; None for ``auto``."""
        if value is None or isinstance(value, tuple):
            return value
        if value in ("auto", "none"):
            return None if value == "auto" else ()
        try:
            rates = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            rates = ()
        if not rates or not all(0 < rate < float("inf") for rate in rates):
            self.fail(f"'{value}' is not a list of rates; write for example 50,100, or auto, or none", param, ctx)
        return rates


@click.command(name="bench serve")
@click.argument("url", metavar="URL")
@click.option("--model", metavar="NAME", help="Of the server's models. [default: the only one]")
@click.option(
    "--clients",
    type=BatchSizes(),
    default="1,2,4,8,16,32",
    show_default=True,
    metavar="N,N,…",
    help="Closed loop: clients that each wait for their answer.",
)
@click.option(
    "--rates",
    type=Rates(),
    default="auto",
    show_default=True,
    metavar="R,R,…",
    help="Open loop: requests per second that arrive whoever waits; auto: up to 1.1 times the best of the closed loop.",
)
@click.option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="FILE",
    help="Send this encoded image; repeatable. [default: raw pixels, noise]",
)
@click.option("--batch-size", type=Count(1), default=1, show_default=True, metavar="N", help="Of images.")
@click.option(
    "--side",
    type=click.IntRange(1, 8192),
    default=256,
    show_default=True,
    metavar="PX",
    help="Of the noise, where the model takes images of any size.",
)
@click.option(
    "--outputs", type=Names(), default="", metavar="NAME,…", help="Outputs that are asked for. [default: all]"
)
@click.option("--seconds", type=Number(min=0.5), default=5.0, show_default=True, metavar="S", help="For each level.")
@click.option(
    "--timeout",
    type=Number(0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="S",
    help="For an answer.",
)
@click.option("--most", type=Count(1), default=256, show_default=True, metavar="N", help="Requests under way.")
@click.option("--api-key", envvar="SACCADE_API_KEY", show_envvar=True, metavar="KEY", help="Of the server.")
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), metavar="PNG", help="Draw latency over throughput."
)
@any_json
def bench_serve(
    url: str,
    model: str | None,
    clients: tuple[int, ...],
    rates: tuple[float, ...] | None,
    images: tuple[Path, ...],
    batch_size: int,
    side: int,
    outputs: tuple[str, ...],
    seconds: float,
    timeout: float,
    most: int,
    api_key: str | None,
    plot: Path | None,
    as_json: bool,
) -> int:
    """Put load on a server of models and measure latency, throughput and refusals.

    Works with every server of the Open Inference Protocol, version 2, over HTTP: saccade serve, Triton, KServe. Answers
    under load are compared, byte for byte, with those of the idle server.

    \b
    Examples:
      saccade bench serve http://localhost:8000
      saccade bench serve localhost:8000 --model cats --image cat.jpg --outputs probabilities,mask_png
      saccade bench serve localhost:8000 --clients 8 --rates 50,100,200 --plot load.png
    """
    from dataclasses import replace

    from rich.console import Console
    from rich.progress import Progress

    from ..accel.event_loop import run
    from ..accel.machine import machine
    from ..accel.traffic.load import closed_loop, expected_answers, open_loop
    from ..accel.traffic.payload import Address, payloads
    from ..errors import EngineError, OutputError, UsageError

    address = Address.parse(url, model or "", api_key)
    if model is None:
        with address.client as client:
            names = client.models()
        if len(names) != 1:
            raise UsageError(f"the server has {len(names)} models; name one with --model: {', '.join(names)}")
        address = replace(address, model=names[0])
    files = [path.read_bytes() for path in images]
    with address.client as client:
        metadata = client.metadata(address.model)
    requests = payloads(address, metadata, files=files, batch=batch_size, side=side, outputs=outputs)

    async def measure(progress: Progress) -> tuple[list[LoadRow], bool]:
        first = await expected_answers(address, requests, timeout)
        if bad := next((reply for reply in first if reply.status != 200), None):
            raise EngineError(f"the idle server does not answer: {bad.status} {bad.reason or bad.tensors.decode()}")
        again = await expected_answers(address, requests, timeout)
        expected = [reply.tensors for reply in first] if first == again else []
        rows: list[LoadRow] = []

        async def level(text: str, run: Callable[..., Awaitable[LoadRow]], **settings: Any) -> None:
            bar = progress.add_task(text, total=1.0)
            rows.append(
                await run(
                    address,
                    requests,
                    expected,
                    seconds=seconds,
                    timeout=timeout,
                    on_progress=lambda done: progress.update(bar, completed=done),
                    **settings,
                )
            )

        for count in clients:
            await level(f"{count} clients", closed_loop, clients=count)
        best = max(row.answered / row.seconds for row in rows)
        for rate in tuple(round(best * share, 1) for share in _SHARES if best) if rates is None else rates:
            await level(f"{rate:g} requests/s", open_loop, rate=rate, most=most)
        return rows, bool(expected)

    with Progress(console=Console(stderr=True), transient=True) as progress:
        rows, compared = run(measure(progress))
    if plot is not None:
        from .bench_serve_plot import draw_load

        try:
            plot.write_bytes(draw_load(rows, f"{address.model} at {address.host}:{address.port}"))
        except OSError as error:
            raise OutputError(f"cannot write '{plot}': {error.strerror or error}") from None
    if as_json:
        about = {"url": url, "model": address.model, "compared": compared, "batch": batch_size, "machine": machine()}
        click.echo(json.dumps([{**vars(row), **about} for row in rows], indent=2))
    else:
        _print(address.model, rows)
        if not compared:
            click.echo("The idle server's answers differ from time to time, so none were compared.")
        if plot is not None:
            click.echo(f"picture in {plot}")
    return 1 if any(row.failed or row.wrong for row in rows) else 0


def _print(name: str, rows: Sequence[LoadRow]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=plain(name), title_justify="left", box=None, pad_edge=False)
    table.add_column("load", no_wrap=True)
    for heading in ("images/s", "p50 ms", "p95", "p99", "answers", "503", "503 p99", "failed", "wrong"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        load = f"{row.level:.0f} clients" if row.loop == "closed" else f"{row.level:g}/s"
        table.add_row(
            load,
            f"[bold]{row.images_per_second:.1f}[/bold]",
            *("–" if value is None else f"{value:.1f}" for value in (row.p50_ms, row.p95_ms, row.p99_ms)),
            str(row.answered),
            str(row.refused) if row.refused else "–",
            "–" if row.refusal_p99_ms is None else f"{row.refusal_p99_ms:.1f}",
            f"[red]{row.failed}[/red]" if row.failed else "–",
            f"[red]{row.wrong}[/red]" if row.wrong else "–",
        )
    console = Console()
    console.print(table)
    console.print(
        "clients wait for their answers; so many requests/s arrive whoever waits, and their latency counts from when "
        "they were due; 503: refused, with its own p99 in ms",
        style="dim",
    )
    for reason, count in _reasons(rows).items():
        console.print(f"failed {count} times: {plain(reason)}", style="red", highlight=False, soft_wrap=True)
    if unsent := sum(row.unsent for row in rows):
        console.print(f"{unsent} requests were due and not sent, because --most of them were under way", style="yellow")


def _reasons(rows: Sequence[LoadRow]) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in rows:
        for reason, count in row.reasons.items():
            found[reason] = found.get(reason, 0) + count
    return found
