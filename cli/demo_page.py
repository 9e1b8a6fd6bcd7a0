"""The demo's page: one HTML file, pictures inside, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from ..accel.bench import BenchRow
from ..accel.colormap import colour_table
from ..accel.manifest import Manifest
from ..accel.results import ImageExplanation
from ..contracts import Uint8

__all__ = ["Method", "Model", "write_page"]

_SIDE = 288  # pixels of a picture on the page


@dataclass(frozen=True)
class Method:
    """One explainer's part of the demo; results are those of the scenes, then those of the photographs."""

    title: str
    bundle: Path
    manifest: Manifest
    results: Sequence[ImageExplanation]
    cost: Sequence[BenchRow]


@dataclass(frozen=True)
class Model:
    """One classifier's part of the demo."""

    title: str
    about: str
    methods: Sequence[Method]


def write_page(
    path: Path, models: Sequence[Model], scenes: Sequence[Any], photographs: Sequence[str], *, seconds: float
) -> Path:
    """Write the page.

    Args:
        path: of the HTML file.
        models: the classifiers with their explainers, in the order of the columns.
        scenes: the planted scenes with their evidence.
        photographs: names of the photographs, whose results follow those of the scenes.
        seconds: what export, verification and explanation took.
    """
    template = Template((Path(__file__).parent / "demo_page.html").read_text(encoding="utf-8"))
    html = template.substitute(
        legend=_legend(),
        models="".join(_model(model, scenes, photographs) for model in models),
        seconds=f"{seconds:.0f}",
    )
    path.write_text(html, encoding="utf-8")
    return path


def _model(model: Model, scenes: Sequence[Any], photographs: Sequence[str]) -> str:
    names = model.methods[0].results[0].class_names
    rows = [
        _row(
            [
                _figure(_scaled(scene.image), f"scene {index}", _answer(model, index)),
                _figure(_evidence(scene), "evidence", f"truth: {names[scene.label]}"),
            ],
            model.methods,
            index,
        )
        for index, scene in enumerate(scenes)
    ]
    plain = [
        _row(
            [_figure(_scaled(model.methods[0].results[index].image), name, _answer(model, index))], model.methods, index
        )
        for index, name in enumerate(photographs, len(scenes))
    ]
    return (
        f"<h2>{escape(model.title)}</h2><p>{escape(model.about)}</p>"
        f'<div class="cards">{"".join(map(_summary, model.methods))}</div>'
        "<h3>Held-out scenes</h3><p>Digits and photographs that neither the classifier nor an explainer has seen. The "
        f"evidence is known: the digit's own pixels.</p>{''.join(rows)}"
        "<h3>Plain photographs</h3><p>There is no digit here. The classifier must name one all the same, and the mask "
        f"says what it took for it.</p>{''.join(plain)}"
    )


def _answer(model: Model, index: int) -> str:
    result = model.methods[0].results[index]
    return f"<b>{escape(result.class_name)}</b> {result.probability:.1%}"


def _row(first: list[str], methods: Sequence[Method], index: int) -> str:
    cells = list(first)
    for method in methods:
        result = method.results[index]
        caption = f"area {result.mask.mean():.1%} · {result.milliseconds:.1f} ms"
        cells.append(_figure(_scaled(np.asarray(result.overlay(legend=False))), escape(method.title), caption))
    return f'<div class="row">{"".join(cells)}</div>\n'


def _figure(picture: Uint8, alt: str, caption: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=88, method=4)
    data = base64.b64encode(buffer.getvalue()).decode()
    height, width = picture.shape[:2]
    return (
        f'<figure><img src="data:image/webp;base64,{data}" width="{width}" height="{height}" alt="{alt}">'
        f"<figcaption><span>{alt}</span>{caption}</figcaption></figure>"
    )


def _evidence(scene: Any) -> Uint8:
    grey = scene.image.mean(2, keepdims=True) * 0.35
    return _scaled(np.where(scene.evidence[..., None], scene.image, grey).astype(np.uint8))


def _scaled(picture: Uint8) -> Uint8:
    height, width = picture.shape[:2]
    factor = _SIDE / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def _summary(method: Method) -> str:
    parity = method.manifest.parity
    cost = "".join(
        f"<tr><td>batch {row.batch}</td><td>{row.p50_ms:.1f} ms</td><td><b>{row.forwards:.2f}</b> forwards</td></tr>"
        for row in method.cost
    )
    name = "completeness_gap"
    gaps = [result.diagnostics[name] for result in method.results if name in result.diagnostics]
    gap = f" Completeness gap: {np.median(gaps):.1%}." if gaps else ""
    return (
        f"<section class=card><h4>{escape(method.title)}</h4><table>{cost}</table>"
        f"<p>Masks within {parity.mask_max_abs:.0e} of PyTorch's on {parity.images} images.{gap}</p>"
        f"<p><code>{escape(str(method.bundle))}</code></p></section>"
    )


def _legend() -> str:
    stops = ", ".join(f"rgb({r},{g},{b})" for r, g, b in colour_table()[::15])
    return f'<span class=bar style="background:linear-gradient(90deg,{stops})"></span>'
