"""Masks whose area is what was asked for, exactly: the logits are shifted until the mean of the mask is the area.

No weight of a penalty has to be found for it, and it holds at every resolution, for areas never trained, and inside a
graph without autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .network import logit

__all__ = ["masks_of_area", "shift_of_area"]

_ROUNDS, _PARTS = 5, 8  # the interval in which the shift lies is cut into so many parts, so often: 8⁵ in all
_MOST = 0.999  # of the free pixels that a mask may take


def masks_of_area(logits: Tensor, areas: Tensor, free: Tensor | None = None) -> Tensor:
    """Masks σ(z − t), where t is the number with which the mean of the mask is the area.

    Args:
        logits: z, (N, A, P).
        areas: (A,) in (0, 1), of all P pixels.
        free: where a mask may lie, (N, 1, P) in [0, 1]; None for everywhere. Where less is free than the area asks for,
            the mask takes nearly all of it.

    Returns:
        (N, A, P) in [0, 1].
    """
    masks = (logits - shift_of_area(logits, areas, free)).sigmoid()
    return masks if free is None else masks * free


def shift_of_area(logits: Tensor, areas: Tensor, free: Tensor | None = None) -> Tensor:
    """T of `masks_of_area`, (N, A, 1).

    An interval that holds t is cut into parts, all of them tried at once, and the one taken in which the area passes
    what is asked for; one Newton step then gives t its last digits and its gradient, that of the implicit function,
    dt/dz_i = σ'(z_i − t) / Σ_j σ'(z_j − t).
    """
    fixed = logits.detach()
    share = areas[:, None].expand(fixed.shape[0], -1, 1)
    if free is not None:
        share = torch.minimum(share / free.mean(2, keepdim=True).clamp_min(1e-6), share.new_tensor(_MOST))
        weights = free / free.sum(2, keepdim=True).clamp_min(1e-6)
    low = fixed.amin(2, keepdim=True) - logit(share)  # every pixel is at least the share there, at most it here:
    width = fixed.amax(2, keepdim=True) - logit(share) - low
    inner = torch.arange(1, _PARTS, dtype=fixed.dtype, device=fixed.device)[:, None]  # (parts − 1, 1)
    for _ in range(_ROUNDS):
        width = width / _PARTS
        tried = (fixed[:, :, None] - (low[:, :, None] + width[:, :, None] * inner)).sigmoid()  # (N, A, parts − 1, P)
        found = tried.mean(3) if free is None else (tried * weights[:, :, None]).sum(3)
        low = low + width * (found > share).to(fixed.dtype).sum(2, keepdim=True)
    shift = low + width / 2
    masks = (logits - shift).sigmoid()
    slopes = (masks * (1 - masks)).detach()
    if free is None:
        return shift + (masks.mean(2, keepdim=True) - share) / slopes.mean(2, keepdim=True).clamp_min(1e-6)
    excess = (weights * masks).sum(2, keepdim=True) - share
    return shift + excess / (weights * slopes).sum(2, keepdim=True).clamp_min(1e-6)
