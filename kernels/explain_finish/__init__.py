"""From the map of a method to the mask of an image and a picture of it, in one pass; see README.md."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...errors import UsageError
from ..arguments import about, require_device
from ..dispatch import kernel_op
from .reference import explain_finish_reference

__all__ = ["Scale", "explain_finish"]

Scale = Literal["none", "largest", "range"]

_forward = kernel_op("explain_finish", explain_finish_reference)


def explain_finish(
    maps: Tensor,
    images: Tensor,
    table: Tensor,
    *,
    scale: Scale | float = "largest",
    outline: float | None = 0.5,
) -> tuple[Tensor, Tensor]:
    """Scale maps to masks in [0, 1], enlarge them bilinearly, and lay them over their images in colour.

    Args:
        maps: what a method found, (N, h, w).
        images: uint8 (N, H, W, 3).
        table: the colours of 0 to 1, uint8 (256, 3).
        scale: what becomes 1 and 0: the largest value and zero (``"largest"``), the largest and the smallest
            (``"range"``), 1 and 0 themselves (``"none"``), or that share of the values, such as 0.99, and zero: what is
            larger is 1 as well.
        outline: white where the mask crosses this value; None for no line.

    Returns:
        Masks, (N, H, W), in single precision at least, and pictures, uint8 (N, H, W, 3): the image in grey where its
        mask is 0.

    Raises:
        UsageError: an argument of another shape, dtype or device.
    """
    if maps.ndim != 3 or not maps.numel() or not maps.is_floating_point():
        raise UsageError(f"maps are floating point (N, h, w) and not empty, not {about(maps)}")
    if images.ndim != 4 or images.shape[0] != len(maps) or images.shape[3] != 3 or images.dtype != torch.uint8:
        raise UsageError(f"images are uint8 ({len(maps)}, H, W, 3), not {about(images)}")
    if not images.numel():
        raise UsageError(f"images have at least one pixel, not {about(images)}")
    if table.shape != (256, 3) or table.dtype != torch.uint8:
        raise UsageError(f"table is uint8 (256, 3), not {about(table)}")
    require_device(maps, "maps", images=images, table=table)
    maps = maps.detach()
    low, high = _ends(maps, scale)
    line = 2.0 if outline is None else outline  # which no mask crosses
    masks, pictures = _forward(maps, low, torch.where(high > low, high, low + 1), images, table, line)
    return masks, pictures


def _ends(maps: Tensor, scale: Scale | float) -> tuple[Tensor, Tensor]:
    """What becomes 0 and 1 of each map, (N,)."""
    precision = torch.promote_types(maps.dtype, torch.float32)
    flat = maps.flatten(1).to(precision)
    zero = flat.new_zeros(len(flat))
    if scale == "none":
        return zero, zero + 1
    if scale == "largest":
        return zero, flat.amax(1)
    if scale == "range":
        return flat.amin(1), flat.amax(1)
    if not isinstance(scale, (int, float)) or not 0 < scale <= 1:
        raise UsageError(f"scale is 'none', 'largest', 'range' or a share in (0, 1], not {scale!r}")
    return zero, flat.quantile(scale, dim=1)
