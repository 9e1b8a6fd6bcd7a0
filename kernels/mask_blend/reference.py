"""What `mask_blend` computes, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["mask_blend_backward_reference", "mask_blend_reference"]


def mask_blend_reference(
    images: Tensor,
    masks: Tensor,
    baseline: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    keep: bool,
    remove: bool,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """(m·x + (1 − m)·b − μ) / σ of what a mask keeps, the same with 1 − m of what it removes; see `mask_blend`."""
    pixels, mask, background = _in_masks_precision(images, masks, baseline)
    centre, width = pixels.new_tensor(mean).view(3, 1, 1), pixels.new_tensor(std).view(3, 1, 1)
    shown, behind = (pixels - centre) / width, (background - centre) / width  # few, beside what masks make of them
    parts = []
    if keep:
        parts.append(torch.lerp(behind, shown, mask))  # exact at 0 and 1
    if remove:
        parts.append(torch.lerp(shown, behind, mask))
    blended = (parts[0] if len(parts) == 1 else torch.stack(parts)).flatten(0, -4)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return blended.to(dtype).contiguous(memory_format=layout)


def mask_blend_backward_reference(
    gradient: Tensor, images: Tensor, masks: Tensor, baseline: Tensor, std: Sequence[float], keep: bool, remove: bool
) -> Tensor:
    """Σ_c (x − b)/σ · (g of what is kept − g of what is removed), (N, A, H, W)."""
    pixels, _, background = _in_masks_precision(images, masks, baseline)
    slope = (pixels - background) / pixels.new_tensor(std).view(3, 1, 1)
    parts = gradient.to(slope.dtype).reshape(keep + remove, *masks.shape[:2], 3, *masks.shape[2:])
    towards = parts[0] - parts[1] if keep and remove else parts[0] if keep else -parts[0]
    return (towards * slope).sum(2).to(masks.dtype)


def _in_masks_precision(images: Tensor, masks: Tensor, baseline: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels (N, 1, 3, H, W) and baseline in [0, 1], and masks (N, A, 1, H, W), in single precision at least."""
    precision = torch.promote_types(masks.dtype, torch.float32)
    pixels = images.permute(0, 3, 1, 2).to(precision) / 255 if images.dtype == torch.uint8 else images.to(precision)
    return pixels[:, None], masks.to(precision)[:, :, None], baseline.to(precision)[:, None]
