"""Insertion, deletion, positive and negative perturbation: remove pixels by importance and watch the classifier."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from .metric import Answers, Metric, Rows
from .probes import Answer, Bare, Fill, First, Remove, Unchanged
from .sample import Sample

__all__ = [
    "InsertionMinusDeletion",
    "Perturbation",
    "Protocol",
    "deletion",
    "insertion",
    "insertion_minus_deletion",
    "negative_perturbation",
    "positive_perturbation",
]

Protocol = Literal["rise", "ltx"]
_GREY = (128, 128, 128)


@dataclass(frozen=True)
class Perturbation(Metric):
    """Area under the curve of the classifier's answer y(ρ) while the share ρ of the pixels is removed.

    y(0) is the answer to the image, y(1) to the bare fill. At ρ, ⌊ρ·H·W⌋ pixels stand replaced by the fill: the most
    important ones (`first` is ``"most"``) or the least important ones. The area is the trapezoidal rule over the grid,
    divided by the grid's width and times `scale`; so it is the mean height of the curve.

    - Deletion: most important first, probability of the target; lower is better (Petsiuk et al. 2018, RISE, §3.2).
    - Insertion: least important first, probability; higher is better. RISE reveals the most important pixels on a
      canvas instead, which is the same set of images from the other end, and the same area.
    - Positive perturbation (POS): most important first, accuracy 1[argmax = target]; lower is better (Chefer et al.
      2021, §4).
    - Negative perturbation (NEG): least important first, accuracy; higher is better.

    With equal fill and grid, POS needs no forward beyond deletion's, and NEG none beyond insertion's.

    Attributes:
        name: of the metric.
        first: which pixels are removed first.
        response: what is watched.
        fill: what stands in the place of a removed pixel. RISE deletes to zero after normalisation, which is the
            data's mean colour, and inserts on a blurred image.
        grid: the shares ρ, ascending.
        scale: all values times this.
        divide_by_width: divide the area by the grid's width. The published code of LTX does not: its grid ends at 0.9
            and its largest value is 90.
    """

    name: str
    first: First
    response: Literal["probability", "accuracy"]
    fill: Fill = _GREY
    grid: tuple[float, ...] = field(default_factory=lambda: even_grid(16))
    scale: float = 1.0
    divide_by_width: bool = True

    def __post_init__(self) -> None:
        grid = self.grid
        if len(grid) < 2 or list(grid) != sorted(set(grid)) or grid[0] < 0 or grid[-1] > 1:
            raise UsageError(f"a grid is two or more ascending shares in [0, 1], not {grid}")

    @property
    def higher_is_better(self) -> bool:  # type: ignore[override]
        """Removing what matters should hurt, removing what does not should not."""
        return self.first == "least"

    @property
    def summary(self) -> str:
        """One sentence about it."""
        what = "probability" if self.response == "probability" else "accuracy"
        return f"Area under the curve of the {what} while pixels are removed, {self.first} important first."

    def probes(self, sample: Sample) -> list[Unchanged | Remove | Bare]:
        """The curve's points in order; its ends are the same copies for every curve of this image and fill."""
        inner = tuple(share for share in self.grid if 0 < share < 1)
        wanted: list[Unchanged | Remove | Bare] = [Unchanged()] if self.grid[0] == 0 else []
        if inner:
            wanted.append(Remove(self.fill, inner, self.first))
        if self.grid[-1] == 1:
            wanted.append(Bare(self.fill))
        return wanted

    def row(self, sample: Sample, answers: Answers) -> NDArray[np.float64]:
        """The curve y(ρ) on the grid."""
        return np.concatenate([self._values(answers[probe]) for probe in self.probes(sample)])

    def per_image(self, rows: Rows) -> NDArray[np.float64]:
        """Area under each curve."""
        width = self.grid[-1] - self.grid[0] if self.divide_by_width else 1.0
        area: NDArray[np.float64] = np.trapezoid(rows, np.asarray(self.grid), axis=1)
        return area * (self.scale / width)

    def curve(self, rows: Rows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The mean curve: shares removed and answers, both (S,)."""
        return np.asarray(self.grid), rows.mean(0)

    def _values(self, answer: Answer) -> NDArray[np.float64]:
        return answer.probability if self.response == "probability" else answer.correct.astype(np.float64)


@dataclass(frozen=True)
class InsertionMinusDeletion(Metric):
    """Insertion minus deletion, higher is better: one number for both, so that it and its difference to a rival have an
    interval of their own.
    """

    inserting: Perturbation
    deleting: Perturbation
    name: str = "insertion-deletion"

    def probes(self, sample: Sample) -> list[Unchanged | Remove | Bare]:
        """Those of both curves; nothing beyond what the two metrics ask for."""
        return [*self.inserting.probes(sample), *self.deleting.probes(sample)]

    def row(self, sample: Sample, answers: Answers) -> NDArray[np.float64]:
        """The two curves, one after the other."""
        return np.concatenate([self.inserting.row(sample, answers), self.deleting.row(sample, answers)])

    def per_image(self, rows: Rows) -> NDArray[np.float64]:
        """Difference of the two areas."""
        points = len(self.inserting.grid)
        return self.inserting.per_image(rows[:, :points]) - self.deleting.per_image(rows[:, points:])


def even_grid(steps: int, end: float = 1.0) -> tuple[float, ...]:
    """``steps`` equal steps from 0 to `end`."""
    if steps < 1 or not 0 < end <= 1:
        raise UsageError(f"a grid has at least one step and ends in (0, 1], not {steps} steps to {end}")
    return tuple(round(end * step / steps, 12) for step in range(steps + 1))


def _with_protocol(base: Perturbation, protocol: Protocol, fill: Fill, steps: int, end: float) -> Perturbation:
    """RISE's definition, or that of the published code of LTX: ρ = 0, 0.1 … 0.9, black, times 100, no division."""
    if protocol == "ltx":
        return replace(base, fill="black", grid=even_grid(9, 0.9), scale=100.0, divide_by_width=False)
    if protocol != "rise":
        raise UsageError(f"unknown protocol '{protocol}'; there are: rise, ltx")
    return replace(base, fill=fill, grid=even_grid(steps, end))


def deletion(protocol: Protocol = "rise", fill: Fill = _GREY, steps: int = 16, end: float = 1.0) -> Perturbation:
    """Deletion: the most important pixels go first, the target's probability is watched; lower is better.

    Args:
        protocol: ``"rise"``, or ``"ltx"`` for the definition of that published code, which sets fill and grid.
        fill: what stands in the place of a removed pixel: ``"black"``, ``"blur"``, or a colour (red, green, blue).
        steps: of the curve, between 0 and `end`.
        end: share of the pixels that is removed at last.

    See `Perturbation` for the formula and sources.
    """
    return _with_protocol(Perturbation("deletion", "most", "probability"), protocol, fill, steps, end)


def insertion(protocol: Protocol = "rise", fill: Fill = _GREY, steps: int = 16, end: float = 1.0) -> Perturbation:
    """Insertion: the least important pixels go first, the target's probability is watched; higher is better.

    Arguments as for `deletion`, formula and sources at `Perturbation`.
    """
    return _with_protocol(Perturbation("insertion", "least", "probability"), protocol, fill, steps, end)


def positive_perturbation(
    protocol: Protocol = "rise", fill: Fill = _GREY, steps: int = 16, end: float = 1.0
) -> Perturbation:
    """Positive perturbation: the most important pixels go first, accuracy is watched; lower is better.

    Arguments as for `deletion`, formula and sources at `Perturbation`.
    """
    return _with_protocol(Perturbation("positive", "most", "accuracy"), protocol, fill, steps, end)


def negative_perturbation(
    protocol: Protocol = "rise", fill: Fill = _GREY, steps: int = 16, end: float = 1.0
) -> Perturbation:
    """Negative perturbation: the least important pixels go first, accuracy is watched; higher is better.

    Arguments as for `deletion`, formula and sources at `Perturbation`.
    """
    return _with_protocol(Perturbation("negative", "least", "accuracy"), protocol, fill, steps, end)


def insertion_minus_deletion(
    protocol: Protocol = "rise", fill: Fill = _GREY, steps: int = 16, end: float = 1.0
) -> InsertionMinusDeletion:
    """Insertion minus deletion, higher is better: one number for both.

    Arguments as for `deletion`, formula and sources at `Perturbation`.
    """
    return InsertionMinusDeletion(insertion(protocol, fill, steps, end), deletion(protocol, fill, steps, end))
