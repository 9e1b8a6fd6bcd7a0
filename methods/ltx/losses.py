"""What LTX training minimises. Every term is one number per image; the batch's loss is their mean."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from ..training.explainer import Losses, weighted
from .config import AreaForm, LTXConfig

__all__ = [
    "TERMS",
    "area_loss",
    "complement_loss",
    "elsewhere_loss",
    "entropy_loss",
    "preserve_loss",
    "total_loss",
]

TERMS = ("preserve", "complement", "area", "entropy", "elsewhere")


def preserve_loss(kept_logits: Tensor, target: Tensor) -> Tensor:
    """CE(f(x ∘ m), y), (N,): what the mask keeps must be enough for the target class (Barkan et al. 2023)."""
    return F.cross_entropy(kept_logits, target, reduction="none")


def complement_loss(removed_logits: Tensor, target: Tensor) -> Tensor:
    """−log(1 − p_y(x ∘ (1 − m))), (N,): without what the mask keeps, the target class must go.

    The counterfactual term of the paper, in a form that is bounded below and whose gradient fades once the class is
    gone; −CE, its literal form, rewards driving the probability to zero without end.
    """
    others = removed_logits.masked_fill(F.one_hot(target, removed_logits.shape[1]).bool(), float("-inf"))
    return removed_logits.logsumexp(1) - others.logsumexp(1)


def area_loss(mask: Tensor, form: AreaForm) -> Tensor:
    """Mean over each mask's pixels, (N,), of m, or of softplus(m): the published "BCE against 0" of values already in
    (0, 1).
    """
    return (mask if form == "l1" else F.softplus(mask)).flatten(1).mean(1)


def entropy_loss(mask: Tensor) -> Tensor:
    """Mean over each mask's pixels, (N,), of −(m log₂ m + (1 − m) log₂(1 − m)): 0 where every pixel is kept or
    removed, 1 where every pixel is half kept.
    """
    inside = mask.clamp(1e-6, 1 - 1e-6)  # the slope is infinite at 0 and 1
    bits = -(inside * inside.log() + (1 - inside) * (-inside).log1p()) / math.log(2)
    return bits.flatten(1).mean(1)


def elsewhere_loss(mask: Tensor, elsewhere: Tensor) -> Tensor:
    """Mean over each mask's pixels, (N,), of −log(1 − m) where `elsewhere` is 1: nothing is kept there."""
    return -(elsewhere * (-mask.float().clamp_max(1 - 1e-6)).log1p()).flatten(1).mean(1)  # half precision rounds to 1


def total_loss(
    kept_logits: Tensor | None,
    removed_logits: Tensor | None,
    mask: Tensor,
    target: Tensor,
    config: LTXConfig,
    elsewhere: Tensor | None = None,
) -> Losses:
    """The losses of a batch; pass no logits for a term that is off, and where nothing may be kept, if that is known."""
    terms: dict[str, Tensor] = {}
    if kept_logits is not None:
        terms["preserve"] = preserve_loss(kept_logits, target)
    if removed_logits is not None:
        terms["complement"] = complement_loss(removed_logits, target)
    if config.area:
        terms["area"] = area_loss(mask, config.area_form)
    if config.entropy:
        terms["entropy"] = entropy_loss(mask)
    if config.elsewhere and elsewhere is not None:
        terms["elsewhere"] = elsewhere_loss(mask, elsewhere)
    return weighted(terms, config)
