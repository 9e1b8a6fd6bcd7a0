"""Bilinear sampling on a regular grid as products with constant matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["bilinear_shares"]


def bilinear_shares(grid: Sequence[int], size: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
    """How much each row and column of a map counts at each row and column of an image: (H, h) and (W, w).

    Beyond the centres of its outermost cells a map goes on as there.

    Args:
        grid: (h, w).
        size: (H, W).
        like: of the device wanted, and of the precision if that is single at least.
    """
    precision = torch.promote_types(like.dtype, torch.float32)

    def shares(cells: int, places: int) -> Tensor:
        at = torch.arange(places, dtype=precision, device=like.device)
        centre = (cells * (2 * at + 1) / (2 * places) - 0.5).clamp(0, cells - 1)
        cell = torch.arange(cells, dtype=precision, device=like.device)
        return (1 - (centre[:, None] - cell).abs()).clamp_min(0)

    return shares(grid[0], size[0]), shares(grid[1], size[1])
