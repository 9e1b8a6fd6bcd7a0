"""Latency and throughput of engines as a picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from io import BytesIO

from ..accel.bench import BenchRow
from ..errors import require

__all__ = ["draw_bench"]

_COLOURS = (
    "#2a6fbb",
    "#c8452f",
    "#3a9459",
    "#8e5bb5",
    "#b58a1f",
    "#3b9aa6",
    "#d07c9f",
    "#5c6670",
    "#7a4a2b",
    "#a3b04a",
)
_TITLE = 90  # characters of a line
_INK, _PALE = "#22262b", "#d9dce0"


def draw_bench(rows: Sequence[BenchRow], title: str) -> bytes:
    """Draw images/s over the median latency of a call, a line for each engine and precision with a point for each batch
    size; thin and dashed, the prediction alone.

    Returns:
        A PNG.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    agg = require("matplotlib.backends.backend_agg", extra="train", purpose="drawing a benchmark")
    figures = require("matplotlib.figure", extra="train", purpose="drawing a benchmark")
    ticker = require("matplotlib.ticker", extra="train", purpose="drawing a benchmark")
    figure = figures.Figure(figsize=(9, 5.4), dpi=130, facecolor="white", layout="constrained")
    agg.FigureCanvasAgg(figure)
    axes = figure.subplots()
    lines = dict.fromkeys((row.engine, row.precision) for row in rows)
    for index, (engine, precision) in enumerate(lines):
        own = sorted((row for row in rows if (row.engine, row.precision) == (engine, precision)), key=lambda r: r.batch)
        colour = _COLOURS[index % len(_COLOURS)]
        axes.plot(
            [row.p50_ms for row in own],
            [row.images_per_second for row in own],
            "o-",
            color=colour,
            linewidth=1.8,
            markersize=5,
            label=f"{engine}, {precision}",
        )
        axes.plot(
            [row.predict_p50_ms for row in own],
            [row.batch / row.predict_p50_ms * 1e3 for row in own],
            ".--",
            color=colour,
            linewidth=0.9,
            markersize=4,
            alpha=0.6,
        )
        for row in own:
            axes.annotate(
                str(row.batch),
                (row.p50_ms, row.images_per_second),
                textcoords="offset points",
                xytext=(5, -11),
                fontsize=8,
                color=colour,
            )
    axes.plot([], [], ".--", color=_INK, linewidth=0.9, markersize=4, alpha=0.6, label="prediction alone")
    for scale, axis in ((axes.set_xscale, axes.xaxis), (axes.set_yscale, axes.yaxis)):
        scale("log")
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(ticker.NullFormatter())
    axes.set_xlabel("median latency of a call, ms", color=_INK)
    axes.set_ylabel("images/s", color=_INK)
    wrapped = "\n".join(textwrap.wrap(title, _TITLE))
    axes.set_title(f"{wrapped}\npoints are batch sizes", color=_INK, fontsize=11, loc="left")
    axes.grid(True, color=_PALE, linewidth=0.7)
    axes.tick_params(colors=_INK, which="both")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=9, labelcolor=_INK)
    content = BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
