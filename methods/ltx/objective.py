"""LTX as a method that is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from ..perturb import branches_of, by_branch
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
    branches = branches_of(config.preserve > 0, config.complement > 0)
    shown = by_branch(branches, explainee.perturbed(pixels, mask, batch.baseline, branches))
    views = {name: view for name, view in zip(("preserve", "complement"), shown, strict=True) if view is not None}
    kept, removed = by_branch(branches, explainer.classifier(torch.cat(list(views.values()))).float())
    losses = total_loss(kept, removed, mask, plain.target[:, 0], config, batch.elsewhere)
    return losses, {name: views.get(name, mask) for name in losses.terms}


def _objects(explainer: LTXExplainer, images: Tensor) -> Tensor:
    mask: Tensor = explainer.upsample(explainer.predict(images).selection.float())
    return mask


LTX = TrainedMethod("ltx", TERMS, LTXConfig, build_ltx, _losses, _objects)
