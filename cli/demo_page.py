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
from ..accel.colormap import colour_table, colourise
from ..accel.manifest import Manifest
from ..accel.overlay import draw_overlay, enlarge
from ..accel.results import ImageExplanation
from ..contracts import Uint8

__all__ = ["Method", "write_page"]

_SIDE = 288  # pixels of a picture on the page


@dataclass(frozen=True)
class Method:
    """One explainer's part of the demo; results are those of the scenes, then those of the photographs."""

    title: str
    bundle: Path
    manifest: Manifest
    results: Sequence[ImageExplanation]
    cost: Sequence[BenchRow]


def write_page(
    path: Path, methods: Sequence[Method], scenes: Sequence[Any], photographs: Sequence[str], *, seconds: float
) -> Path:
    """Write the page.

    Args:
        path: of the HTML file.
        methods: the explainers, in the order of the columns.
        scenes: the planted scenes with their evidence.
        photographs: names of the photographs, whose results follow those of the scenes.
        seconds: what export, verification and explanation took.
    """
    template = Template((Path(__file__).parent / "demo_page.html").read_text(encoding="utf-8"))
    rows = [
        _row(
            [
                _figure(_scaled(scene.image), "image", f"scene {index}: digit {scene.label}"),
                _figure(_evidence(scene), "evidence", f"truth: {methods[0].results[index].class_names[scene.label]}"),
            ],
            [method.results[index] for method in methods],
            methods,
        )
        for index, scene in enumerate(scenes)
    ]
    plain = [
        _row(
            [_figure(_scaled(methods[0].results[len(scenes) + index].image), "image", name)],
            [method.results[len(scenes) + index] for method in methods],
            methods,
        )
        for index, name in enumerate(photographs)
    ]
    html = template.substitute(
        summary="".join(map(_summary, methods)),
        legend=_legend(),
        scenes="".join(rows),
        photographs="".join(plain),
        seconds=f"{seconds:.0f}",
    )
    path.write_text(html, encoding="utf-8")
    return path


def _row(first: list[str], results: Sequence[ImageExplanation], methods: Sequence[Method]) -> str:
    cells = list(first)
    for method, result in zip(methods, results, strict=True):
        image, mask = enlarge(result.image, result.mask_on_image())
        answer = f"<b>{escape(result.class_name)}</b> {result.probability:.1%} · {result.milliseconds:.1f} ms"
        cells.append(
            _figure(_scaled(colourise(mask)), f"mask, {escape(method.title)}", f"area {result.mask.mean():.1%}")
        )
        cells.append(_figure(_scaled(draw_overlay(image, mask)), f"overlay, {escape(method.title)}", answer))
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
        f"<tr><td>batch {row.batch}</td><td>{row.p50_ms:.2f} ms</td><td>{row.images_per_second:.0f} images/s</td>"
        f"<td><b>{row.forwards:.2f}</b> forwards</td></tr>"
        for row in method.cost
    )
    return (
        f"<section class=card><h2>LTX, {escape(method.title)}</h2><p>{escape(method.manifest.explainee['spec'])}</p>"
        f"<table>{cost}</table><p>Furthest from PyTorch on {parity.images} images: masks {parity.mask_max_abs:.1e}, "
        f"probabilities {parity.probabilities_max_abs:.1e}.</p>"
        f"<p><code>{escape(str(method.bundle))}</code></p></section>"
    )


def _legend() -> str:
    stops = ", ".join(f"rgb({r},{g},{b})" for r, g, b in colour_table()[::15])
    return f'<span class=bar style="background:linear-gradient(90deg,{stops})"></span>'
