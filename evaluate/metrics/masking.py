"""What is left of the prediction when the image is multiplied by its mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .metric import Answers, Metric
from .probes import Shade, Unchanged
from .sample import Sample

__all__ = ["ADD", "ADP", "PIC"]


@dataclass(frozen=True)
class ADP(Metric):
    """Average drop percentage, lower is better: 100 · max(0, p − o) / p.

    p is the target's probability for the image x, o for x⊙M (Chattopadhay et al. 2018, Grad-CAM++, §4.1). M is used as
    it is; x⊙M is rounded to uint8, and a pixel with M = 0 is black. p = 0 gives 0: nothing is there to lose.

    Black is not nothing: a mask with the exact outline of the evidence draws that outline, and so does its complement.
    On planted scenes a digit's silhouette is the digit, so the exact mask does not win here; its box does.
    """

    name: str = "adp"
    higher_is_better: ClassVar[bool | None] = False

    def probes(self, sample: Sample) -> tuple[Unchanged | Shade, ...]:
        """Image, and image times mask."""
        return Unchanged(), Shade()

    def row(self, sample: Sample, answers: Answers) -> tuple[float]:
        """The drop in percent."""
        return (_drop(answers[Unchanged()].probability[0], answers[Shade()].probability[0]),)


@dataclass(frozen=True)
class PIC(Metric):
    """Percentage of images whose target gains by the mask, higher is better: 100 · 1[o > p], strictly (Chattopadhay et
    al. 2018, "increase in confidence").
    """

    name: str = "pic"

    def probes(self, sample: Sample) -> tuple[Unchanged | Shade, ...]:
        """Image, and image times mask."""
        return Unchanged(), Shade()

    def row(self, sample: Sample, answers: Answers) -> tuple[float]:
        """100 or 0."""
        return (100.0 * (answers[Shade()].probability[0] > answers[Unchanged()].probability[0]),)


@dataclass(frozen=True)
class ADD(Metric):
    """Average drop in deletion, higher is better: 100 · max(0, p − o′) / p, with o′ for x⊙(1 − M) (Jung & Oh 2021)."""

    name: str = "add"

    def probes(self, sample: Sample) -> tuple[Unchanged | Shade, ...]:
        """Image, and image times one minus mask."""
        return Unchanged(), Shade(inverse=True)

    def row(self, sample: Sample, answers: Answers) -> tuple[float]:
        """The drop in percent."""
        return (_drop(answers[Unchanged()].probability[0], answers[Shade(inverse=True)].probability[0]),)


def _drop(before: float, after: float) -> float:
    return 100.0 * max(0.0, before - after) / before if before > 0 else 0.0
