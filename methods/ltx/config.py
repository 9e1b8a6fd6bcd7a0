"""Settings of LTX training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ...errors import UsageError
from ..perturb import BASELINES, Baseline

__all__ = ["AREA_FORMS", "FORMS", "AreaForm", "Form", "LTXConfig", "Precision"]

Form = Literal["shared", "own"]
AreaForm = Literal["l1", "softplus"]
Precision = Literal["fp32", "bf16"]
FORMS: tuple[Form, ...] = get_args(Form)
AREA_FORMS: tuple[AreaForm, ...] = get_args(AreaForm)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True, kw_only=True)
class LTXConfig:
    """How an LTX explainer is built and trained.

    Attributes:
        form: ``"shared"``, a light decoder on the frozen explainee's own feature maps (prediction and explanation
            cost one forward), or ``"own"``, a trained copy of the explainee's backbone as in the paper (two forwards).
        layers: feature maps to use, coarsest first; empty finds them from the model.
        width: channels of the decoder (shared form); 0 takes an eighth of the finest map's, at least 32.
        class_conditional: one explainer answers for any class that is asked for (shared form); if not, for the
            predicted one.
        backbone: spec of another architecture for the own form, as for `load_explainee`; empty copies the explainee.
        backbone_weights: its weights file; empty takes the library's pretrained ones.
        preserve: weight of the preservation term, CE(f(x ∘ m), y).
        complement: weight of the counterfactual term, −log(1 − p_y(x ∘ (1 − m))); 0 leaves it out, as the published
            configuration does.
        area: weight of the area term.
        area_form: ``"l1"``, the mean of the mask, or ``"softplus"``, mean softplus(m) as published.
        baseline: what replaces a removed pixel: ``"mean"`` colour, ``"black"`` as published, or ``"blur"``.
        evidence: multiply the network's selection by the class activation of a linear head, where the explainee has
            one (see `LTXExplainer`); off as published.
        steps: optimiser steps.
        batch_size: images per step.
        learning_rate: peak of the schedule; None takes 3e-3 for the decoder, 5e-4 for an own backbone.
        warmup: fraction of the steps until the peak; then a cosine to zero.
        weight_decay: of AdamW.
        clip: largest norm of the gradient.
        precision: ``"bf16"`` runs forward and backward in autocast; weights stay fp32.
        seed: of the initial weights; the order of the images is the data's own.
    """

    form: Form = "shared"
    layers: tuple[str, ...] = ()
    width: int = 0
    class_conditional: bool = False
    backbone: str = ""
    backbone_weights: str = ""
    preserve: float = 1.0
    complement: float = 1.0
    area: float = 2.0
    area_form: AreaForm = "l1"
    baseline: Baseline = "mean"
    evidence: bool = True
    steps: int = 600
    batch_size: int = 48
    learning_rate: float | None = None
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    precision: Precision = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("form", self.form, FORMS),
            ("area form", self.area_form, AREA_FORMS),
            ("baseline", self.baseline, BASELINES),
            ("precision", self.precision, PRECISIONS),
        ):
            if value not in choices:
                raise UsageError(f"unknown {name} '{value}'; there are: {', '.join(choices)}")
        if self.steps < 1 or self.batch_size < 1 or self.width < 0:
            raise UsageError("steps and batch size are at least 1, and the width is not negative")
        if self.form == "own" and len(self.layers) > 1:
            raise UsageError("an own backbone reads one feature map; name one layer, or take the shared form")
        if self.class_conditional and self.form == "own":
            raise UsageError("an explainer for any class has the shared form; leave out --form own")
        if self.backbone and (self.form == "shared" or self.layers):
            raise UsageError("another backbone is for the own form, and its layer is found; add --form own")
        weights = (self.preserve, self.complement, self.area)
        if not all(map(math.isfinite, weights)) or min(weights) < 0 or self.preserve + self.complement == 0:
            raise UsageError(
                "the weights of the losses are finite and not negative, and preserve or complement is positive"
            )
        if not 0 <= self.warmup < 1:
            raise UsageError("warmup is a fraction of the steps, in [0, 1)")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise UsageError(f"the learning rate {self.learning_rate} is not positive and finite")
        if not 0 <= self.weight_decay < math.inf or not 0 < self.clip < math.inf:
            raise UsageError("the weight decay is not negative, the clip is positive, and both are finite")

    @property
    def peak_rate(self) -> float:
        """The learning rate at the end of the warm-up."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 3e-3 if self.form == "shared" else 5e-4
