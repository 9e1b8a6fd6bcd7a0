"""Settings of LTX training."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ...errors import UsageError
from ..training.config import TrainingConfig, one_of

__all__ = ["AREA_FORMS", "FORMS", "AreaForm", "Form", "LTXConfig"]

Form = Literal["shared", "own"]
AreaForm = Literal["l1", "softplus"]
FORMS: tuple[Form, ...] = get_args(Form)
AREA_FORMS: tuple[AreaForm, ...] = get_args(AreaForm)

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
class LTXConfig(TrainingConfig):
    """How an LTX explainer is built and trained; see `TrainingConfig` for what every training has.

    Attributes:
        form: ``"shared"``, a light decoder on the frozen explainee's own feature maps (prediction and explanation
            cost one forward), or ``"own"``, a trained copy of the explainee's backbone as in the paper (two forwards).
        width: channels of the decoder (shared form); 0 takes an eighth of the finest map's, at least 32; 64
            for any class of a transformer.
        class_conditional: see `TrainingConfig`; of the shared form.
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
        evidence: multiply the network's selection by the class activation of a linear head, or where the explainee has
            none by what is selected around (see `LTXExplainer`); off as published.
    """

    form: Form = "shared"
    backbone: str = ""
    backbone_weights: str = ""
    preserve: float = 1.0
    complement: float = 1.0
    area: float = 2.0
    area_form: AreaForm = "l1"
    entropy: float = 0.0
    elsewhere: float = 2.0
    evidence: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("form", self.form, FORMS)
        one_of("area form", self.area_form, AREA_FORMS)
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
    def default_rate(self) -> float:
        """3e-3 for the decoder, 5e-4 for an own backbone."""
        return 3e-3 if self.form == "shared" else 5e-4
