"""The course of a training as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np

from ..errors import require

__all__ = ["draw_curve"]

_COLOURS = {
    "preserve": "#2a6fbb",
    "complement": "#c8452f",
    "area": "#3a9459",
    "entropy": "#8e5bb5",
    "elsewhere": "#b58a1f",
    "binary": "#3a9459",
    "smooth": "#d07c9f",
    "nested": "#8e5bb5",
}
_INK, _PALE = "#22262b", "#d9dce0"
_WINDOW = 25  # steps of the running mean, at most


def draw_curve(rows: Sequence[Mapping[str, float]]) -> bytes:
    """Draw a training's history: the terms, their weighted sum, the validation, the learning rate; over the steps.

    Args:
        rows: one per step, as in `history.jsonl`.

    Returns:
        A PNG.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    agg = require("matplotlib.backends.backend_agg", extra="train", purpose="drawing the curve of a training")
    figures = require("matplotlib.figure", extra="train", purpose="drawing the curve of a training")
    steps = np.array([row["step"] for row in rows])
    figure = figures.Figure(figsize=(10, 6.2), dpi=110, facecolor="white", layout="constrained")
    agg.FigureCanvasAgg(figure)
    terms, validation, total, rate = figure.subplots(2, 2, sharex=True).ravel()

    _finish(terms, "losses, before weighting")
    for name, colour in _COLOURS.items():
        if name in rows[0]:
            _line(terms, steps, _column(rows, name), colour, name)
    terms.legend(frameon=False, fontsize=9, ncols=2, labelcolor=_INK)

    _finish(total, "weighted total")
    _line(total, steps, _column(rows, "total"), _INK, "total")
    total.set_xlabel("step", color=_INK, fontsize=9)

    _finish(validation, "validation: insertion − deletion, higher is better")
    measured = [(row["step"], row["validation"]) for row in rows if "validation" in row]
    if measured:
        at, score = np.array(measured).T
        validation.plot(at, score, "o-", color=_INK, markersize=4, linewidth=1.3)
        best = int(score.argmax())
        validation.plot(at[best], score[best], "o", color=_COLOURS["preserve"], markersize=9)
        side = "right" if at[best] > steps.mean() else "left"
        label = f"best {score[best]:.4f} at step {at[best]:.0f}"
        validation.annotate(
            label, (at[best], score[best]), (0, 9), textcoords="offset points", ha=side, fontsize=9, color=_INK
        )
        validation.margins(y=0.2)
    else:
        validation.text(0.5, 0.5, "not validated", transform=validation.transAxes, ha="center", color="#8a9099")

    _finish(rate, "learning rate")
    rate.plot(steps, _column(rows, "learning_rate"), color=_INK, linewidth=1.3)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    rate.set_xlabel("step", color=_INK, fontsize=9)
    png = BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _line(axes: Any, steps: Any, values: Any, colour: str, name: str) -> None:
    """The values, pale, and their running mean, which is what the eye should follow."""
    window = min(_WINDOW, max(1, len(values) // 4))
    padded = np.pad(values, (window // 2, window - 1 - window // 2), mode="edge")
    smooth = np.convolve(padded, np.full(window, 1 / window), mode="valid")
    if window > 1:
        axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.25)
    axes.plot(steps, smooth, color=colour, linewidth=1.7, label=name)


def _finish(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=_INK)
    axes.grid(axis="y", color=_PALE, linewidth=0.7)
    axes.tick_params(colors=_INK, labelsize=8.5, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_PALE)


def _column(rows: Sequence[Mapping[str, float]], name: str) -> Any:
    return np.array([row[name] for row in rows])
