"""What `explain_finish` computes, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..bilinear import bilinear_shares

__all__ = ["explain_finish_reference"]


def explain_finish_reference(
    maps: Tensor, low: Tensor, high: Tensor, images: Tensor, table: Tensor, outline: float
) -> tuple[Tensor, Tensor]:
    """The masks (N, H, W), in single precision at least, and the pictures, uint8 (N, H, W, 3); see `explain_finish`."""
    precision = torch.promote_types(maps.dtype, torch.float32)
    start, reach = low.to(precision)[:, None, None], (high - low).to(precision)[:, None, None]
    scaled = ((maps.to(precision) - start) / reach).clamp(0, 1)
    down, across = bilinear_shares(maps.shape[1:], images.shape[1:3], scaled)
    masks = down @ scaled @ across.mT
    grey = (images.to(precision) @ images.new_tensor([0.299, 0.587, 0.114], dtype=precision))[..., None] * 0.85 + 12
    opacity = 0.75 * masks.pow(0.7)[..., None]
    colours = table[(masks * 255 + 0.5).long().clamp(0, 255)].to(precision)
    blended = (1 - opacity) * grey + opacity * colours * (0.55 + 0.45 * grey / 255)
    blended = torch.where(_edge(masks > outline)[..., None], 255, blended)
    return masks, (blended.clamp(0, 255) + 0.5).to(torch.uint8)


def _edge(inside: Tensor) -> Tensor:
    """Pixels just inside the border of a region, (N, H, W)."""
    core = inside.clone()
    core[:, 1:] &= inside[:, :-1]
    core[:, :-1] &= inside[:, 1:]
    core[:, :, 1:] &= inside[:, :, :-1]
    core[:, :, :-1] &= inside[:, :, 1:]
    return inside & ~core
