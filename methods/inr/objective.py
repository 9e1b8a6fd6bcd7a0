"""What a mask of a given area is asked to do: the objective of extremal perturbations (Fong et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import Objective

__all__ = ["area_loss", "evidence_loss", "sorted_reference"]


def sorted_reference(areas: Tensor, pixels: int) -> Tensor:
    """The sorted values of ideal masks, (A, P): zeros, then ones, so many that the mean is the area; the pixel between
    them takes what is left over.
    """
    rank = torch.arange(pixels, device=areas.device, dtype=areas.dtype)
    return (rank[None] - (pixels * (1 - areas)[:, None] - 1)).clamp(0, 1)


def area_loss(masks: Tensor, reference: Tensor) -> Tensor:
    """Mean squared distance of the sorted values of a mask from those of an ideal one: its area is the one asked for,
    and no pixel is grey.

    Args:
        masks: (N, A, P).
        reference: (A, P), see `sorted_reference`.

    Returns:
        (N, A).
    """
    return (masks.sort(dim=2).values - reference).square().mean(2)


def evidence_loss(
    kept: Tensor | None, removed: Tensor | None, target: Tensor, objective: Objective, *, odds: bool = False
) -> Tensor:
    """−log p of the class where only what a mask keeps is shown; −log(1 − p) where all else is; or half their sum.

    With odds −log p/(1 − p) and its opposite: the same while the class is far from what is asked, but a mask that is
    enough is still told which pixels matter, where −log p no longer changes.

    Args:
        kept: logits (M, K) of what is kept; None for the objective ``"delete"``.
        removed: logits of the rest; None for ``"preserve"``.
        target: int64 (M,).
        objective: which.
        odds: log odds in place of log probabilities.

    Returns:
        (M,).
    """
    terms = []
    if objective != "delete":
        assert kept is not None, "the objective is about what is kept"
        if odds:
            own = kept.gather(1, target[:, None])[:, 0]
            terms.append(_of_others(kept, target) - own)
        else:
            terms.append(-kept.log_softmax(1).gather(1, target[:, None])[:, 0])
    if objective != "preserve":
        assert removed is not None, "the objective is about what is removed"
        still = removed.gather(1, target[:, None])[:, 0] if odds else removed.logsumexp(1)
        terms.append(still - _of_others(removed, target))
    return torch.stack(terms).mean(0)


def _of_others(logits: Tensor, target: Tensor) -> Tensor:
    """The logit of all other classes together, (M,)."""
    return logits.scatter(1, target[:, None], -torch.inf).logsumexp(1)
