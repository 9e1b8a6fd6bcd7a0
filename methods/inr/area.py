"""Masks whose area is what was asked for, exactly: the logits are shifted until the mean of the mask is the area.

No weight of a penalty has to be found for it, and it holds at every resolution, for areas never trained, and inside a
graph without autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .network import logit

__all__ = ["masks_of_area"]

_HALVINGS = 24  # of the interval in which the shift lies
_MOST = 0.999  # of the free pixels that a mask may take


def masks_of_area(logits: Tensor, areas: Tensor, free: Tensor | None = None) -> Tensor:
    """Masks σ(z − t), where t is the number with which the mean of the mask is the area.

    t is found by bisection; one Newton step then gives it its gradient, that of the implicit function,
    dt/dz_i = σ'(z_i − t) / Σ_j σ'(z_j − t).

    Args:
        logits: z, (N, A, P).
        areas: (A,) in (0, 1), of all P pixels.
        free: where a mask may lie, (N, 1, P) in [0, 1]; None for everywhere. Where less is free than the area asks for,
            the mask takes nearly all of it.

    Returns:
        (N, A, P) in [0, 1].
    """
    fixed = logits.detach()
    share = areas[:, None].expand(fixed.shape[0], -1, 1)
    if free is not None:
        share = torch.minimum(share / free.mean(2, keepdim=True).clamp_min(1e-6), share.new_tensor(_MOST))
        weights = free / free.sum(2, keepdim=True).clamp_min(1e-6)
    else:
        weights = fixed.new_full((1, 1, 1), 1 / fixed.shape[2])
    low = fixed.amin(2, keepdim=True) - logit(share)  # every pixel is at least the share there, at most it here:
    high = fixed.amax(2, keepdim=True) - logit(share)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = (weights * (fixed - middle).sigmoid()).sum(2, keepdim=True) > share
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    shift = (low + high) / 2
    masks = (fixed - shift).sigmoid()
    slope = (weights * masks * (1 - masks)).sum(2, keepdim=True).clamp_min(1e-6)
    shift = shift + ((weights * (logits - shift).sigmoid()).sum(2, keepdim=True) - share) / slope
    found = (logits - shift).sigmoid()
    return found if free is None else found * free
