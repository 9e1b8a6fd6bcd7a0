"""What a gradient method is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...errors import UsageError, suggest
from ..quadrature import RULES, Rule

__all__ = ["ALIASES", "METHODS", "GradientConfig", "Mode"]

Mode = Literal["paper", "code"]

METHODS = {
    "gradcam": "Grad-CAM (Selvaraju et al. 2017): the last maps, weighted by their mean gradients",
    "layercam": "LayerCAM (Jiang et al. 2021): the last maps, weighted by the positive gradient of each position",
    "ig": "integrated gradients (Sundararajan et al. 2017), from the data's mean colour",
    "dix1": "deep integrated explanations over the last layer",
    "dix2": "deep integrated explanations over the last two layers",
    "dix3": "deep integrated explanations over the last three layers",
    "iia2": "iterated integrated attributions over the image and the last layer",
    "iia3": "iterated integrated attributions over the image and the last two layers",
    "rollout": "attention rollout (Abnar & Zuidema 2020); does not depend on the class",
    "gradient-rollout": "attention rollout weighted by gradients",
}
"""By the names that users type."""

ALIASES = {"dix": "dix2", "iia": "iia2", "grad-cam": "gradcam", "integrated-gradients": "ig"}

_STEPS = {"ig": 50, "iia2": 10, "iia3": 10, "dix1": 4, "dix2": 4, "dix3": 4}  # as published
_STEPS_OF_ATTENTION = {"iia2": 5, "dix1": 10, "dix2": 10, "dix3": 10}


@dataclass(frozen=True, kw_only=True)
class GradientConfig:
    """A method and its settings.

    Attributes:
        method: one of `METHODS`.
        layers: names of the layers, the last one first; empty takes the model's last feature maps, or all attention
            blocks.
        steps: of every integral; 0 takes the method's default.
        rule: of every integral.
        mode: ``"paper"`` computes the published formulas, ``"code"`` what the published code computes.
        points_per_pass: at most so many points of a path go through the model together; 0 takes all.
    """

    method: str = "gradcam"
    layers: tuple[str, ...] = ()
    steps: int = 0
    rule: Rule = "riemann"
    mode: Mode = "paper"
    points_per_pass: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"there is no method '{self.method}'; {suggest(self.method, tuple(METHODS))}")
        if self.rule not in RULES:
            raise UsageError(f"there is no quadrature '{self.rule}'; {suggest(self.rule, RULES)}")
        if self.mode not in ("paper", "code"):
            raise UsageError(f"unknown mode '{self.mode}'; there are: paper, code")
        if self.steps < 0 or self.points_per_pass < 0:
            raise UsageError("steps and points per pass are positive, or 0 for the default")

    def steps_of(self, attention: bool) -> int:
        """The number of steps on attention matrices or on feature maps, the default filled in."""
        return self.steps or (_STEPS_OF_ATTENTION if attention else _STEPS).get(self.method, 1)

    @property
    def class_specific(self) -> bool:
        """The map depends on the class."""
        return self.method != "rollout"
