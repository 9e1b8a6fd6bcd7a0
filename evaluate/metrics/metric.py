"""What a metric is: the probes it wants, a row of numbers per image, and one number for many rows."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .probes import Probe
from .sample import Sample

__all__ = ["Answers", "Metric", "Rows"]

Rows = NDArray[np.float64]
"""What a metric keeps of each image, (N, L)."""

Answers = Mapping[Probe, Any]


class Metric(ABC):
    """A measure of explanations.

    Each image gives one row; `per_image` turns rows into one value per image and `aggregate` into one for all. An
    image for which the metric is not defined gives a row of NaN and is left out.

    Attributes:
        name: as users type it.
        higher_is_better: the direction; None where neither end is good in itself.
        needs_evidence: only defined with ground truth.
    """

    name: str
    higher_is_better: ClassVar[bool | None] = True
    needs_evidence: ClassVar[bool] = False

    @property
    def summary(self) -> str:
        """One sentence about it."""
        return " ".join((inspect.getdoc(type(self)) or "").split("\n\n")[0].split())

    def probes(self, sample: Sample) -> Sequence[Probe]:
        """The altered copies that the metric wants to see answered."""
        return ()

    @abstractmethod
    def row(self, sample: Sample, answers: Answers) -> Sequence[float] | NDArray[np.float64]:
        """What to keep of this image: always the same number of values."""

    def per_image(self, rows: Rows) -> NDArray[np.float64]:
        """One value per image, (N,); NaN where the metric is not defined."""
        return rows[:, 0]

    def aggregate(self, rows: Rows) -> float:
        """One value for all images: the mean of those for which the metric is defined; NaN if there are none."""
        values = self.per_image(rows)
        values = values[~np.isnan(values)]
        return float(values.mean()) if values.size else float("nan")
