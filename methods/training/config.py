"""Settings of a training, whatever is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ...errors import UsageError
from ..perturb import BASELINES, Baseline

__all__ = ["PRECISIONS", "Precision", "TrainingConfig", "one_of"]

Precision = Literal["fp32", "bf16", "fp16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How an explainer is trained; each method adds its own settings.

    Attributes:
        layers: feature maps to use, coarsest first; empty finds them from the model.
        width: channels of a network on the explainee's own features; 0 finds it from the model.
        class_conditional: one explainer answers for any class that is asked for; if not, for the predicted one.
        baseline: what replaces a removed pixel: ``"mean"`` colour, ``"black"`` as published for LTX, or ``"blur"``.
        start: folders of checkpoints of the same kind of explainer; the training begins with the mean of their weights
            (model soup, Wortsman et al. 2022); empty for fresh ones.
        steps: optimiser steps.
        batch_size: images per step.
        learning_rate: peak of the schedule; None takes the method's own.
        warmup: fraction of the steps until the peak; then a cosine to zero.
        weight_decay: of AdamW.
        clip: largest norm of the gradient.
        ema_decay: the result is an exponential moving average of the weights with this decay per step: 0.99 remembers
            some hundred steps; 0 for the weights themselves.
        precision: ``"bf16"`` and ``"fp16"`` run forward and backward in autocast, fp16 with scaled gradients on a GPU;
            weights stay fp32.
        seed: of the initial weights; the order of the images is the data's own.
        validate_every: steps from one validation to the next, where there is something to validate with; 0 for never.
        patience: validations without a better one after which the training stops, and the best weights are its result;
            0 trains all steps, and the last weights are.
    """

    layers: tuple[str, ...] = ()
    width: int = 0
    class_conditional: bool = False
    baseline: Baseline = "mean"
    start: tuple[str, ...] = ()
    steps: int = 600
    batch_size: int = 48
    learning_rate: float | None = None
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    ema_decay: float = 0.0
    precision: Precision = "fp32"
    seed: int = 0
    validate_every: int = 100
    patience: int = 0

    def __post_init__(self) -> None:
        one_of("baseline", self.baseline, BASELINES)
        one_of("precision", self.precision, PRECISIONS)
        if self.steps < 1 or self.batch_size < 1 or self.width < 0:
            raise UsageError("steps and batch size are at least 1, and the width is not negative")
        if self.validate_every < 0 or self.patience < 0:
            raise UsageError("the steps between validations and the patience are not negative")
        if self.patience and not self.validate_every:
            raise UsageError("patience counts validations, and there are none; set the steps between them")
        if not 0 <= self.warmup < 1:
            raise UsageError("warmup is a fraction of the steps, in [0, 1)")
        if not 0 <= self.ema_decay < 1:
            raise UsageError(f"the decay of the running mean is in [0, 1), not {self.ema_decay}")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise UsageError(f"the learning rate {self.learning_rate} is not positive and finite")
        if not 0 <= self.weight_decay < math.inf or not 0 < self.clip < math.inf:
            raise UsageError("the weight decay is not negative, the clip is positive, and both are finite")

    @property
    def peak_rate(self) -> float:
        """The learning rate at the end of the warm-up."""
        return self.learning_rate or self.default_rate

    @property
    def default_rate(self) -> float:
        """What is taken where no learning rate is set."""
        return 3e-3


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Check a setting.

    Raises:
        UsageError: it is none of the choices.
    """
    if value not in choices:
        raise UsageError(f"unknown {name} '{value}'; there are: {', '.join(choices)}")
