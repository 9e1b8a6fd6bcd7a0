"""Latency of a server over its throughput as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

from ..accel.traffic.load import LoadRow
from ..errors import require

__all__ = ["draw_load"]

_INK, _PALE = "#22262b", "#d9dce0"
_COLOURS = {"p50_ms": "#2a6fbb", "p95_ms": "#b58a1f", "p99_ms": "#c8452f"}


def draw_load(rows: Sequence[LoadRow], title: str) -> bytes:
    """Draw p50, p95 and p99 over answered images/s: solid where requests arrive at a rate, dashed where so many clients
    wait for their answers, with the rate or the number of clients at each point.

    Returns:
        A PNG.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    agg = require("matplotlib.backends.backend_agg", extra="train", purpose="drawing a benchmark")
    figures = require("matplotlib.figure", extra="train", purpose="drawing a benchmark")
    ticker = require("matplotlib.ticker", extra="train", purpose="drawing a benchmark")
    loops = [loop for loop in ("open", "closed") if any(row.loop == loop and row.p50_ms for row in rows)]
    figure = figures.Figure(figsize=(5.2 * max(1, len(loops)), 4.6), dpi=130, facecolor="white", layout="constrained")
    agg.FigureCanvasAgg(figure)
    panels = figure.subplots(1, max(1, len(loops)), sharey=True, squeeze=False)[0]
    for axes, loop in zip(panels, loops, strict=False):
        own = sorted((row for row in rows if row.loop == loop and row.p50_ms), key=lambda row: row.level)
        for name, colour in _COLOURS.items():
            axes.plot(
                [row.images_per_second for row in own],
                [getattr(row, name) for row in own],
                "o-",
                color=colour,
                linewidth=1.8,
                markersize=4.5,
                label=name.removesuffix("_ms"),
            )
        for row in own:
            share = row.refused / (row.answered + row.refused)
            note = f"{row.level:.0f}" + (f", {share:.0%} refused" if share else "")
            axes.annotate(
                note,
                (row.images_per_second, row.p50_ms),
                textcoords="offset points",
                xytext=(-7, -3) if share else (0, -13),
                ha="right" if share else "center",
                fontsize=8,
                color=_INK,
            )
        told = "requests arrive at a rate: requests/s" if loop == "open" else "clients wait for their answers: clients"
        axes.set_title(told, color=_INK, fontsize=10, loc="left")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())
        axes.set_xlim(left=0)
        axes.set_xlabel("answered images/s", color=_INK)
        axes.grid(True, color=_PALE, linewidth=0.7)
        axes.tick_params(colors=_INK, which="both")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[0].set_ylabel("latency, ms", color=_INK)
    panels[0].legend(frameon=False, fontsize=9, labelcolor=_INK)
    figure.suptitle(title, color=_INK, fontsize=11, x=0.01, ha="left")
    content = BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
