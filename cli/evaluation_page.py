"""The report of an evaluation: one HTML file with tables, curves and examples, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import __version__
from ..accel.overlay import draw_overlay, enlarge
from ..contracts import Uint8
from ..errors import OutputError
from ..evaluate.metrics import Estimate, Metric
from .evaluation import Curve, Evaluation, decimals

__all__ = ["write_page"]

_COLOURS = ("#c2410c", "#2563eb", "#15803d", "#9333ea", "#b45309", "#0e7490", "#be185d", "#52525b")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 330, 220, 38, 34, 10
_AXES = {
    "insertion": ("share of pixels removed, least important first", "probability"),
    "deletion": ("share of pixels removed, most important first", "probability"),
    "positive": ("share of pixels removed, most important first", "accuracy"),
    "negative": ("share of pixels removed, least important first", "accuracy"),
    "sic": ("information", "probability, relative"),
    "aic": ("information", "accuracy, relative"),
}


def write_page(path: Path, result: Evaluation, about: Mapping[str, Any], class_names: Sequence[str]) -> Path:
    """Write the page.

    Args:
        path: of the HTML file.
        result: what was measured.
        about: the settings, by name.
        class_names: of the classifier.

    Raises:
        OutputError: the file cannot be written.
    """
    template = Template((Path(__file__).parent / "evaluation_page.html").read_text(encoding="utf-8"))
    accuracy = "" if result.accuracy is None else f" The classifier is right on {result.accuracy:.1%} of them."
    settings = ", ".join(f"{escape(str(key))} {escape(str(value))}" for key, value in about.items() if key != "data")
    html = template.substitute(
        data=escape(str(about["data"])),
        images=f"{result.images}",
        accuracy=accuracy,
        legend=_legend(result),
        table=_table(result),
        curves="".join(_curve_figure(metric, result) for metric in result.metrics),
        examples="".join(_example(index, result, class_names) for index in range(len(result.shown))),
        settings=settings,
        version=__version__,
    )
    try:
        path.write_text(html, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write the report '{path}': {error.strerror or error}") from None
    return path


def _legend(result: Evaluation) -> str:
    return "".join(
        f'<span class="key"><i style="background:{_COLOURS[index % len(_COLOURS)]}"></i>{escape(score.name)}</span>'
        for index, score in enumerate(result.scores)
    )


def _table(result: Evaluation) -> str:
    head = "".join(f"<th>{escape(score.name)}</th>" for score in result.scores)
    rows = []
    for metric in result.metrics:
        cells = []
        for index, score in enumerate(result.scores):
            value = score.values.get(metric.name)
            gap = score.differences.get(metric.name) if index else None
            cells.append(f"<td>{_value(value)}{_gap(metric, gap)}</td>")
        arrow = {True: "↑", False: "↓", None: ""}[metric.higher_is_better]
        rows.append(
            f'<tr><th title="{escape(metric.summary)}">{escape(metric.name)} <span class="soft">{arrow}</span></th>'
            f"{''.join(cells)}</tr>"
        )
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _value(estimate: Estimate | None) -> str:
    if estimate is None or not estimate.images:
        return "–"
    digits = decimals(estimate)
    return (
        f"<b>{estimate.value:.{digits}f}</b> "
        f'<span class="soft">{estimate.low:.{digits}f} … {estimate.high:.{digits}f}</span>'
    )


def _gap(metric: Metric, estimate: Estimate | None) -> str:
    if estimate is None or not estimate.images:
        return ""
    kind = "soft"
    if estimate.certain and metric.higher_is_better is not None:
        kind = "good" if (estimate.value > 0) == metric.higher_is_better else "bad"
    digits = decimals(estimate)
    return (
        f'<br><span class="{kind}">{estimate.value:+.{digits}f} ({estimate.low:+.{digits}f} … '
        f"{estimate.high:+.{digits}f})</span>"
    )


def _curve_figure(metric: Metric, result: Evaluation) -> str:
    curves = [score.curves.get(metric.name) for score in result.scores]
    if not any(curve is not None and np.isfinite(curve.y).all() for curve in curves):
        return ""
    x_title, y_title = _AXES[metric.name]
    width, height = _WIDTH - _LEFT - 8, _HEIGHT - _BOTTOM - _TOP
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = _LEFT + tick * width, _TOP + (1 - tick) * height
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{tick:g}</text>')
        parts.append(f'<text x="{x:.1f}" y="{_TOP + height + 14}" text-anchor="middle">{tick:g}</text>')
    for index, curve in enumerate(curves):
        if curve is not None:
            parts.append(_line(curve, _COLOURS[index % len(_COLOURS)], width, height))
    parts.append(f'<text x="{_LEFT + width / 2}" y="{_HEIGHT - 5}" text-anchor="middle">{x_title}</text>')
    return (
        f'<figure class="plot"><figcaption>{escape(metric.name)} <span class="soft">· {y_title}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(metric.name)}">{"".join(parts)}</svg>'
        f"</figure>"
    )


def _line(curve: Curve, colour: str, width: float, height: float) -> str:
    if not np.isfinite(curve.y).all():
        return ""

    def points(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
        return " ".join(
            f"{_LEFT + a * width:.1f},{_TOP + (1 - min(1.0, max(0.0, b))) * height:.1f}"
            for a, b in zip(x, y, strict=True)
        )

    band = points(
        np.concatenate([curve.x, curve.x[::-1]]),
        np.concatenate([curve.y + curve.margin, (curve.y - curve.margin)[::-1]]),
    )
    return (
        f'<polygon points="{band}" fill="{colour}" opacity=".15"/>'
        f'<polyline points="{points(curve.x, curve.y)}" fill="none" stroke="{colour}" stroke-width="1.8"/>'
    )


def _example(index: int, result: Evaluation, class_names: Sequence[str]) -> str:
    sample, masks = result.shown[index]
    name = class_names[sample.target] if sample.target < len(class_names) else str(sample.target)
    cells = [_picture(sample.image, f"{sample.name}: {name}")]
    if sample.evidence is not None:
        grey = sample.image.mean(2, keepdims=True) * 0.35
        cells.append(_picture(np.where(sample.evidence[..., None], sample.image, grey).astype(np.uint8), "truth"))
    for score, mask in zip(result.scores, masks, strict=True):
        image, larger = enlarge(sample.image, np.clip(mask, 0, 1).astype(np.float32))
        cells.append(_picture(draw_overlay(image, larger), score.name))
    return f'<div class="row">{"".join(cells)}</div>'


def _picture(picture: Uint8, caption: str) -> str:
    side = 224 / max(picture.shape[:2])
    size = (max(1, round(picture.shape[1] * side)), max(1, round(picture.shape[0] * side)))
    buffer = io.BytesIO()
    Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC).save(buffer, "WEBP", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode()
    text = escape(caption)
    return (
        f'<figure><img src="data:image/webp;base64,{data}" width="{size[0]}" height="{size[1]}" alt="{text}">'
        f"<figcaption>{text}</figcaption></figure>"
    )
