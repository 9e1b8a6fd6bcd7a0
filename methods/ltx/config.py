"""Settings of LTX training."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ...errors import UsageError
from ..perturb import BASELINES, Baseline

__all__ = ["AREA_FORMS", "FORMS", "AreaForm", "Form", "LTXConfig", "Precision"]

Form = Literal["shared", "own"]
AreaForm = Literal["l1", "softplus"]
Precision = Literal["fp32", "bf16", "fp16"]
FORMS: tuple[Form, ...] = get_args(Form)
AREA_FORMS: tuple[AreaForm, ...] = get_args(AreaForm)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_PUBLISHED: dict[str, Any] = {
    "form": "own",
    "preserve": 1.0,
    "complement": 0.0,
    "area_form": "softplus",
    "baseline": "black",
    "evidence": False,
    "batch_size": 32,
}


@dataclass(frozen=True, kw_only=True)
class LTXConfig:
    """How an LTX explainer is built and trained.

    Attributes:
        form: ``"shared"``, a light decoder on the frozen explainee's own feature maps (prediction and explanation
            cost one forward), or ``"own"``, a trained copy of the explainee's backbone as in the paper (two forwards).
        layers: feature maps to use, coarsest first; empty finds them from the model.
        width: channels of the decoder (shared form); 0 takes an eighth of the finest map's, at least 32; 64
            for any class of a transformer.
        class_conditional: one explainer answers for any class that is asked for (shared form); if not, for the
            predicted one.
        backbone: spec of another architecture for the own form, as for `load_explainee`; empty copies the explainee.
        backbone_weights: its weights file; empty takes the library's pretrained ones.
        preserve: weight of the preservation term, CE(f(x ∘ m), y).
        complement: weight of the counterfactual term, −log(1 − p_y(x ∘ (1 − m))); 0 leaves it out, as the published
            configuration does.
        area: weight of the area term.
        area_form: ``"l1"``, the mean of the mask, or ``"softplus"``, mean softplus(m) as published.
        entropy: weight of the entropy term, which is 0 for a mask of zeros and ones and 1 for one of halves.
        elsewhere: weight of keeping nothing of what comes from an image of another class, in the mixed images that an
            explainer for any class is trained on.
        baseline: what replaces a removed pixel: ``"mean"`` colour, ``"black"`` as published, or ``"blur"``.
        evidence: multiply the network's selection by the class activation of a linear head, where the explainee has
            one (see `LTXExplainer`); off as published.
        steps: optimiser steps.
        batch_size: images per step.
        learning_rate: peak of the schedule; None takes 3e-3 for the decoder, 5e-4 for an own backbone.
        warmup: fraction of the steps until the peak; then a cosine to zero.
        weight_decay: of AdamW.
        clip: largest norm of the gradient.
        precision: ``"bf16"`` and ``"fp16"`` run forward and backward in autocast, fp16 with scaled gradients on a GPU;
            weights stay fp32.
        seed: of the initial weights; the order of the images is the data's own.
        validate_every: steps from one validation to the next, where there is something to validate with; 0 for never.
        patience: validations without a better one after which the training stops, and the best weights are its result;
            0 trains all steps, and the last weights are.
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
    entropy: float = 0.0
    elsewhere: float = 2.0
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
    validate_every: int = 100
    patience: int = 0

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
        if self.validate_every < 0 or self.patience < 0:
            raise UsageError("the steps between validations and the patience are not negative")
        if self.patience and not self.validate_every:
            raise UsageError("patience counts validations, and there are none; set the steps between them")
        if self.form == "own" and len(self.layers) > 1:
            raise UsageError("an own backbone reads one feature map; name one layer, or take the shared form")
        if self.class_conditional and self.form == "own":
            raise UsageError("an explainer for any class has the shared form, not that of an own backbone")
        if self.backbone and (self.form == "shared" or self.layers):
            raise UsageError("another backbone is for the own form, and its layer is found; add --form own")
        if self.backbone_weights and not self.backbone:
            raise UsageError("weights of a backbone go with its architecture; add --backbone SPEC")
        weights = (self.preserve, self.complement, self.area, self.entropy, self.elsewhere)
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

    @classmethod
    def published(cls, spec: str, **changes: Any) -> LTXConfig:
        """The settings of the published code of LTX (Barkan et al. 2023) for an explainee.

        A trained copy of the backbone, black where the mask removes, CE + 50 · mean softplus(m), and 30 in place of 50
        for ViT-S; no counterfactual term, batches of 32. The learning rate stays ours: the published schedule never
        ends its warm-up.

        Args:
            spec: of the explainee, such as ``"timm:vit_small_patch16_224"``.
            changes: settings that win over the published ones.
        """
        small_vit = re.search(r"\b(vit|deit)[-_]?s(mall)?([-_]|$)", spec.lower())
        return cls(**(_PUBLISHED | {"area": 30.0 if small_vit else 50.0} | changes))

    @property
    def peak_rate(self) -> float:
        """The learning rate at the end of the warm-up."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 3e-3 if self.form == "shared" else 5e-4
