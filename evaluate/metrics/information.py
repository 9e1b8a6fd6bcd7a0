"""Accuracy and softmax information curves: how much of the image, in bytes, does the prediction need?"""

from __future__ import annotations

import contextlib
import functools
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...contracts import Uint8
from ...errors import UsageError, require
from .metric import Answers, Metric, Rows
from .probes import Answer, Unchanged, _Predicted
from .sample import Sample

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

__all__ = ["Focus", "InformationCurve", "aic", "reveal_by_interpolation", "sic"]

_THRESHOLDS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.10, 0.13, 0.21, 0.34, 0.5, 0.75)
_POINTS = 1000  # of a curve, besides the end at 1


@dataclass(frozen=True)
class Focus(_Predicted):
    """A blurred image that comes into focus where the mask is largest; the notes are sizes as lossless WebP, bytes.

    First a seed of random pixels and the four corners alone, then with the pixels not below each quantile of the mask.
    All other pixels are interpolated linearly. The seed depends on the image alone, not on the mask.

    Attributes:
        thresholds: shares of the most important pixels, ascending.
        seed_share: of all pixels.
    """

    thresholds: tuple[float, ...] = _THRESHOLDS
    seed_share: float = 0.01

    def render(self, sample: Sample) -> tuple[Uint8, NDArray[np.float64]]:
        """One copy for the seed, one per threshold, and the image."""
        height, width = sample.mask.shape
        if min(height, width) < 2:
            raise UsageError(f"{sample.name}: AIC and SIC interpolate over an area, not over {height}×{width} pixels")
        known = np.zeros(height * width, dtype=np.bool_)
        generator = np.random.default_rng(sample.seed)
        known[generator.choice(known.size, int(known.size * self.seed_share), replace=False)] = True
        known = known.reshape(height, width)
        copies = [reveal_by_interpolation(sample.image, known)]
        for threshold in self.thresholds:
            focus = sample.mask >= np.quantile(sample.mask, 1 - threshold)
            copies.append(reveal_by_interpolation(sample.image, known | focus))
        copies.append(sample.image)
        return np.stack(copies), np.array([_webp_bytes(copy) for copy in copies], dtype=np.float64)


