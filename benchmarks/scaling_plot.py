"""What theory says of each panel of `scaling.py`, and the picture of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from capacity import fitted
from numpy.typing import NDArray

__all__ = ["PANELS", "Panel", "draw_scaling"]

_INK, _PALE = "#22262b", "#d9dce0"
_COLOURS, _MARKERS = ("#0072b2", "#d55e00"), ("o", "s")  # Okabe and Ito's
_WIDTH = 768  # of the ViT's tokens
_PATCH = 16  # pixels a side

Numbers = NDArray[np.float64]
Point = dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """One quantity that grows.

    Attributes:
        title: what grows.
        x: label of the horizontal axis.
        y: label of the vertical one.
        theory: the law, for people.
        value: of a point, what is drawn.
        law: from a series' name, its x and its values, and x to draw at, to the law's values there.
        log: both axes are logarithmic.
    """

    title: str
    x: str
    y: str
    theory: str
    value: Callable[[Point], float]
    law: Callable[[str, Numbers, Numbers, Numbers], Numbers]
    log: bool = True

    def said(self, points: Sequence[Point]) -> str:
        """How well the points follow the law, in words."""
        worst = []
        for series in dict.fromkeys(point["series"] for point in points):
            x, y = self.numbers(points, series)
            off = y / self.law(series, x, y, x) - 1
            place = int(np.abs(off).argmax())
            most = f"{round(off[place], 2) + 0.0:+.0%}".replace("-", "−")  # no zero below zero
            worst.append(f"{series}: at most {most} from it, at {x[place]:g}")
        return "; ".join(worst)

    def numbers(self, points: Sequence[Point], series: str) -> tuple[Numbers, Numbers]:
        """X and value of a series' points."""
        own = [point for point in points if point["series"] == series]
        return np.array([point["x"] for point in own], float), np.array([self.value(point) for point in own], float)


def _scaled(shape: Callable[[str, Numbers], Numbers]) -> Callable[[str, Numbers, Numbers, Numbers], Numbers]:
    """A law but for one factor, which is the median of the points'."""

    def law(series: str, x: Numbers, y: Numbers, at: Numbers) -> Numbers:
        found: Numbers = np.median(y / shape(series, x)) * shape(series, at)
        return found

    return law


def _line(series: str, x: Numbers, y: Numbers, at: Numbers) -> Numbers:
    constant, slope, _ = fitted(x.tolist(), y.tolist())
    return constant + slope * at


def _work(series: str, side: Numbers) -> Numbers:
    """Multiplications of an image of so many pixels a side, but for a factor."""
    if not series.startswith("ViT"):
        return side**2
    tokens = (side / _PATCH) ** 2
    found: Numbers = tokens * (1 + tokens / (6 * _WIDTH))
    return found


def _forwards(point: Point) -> float:
    return float(point["forwards"])


PANELS: dict[str, Panel] = {
    "batch": Panel(
        "batch",
        "images of a call",
        "cost, forwards of one image",
        "∝ images",
        _forwards,
        _scaled(lambda series, x: x),
    ),
    "steps": Panel(
        "points of integrated gradients",
        "points S",
        "cost, forwards",
        "1 + 2 S: a forward and a backward for each, and a backward for the pixels costs what a forward costs",
        _forwards,
        lambda series, x, y, at: 1 + 2 * at,
    ),
    "resolution": Panel(
        "resolution",
        "pixels a side",
        "cost, forwards at 224 px",
        "CNN ∝ side²; ViT ∝ n (1 + n / 6d), n = (side / 16)² tokens of width d",
        _forwards,
        _scaled(_work),
    ),
    "areas": Panel(
        "masks of given areas",
        "areas A",
        "cost, forwards",
        "1 + c A: a forward, and each mask the same",
        _forwards,
        _line,
        log=False,
    ),
    "classes": Panel(
        "classes explained at once",
        "classes T",
        "cost, forwards",
        "1 + c T: a forward, and a small head for each class",
        _forwards,
        _line,
        log=False,
    ),
    "images": Panel(
        "images of a job",
        "images",
        "images a second",
        "flat, but for the start",
        lambda point: float(point["x"]) / float(point["seconds"]),
        _scaled(lambda series, x: np.ones_like(x)),
    ),
}


def draw_scaling(stored: dict[str, Any]) -> bytes:
    """All panels that were measured; points with the quartiles of their rounds, and dashed the law.

    Returns:
        A PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    figure = Figure(figsize=(11, 6.6), dpi=130, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, panel) in zip(figure.subplots(2, 3).flat, PANELS.items(), strict=True):
        axes.set_title(panel.title, color=_INK, fontsize=11, loc="left")
        axes.set_xlabel(panel.x, color=_INK, fontsize=9)
        axes.set_ylabel(panel.y, color=_INK, fontsize=9)
        axes.grid(True, color=_PALE, linewidth=0.7)
        axes.tick_params(colors=_INK, which="both", labelsize=9)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        if name not in stored:
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=_INK)
            continue
        points = stored[name]["found"]
        every: set[float] = set()
        for index, series in enumerate(dict.fromkeys(point["series"] for point in points)):
            x, y = panel.numbers(points, series)
            every |= set(x.tolist())
            at = np.geomspace(x.min(), x.max(), 60) if panel.log else np.linspace(x.min(), x.max(), 60)
            colour = _COLOURS[index % len(_COLOURS)]
            axes.plot(at, panel.law(series, x, y, at), "--", color=colour, linewidth=1.2)
            axes.plot(x, y, _MARKERS[index % len(_MARKERS)], color=colour, markersize=6, label=series)
        axes.plot([], [], "--", color=_INK, linewidth=1.2, label="theory")
        if panel.log:
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.xaxis.set_major_locator(FixedLocator(sorted(every)))
            axes.xaxis.set_minor_locator(NullLocator())
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axis.set_minor_formatter(NullFormatter())
        if name == "images":
            axes.set_yscale("linear")
        if panel.log and name != "images":
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        else:
            axes.set_ylim(0, 1.15 * max(panel.value(point) for point in points))
        place = "upper left" if panel.log and name != "images" else "lower right"
        axes.legend(frameon=False, fontsize=8, labelcolor=_INK, loc=place)
    content = BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
