"""LTX as a method that is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from ..perturb import perturb
from ..training.explainer import Batch, Losses, TrainedMethod
from .config import LTXConfig
from .losses import TERMS, total_loss
from .model import LTXExplainer, build_ltx

__all__ = ["LTX"]


def _losses(explainer: LTXExplainer, batch: Batch, config: LTXConfig) -> tuple[Losses, dict[str, Tensor]]:
    """Predict the images, mask them, and ask the explainee about what is kept and, for the complement term, about what
    is left without it; both in one batch.
    """
    explainee, pixels, target = explainer.explainee, batch.pixels, batch.target
    # the explainee is frozen, so this leaves a graph for the network alone
    plain = explainer.predict(explainee.normalise(pixels), None if target is None else target[:, None])
    mask = explainer.upsample(plain.selection.float())
    views = {}
    if config.preserve:
        views["preserve"] = perturb(pixels, mask, batch.baseline)
    if config.complement:
        views["complement"] = perturb(pixels, 1 - mask, batch.baseline)
    together = explainer.classifier(explainee.normalise(torch.cat(list(views.values())))).float()
    logits = dict(zip(views, together.split(len(pixels)), strict=True))
    kept, removed = logits.get("preserve"), logits.get("complement")
    losses = total_loss(kept, removed, mask, plain.target[:, 0], config, batch.elsewhere)
    return losses, {name: views.get(name, mask) for name in losses.terms}


def _objects(explainer: LTXExplainer, images: Tensor) -> Tensor:
    mask: Tensor = explainer.upsample(explainer.predict(images).selection.float())
    return mask


LTX = TrainedMethod("ltx", TERMS, LTXConfig, build_ltx, _losses, _objects)
