"""Graphs of a bundle in lower precision: what they are called, and what they may lose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..contracts import Explanation
from .compare import cosine, max_abs, top_iou
from .manifest import GRAPH_FILE, PrecisionReport

__all__ = [
    "BARS",
    "PRECISIONS",
    "Precision",
    "PrecisionBars",
    "graph_file",
    "losses",
    "measure_precision",
    "share_of_bars",
]

Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True)
class PrecisionBars:
    """What a graph in lower precision must reach, on the worst image.

    Attributes:
        cosine: of a mask with PyTorch's, at least.
        top10_iou: overlap of the top 10 % of its pixels, at least.
        probabilities: difference of any, at most.
        classes: share of the images for which the same class is explained, at least.
        faithfulness: difference of insertion and of deletion over the images, at most; None where it is not measured.
    """

    cosine: float
    top10_iou: float
    probabilities: float
    classes: float = 0.9
    faithfulness: float | None = None


BARS: dict[str, PrecisionBars] = {
    "fp16": PrecisionBars(cosine=0.999, top10_iou=0.97, probabilities=0.02),
    "bf16": PrecisionBars(cosine=0.999, top10_iou=0.97, probabilities=0.05),
    "int8": PrecisionBars(cosine=0.98, top10_iou=0.0, probabilities=0.1, faithfulness=0.01),
}


def graph_file(precision: str) -> str:
    """The name of a bundle's graph in a precision."""
    return GRAPH_FILE if precision == "fp32" else f"explainer.{precision}.onnx"


def measure_precision(found: Explanation, original: Explanation, kept: tuple[str, ...] = ()) -> PrecisionReport:
    """Hold answers in lower precision against PyTorch's in single.

    Args:
        found: of the graph in lower precision.
        original: PyTorch's, of the same images and classes.
        kept: layers that were left in single precision.
    """
    same = found.target.reshape(len(original), -1)[:, 0] == original.target.reshape(len(original), -1)[:, 0]
    return PrecisionReport(
        images=len(original),
        mask_max_abs=float(max_abs(found.mask, original.mask).max()),
        mask_cosine=float(_number(cosine(found.mask, original.mask)).min()),
        mask_top10_iou=float(top_iou(found.mask, original.mask).min()),
        probabilities_max_abs=float(max_abs(found.probabilities, original.probabilities).max()),
        classes_equal=float(same.mean()),
        kept=kept,
    )


def losses(report: PrecisionReport, precision: str) -> list[str]:
    """What a report does not reach, in words; empty if it passes."""
    bars, found = BARS[precision], []
    if not report.mask_cosine >= bars.cosine:
        found.append(f"a mask's cosine with PyTorch's is {report.mask_cosine:.5f} (at least {bars.cosine} is asked)")
    if not report.mask_top10_iou >= bars.top10_iou:
        found.append(
            f"the top 10 % of a mask's pixels overlap by {report.mask_top10_iou:.3f} "
            f"(at least {bars.top10_iou} is asked)"
        )
    if not report.probabilities_max_abs <= bars.probabilities:
        found.append(f"probabilities differ by up to {report.probabilities_max_abs:.3f} (allowed {bars.probabilities})")
    if not report.classes_equal >= bars.classes:
        found.append(
            f"the same class is predicted for {report.classes_equal:.0%} of the images (at least {bars.classes:.0%} is "
            "asked)"
        )
    if bars.faithfulness is not None and report.faithfulness_change is not None:
        if not report.faithfulness_change <= bars.faithfulness:
            found.append(
                f"insertion or deletion differs by {report.faithfulness_change:.4f} (allowed {bars.faithfulness})"
            )
    return found


def share_of_bars(report: PrecisionReport, precision: str, *, of_all: bool = False) -> float:
    """How much of what may be lost is lost, of whatever is nearest to its bar; up to 1 passes.

    Args:
        report: what is lost.
        precision: in which.
        of_all: also of what is a mean over the images, which of few images says little.
    """
    bars = BARS[precision]
    shares = [
        (1 - report.mask_cosine) / (1 - bars.cosine),
        (1 - report.mask_top10_iou) / (1 - bars.top10_iou),
        report.probabilities_max_abs / bars.probabilities,
    ]
    if of_all:
        shares.append((1 - report.classes_equal) / (1 - bars.classes))
        if bars.faithfulness is not None and report.faithfulness_change is not None:
            shares.append(report.faithfulness_change / bars.faithfulness)
    return max(shares)


def _number(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is not a number, as of a mask that overflowed, is as bad as can be."""
    return np.where(np.isfinite(values), values, -1.0)
