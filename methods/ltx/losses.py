"""What LTX training minimises."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import AreaForm, LTXConfig

__all__ = ["LTXLosses", "area_loss", "complement_loss", "preserve_loss", "total_loss"]


@dataclass(frozen=True)
class LTXLosses:
    """The terms before weighting, and their weighted sum; scalars, means over the batch."""

    preserve: Tensor
    complement: Tensor
    area: Tensor
    total: Tensor

    def detached(self) -> LTXLosses:
        """The same numbers without their graphs."""
        return LTXLosses(self.preserve.detach(), self.complement.detach(), self.area.detach(), self.total.detach())


def preserve_loss(kept_logits: Tensor, target: Tensor) -> Tensor:
    """CE(f(x ∘ m), y): what the mask keeps must be enough for the target class (Barkan et al. 2023)."""
    return F.cross_entropy(kept_logits, target)


def complement_loss(removed_logits: Tensor, target: Tensor) -> Tensor:
    """−log(1 − p_y(x ∘ (1 − m))): without what the mask keeps, the target class must go.

    The counterfactual term of the paper, in a form that is bounded below and whose gradient fades once the class is
    gone; −CE, its literal form, rewards driving the probability to zero without end.
    """
    others = removed_logits.masked_fill(F.one_hot(target, removed_logits.shape[1]).bool(), float("-inf"))
    return (removed_logits.logsumexp(1) - others.logsumexp(1)).mean()


def area_loss(mask: Tensor, form: AreaForm) -> Tensor:
    """Mean of the mask, or of softplus(mask): the published "BCE against 0" of values already in (0, 1)."""
    return mask.mean() if form == "l1" else F.softplus(mask).mean()


def total_loss(
    kept_logits: Tensor, removed_logits: Tensor | None, mask: Tensor, target: Tensor, config: LTXConfig
) -> LTXLosses:
    """The weighted sum of the terms; pass no removed logits where the complement term is off."""
    preserve = preserve_loss(kept_logits, target)
    complement = torch.zeros_like(preserve) if removed_logits is None else complement_loss(removed_logits, target)
    area = area_loss(mask, config.area_form)
    total = config.preserve * preserve + config.complement * complement + config.area * area
    return LTXLosses(preserve, complement, area, total)
