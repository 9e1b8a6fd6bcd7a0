"""What a gradient method is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...errors import UsageError, suggest
from ..quadrature import RULES, Rule

__all__ = ["ALIASES", "METHODS", "PRESETS", "GradientConfig", "Mode", "Preset"]

Mode = Literal["paper", "code"]
Preset = Literal["published", "fast"]
PRESETS = ("published", "fast")

METHODS = {
    "gradcam": "Grad-CAM (Selvaraju et al. 2017): the last maps or tokens, weighted by their mean gradients",
    "layercam": "LayerCAM (Jiang et al. 2021): the last maps or tokens, weighted by positive gradients place by place",
    "ig": "integrated gradients (Sundararajan et al. 2017), from the data's mean colour",
    "dix1": "deep integrated explanations over the last layer",
    "dix2": "deep integrated explanations over the last two layers",
    "dix3": "deep integrated explanations over the last three layers",
    "iia2": "iterated integrated attributions over the image and the last layer",
    "iia3": "iterated integrated attributions over the image and the last two layers",
    "rollout": "attention rollout (Abnar & Zuidema 2020); does not depend on the class",
    "class-rollout": "attention rollout of what speaks for the class in the last block, by its gradient alone",
    "gradient-rollout": "attention rollout weighted by the gradients of all blocks",
}
"""By the names that users type."""

ALIASES = {"dix": "dix2", "iia": "iia2", "grad-cam": "gradcam", "integrated-gradients": "ig"}

_STEPS = {"ig": 50, "iia2": 10, "iia3": 10, "dix1": 4, "dix2": 4, "dix3": 4}  # as published
_STEPS_OF_ATTENTION = {"iia2": 5, "dix1": 10, "dix2": 10, "dix3": 10}
# Gauss points with which maps have a cosine of 0.999 with those of 128: see docs/quadrature.md
_FAST = {"ig": 24, "iia2": 2, "iia3": 3, "dix1": 2, "dix2": 2, "dix3": 2}
_FAST_OF_ATTENTION = {"iia2": 8, "dix1": 2, "dix2": 2, "dix3": 2}
_FAST_INNER = {"iia2": 2}  # of attention: the matrix needs fewer points than the image


@dataclass(frozen=True, kw_only=True)
class GradientConfig:
    """A method and its settings.

    Attributes:
        method: one of `METHODS`.
        layers: names of the layers, the last one first; empty takes the model's last feature maps, or all attention
            blocks.
        preset: ``"published"`` takes the published number of steps and Riemann sums, ``"fast"`` the fewest Gauss points
            whose map has a cosine of 0.999 with that of 128 points.
        steps: of every integral; 0 takes the preset's.
        inner_steps: of the integral over the last attention matrix inside the one over the image (IIA on attention);
            0 takes as many as `steps`, or the preset's where `steps` is not given.
        rule: of every integral; None takes the preset's.
        mode: ``"paper"`` computes the published formulas, ``"code"`` what the published code computes.
        memory_budget: GiB that a process may take that explains a batch of `batch` images; as many images and points of
            a path go through the model together as fit. Fewer points mean a longer graph, and a longer export.
        batch: see `memory_budget`.
        points_per_pass: at most so many points of a path go through the model together; 0 takes what fits.
    """

    method: str = "gradcam"
    layers: tuple[str, ...] = ()
    preset: Preset = "published"
    steps: int = 0
    inner_steps: int = 0
    rule: Rule | None = None
    mode: Mode = "paper"
    memory_budget: float = 4.0
    batch: int = 1
    points_per_pass: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"there is no method '{self.method}'; {suggest(self.method, tuple(METHODS))}")
        if self.preset not in PRESETS:
            raise UsageError(f"there is no preset '{self.preset}'; {suggest(self.preset, PRESETS)}")
        if self.rule is not None and self.rule not in RULES:
            raise UsageError(f"there is no quadrature '{self.rule}'; {suggest(self.rule, RULES)}")
        if self.mode not in ("paper", "code"):
            raise UsageError(f"unknown mode '{self.mode}'; there are: paper, code")
        if min(self.steps, self.inner_steps) < 0 or self.points_per_pass < 0:
            raise UsageError("steps and points per pass are positive, or 0 for the default")
        if self.memory_budget <= 0 or self.batch < 1:
            raise UsageError(
                f"a memory budget of {self.memory_budget} GiB for a batch of {self.batch} images; both are positive"
            )

    def steps_of(self, attention: bool) -> int:
        """The number of steps on attention matrices or on feature maps, the default filled in."""
        if self.preset == "fast":
            return self.steps or (_FAST_OF_ATTENTION if attention else _FAST).get(self.method, 1)
        return self.steps or (_STEPS_OF_ATTENTION if attention else _STEPS).get(self.method, 1)

    def inner_steps_of(self, attention: bool) -> int:
        """The number of steps of the innermost integral."""
        fast = _FAST_INNER.get(self.method, 0) if attention and self.preset == "fast" and not self.steps else 0
        return self.inner_steps or fast or self.steps_of(attention)

    @property
    def quadrature(self) -> Rule:
        """Of every integral, the preset's filled in."""
        return self.rule or ("gauss" if self.preset == "fast" else "riemann")

    @property
    def integrates(self) -> bool:
        """The method takes a pass for each of many points."""
        return self.method in _STEPS

    @property
    def class_specific(self) -> bool:
        """The map depends on the class."""
        return self.method != "rollout"