@dataclass(frozen=True)
class InformationCurve(Metric):
    """Area under the performance information curve, higher is better (Kapishnikov et al. 2019, XRAI, §4; as in the PAIR
    library `saliency`).

    Let E be the size of an image as lossless WebP. The curve goes through (x, y) for every threshold of `Focus`, with
    x = (E − E_blurred) / (E_image − E_blurred) and y = (p − p_blurred) / (p_image − p_blurred), both cut to [0, 1], y
    the largest so far, and through (0, 0) and (1, 1); between the points it is linear. p is the target's probability
    (SIC) or 1[argmax = target] (AIC).

    An image is left out if p_image < `least`, p_blurred ≥ p_image or E_blurred ≥ E_image. For all images, the area is
    that of the *median* curve, which is the library's default.

    Attributes:
        name: of the metric.
        response: what is watched.
        least: smallest prediction on the image.
        focus: the copies.
    """

    name: str
    response: Literal["probability", "accuracy"]
    least: float = 0.8
    focus: Focus = Focus()

    def probes(self, sample: Sample) -> tuple[Unchanged | Focus, ...]:
        """The copies."""
        return (self.focus,)

    def row(self, sample: Sample, answers: Answers) -> NDArray[np.float64]:
        """The points' x, then their y; NaN if the image is left out."""
        answer: Answer = answers[self.focus]
        size = answer.notes
        assert size is not None, "Focus takes notes"
        value = answer.probability if self.response == "probability" else answer.correct.astype(np.float64)
        if value[-1] < self.least or value[0] >= value[-1] or size[0] >= size[-1]:
            return np.full(2 * (len(size) - 2), np.nan)
        x = ((size[1:-1] - size[0]) / (size[-1] - size[0])).clip(0, 1)
        y = ((value[1:-1] - value[0]) / (value[-1] - value[0])).clip(0, 1)
        return np.concatenate([x, np.maximum.accumulate(y)])

    def per_image(self, rows: Rows) -> NDArray[np.float64]:
        """Area under each image's curve."""
        values = np.full(len(rows), np.nan)
        for index in np.flatnonzero(~np.isnan(rows[:, 0])):
            values[index] = np.trapezoid(_curves(rows[index : index + 1])[0], _abscissa(_POINTS))
        return values

    def aggregate(self, rows: Rows, points: int = _POINTS) -> float:
        """Area under the median curve."""
        return self.area_of(self.curves(rows, points))

    def curves(self, rows: Rows, points: int = _POINTS) -> NDArray[np.float64]:
        """The curves of the images that count on an even grid, (N, points + 1)."""
        return _curves(rows[~np.isnan(rows[:, 0])], points)

    def area_of(self, curves: NDArray[np.float64]) -> float:
        """Area under the median of some curves; NaN if there is none."""
        if not len(curves):
            return float("nan")
        return float(np.trapezoid(np.median(curves, axis=0), _abscissa(curves.shape[1] - 1)))

    def curve(self, rows: Rows, points: int = _POINTS) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The median curve: information and answer, both (points + 1,); NaN if no image counts."""
        grid, curves = _abscissa(points), self.curves(rows, points)
        return grid, np.median(curves, axis=0) if len(curves) else np.full(grid.size, np.nan)


def sic() -> InformationCurve:
    """Softmax information curve; see `InformationCurve`."""
    return InformationCurve("sic", "probability")


def aic() -> InformationCurve:
    """Accuracy information curve; see `InformationCurve`."""
    return InformationCurve("aic", "accuracy")


def reveal_by_interpolation(image: Uint8, known: NDArray[np.bool_]) -> Uint8:
    """The image with all but the known pixels and the four corners interpolated linearly from those.

    Linear on the triangles of a Delaunay triangulation, rounded to uint8.
    """
    known = known.copy()
    known[[0, 0, -1, -1], [0, -1, 0, -1]] = True
    if known.all():
        return image
    interpolate = require("scipy.interpolate", extra="evaluate", purpose="AIC and SIC")
    result = image.copy()
    with _one_thread():
        values = interpolate.griddata(
            np.argwhere(known),
            image[known].astype(np.float64),
            np.argwhere(~known),
            method="linear",
            fill_value=np.nan,  # no pixel is outside the hull of the corners
        )
    outside = np.isnan(values).any(1)  # but rounding may place one there
    values[outside] = image.mean((0, 1))
    result[~known] = np.round(values.astype(np.float32)).astype(np.uint8)  # as PAIR: exact halves are common
    return result


def _one_thread() -> contextlib.AbstractContextManager[None]:
    """Keep BLAS from sharing out the system of two equations that SciPy solves for every triangle.

    Where the cores are busy, each of these waits for a thread that has no turn: a hundred times the work's own time.
    """
    limited: contextlib.AbstractContextManager[None] = _thread_pools().limit(limits=1, user_api="blas")
    return limited


@functools.cache
def _thread_pools() -> ThreadpoolController:
    return require("threadpoolctl", extra="evaluate", purpose="AIC and SIC").ThreadpoolController()


def _webp_bytes(image: Uint8) -> int:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="webp", lossless=True, quality=100)
    return stream.tell()


def _abscissa(points: int) -> NDArray[np.float64]:
    return np.append(np.linspace(0, 1, points, endpoint=False), 1.0)


def _curves(rows: Rows, points: int = _POINTS) -> NDArray[np.float64]:
    """Each image's curve on an even grid, (N, points + 1)."""
    grid = _abscissa(points)
    half = rows.shape[1] // 2
    curves = np.empty((len(rows), grid.size))
    for curve, row in zip(curves, rows, strict=True):
        x, y = np.append(row[:half], [0.0, 1.0]), np.append(row[half:], [0.0, 1.0])
        order = np.argsort(x, kind="stable")
        curve[:] = np.interp(grid, x[order], y[order])
    curves[:, -1] = 1.0
    return curves
