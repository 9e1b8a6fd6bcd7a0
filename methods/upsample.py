"""Up-sampling and smoothing of masks in a form that every engine runs fast: small matrix products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BilinearUpsample", "BinomialBlur", "interpolation_matrix", "sample_maps", "sampling_matrix"]

_BELOW_ONE = 1 - 2**-22  # so that rounding lifts no mask above 1
_ONE_THREAD = 2**16  # multiplications of a product that ONNX Runtime gives to one thread: to wake two costs more


class BilinearUpsample(nn.Module):
    """Bilinear up-sampling (align_corners=False) of one-channel maps, as two small matrix products: rows, then columns.

    The same weights as `F.interpolate`; cheaper than Resize in ONNX Runtime, and native to every engine.

    Args:
        source: (height, width) of the maps.
        size: (height, width) of the result.
        scale: all values times this.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, source: tuple[int, int], size: tuple[int, int], scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("rows", scale * _BELOW_ONE * interpolation_matrix(source[0], size[0]), persistent=False)
        self.register_buffer("columns", interpolation_matrix(source[1], size[1]).T.contiguous(), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, 1, h, w) to (N, 1, H, W)."""
        wide = maps @ self.columns
        pieces = -(-self.rows.numel() * self.columns.shape[1] // _ONE_THREAD)
        if pieces > 2:
            return self.rows @ wide
        half = -(-len(self.rows) // pieces)
        return torch.cat([self.rows[start : start + half] @ wide for start in range(0, len(self.rows), half)], 2)


class BinomialBlur(nn.Module):
    """Mean of each position's 3×3 neighbourhood with the weights [1, 2, 1]/4 along either axis; what lies beyond the
    border is as the border.

    Args:
        size: (height, width) of the maps.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("rows", _binomial_matrix(size[0]), persistent=False)
        self.register_buffer("columns", _binomial_matrix(size[1]).T.contiguous(), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (N, C, h, w) to the same shape."""
        return self.rows @ (maps @ self.columns)


def _binomial_matrix(size: int) -> Tensor:
    weights = torch.zeros(size, size)
    for position in range(size):
        for offset, weight in ((-1, 0.25), (0, 0.5), (1, 0.25)):
            weights[position, min(max(position + offset, 0), size - 1)] += weight
    return weights


def interpolation_matrix(source: int, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Weights (size, source) of bilinear interpolation (align_corners=False) along one axis."""
    identity = torch.eye(source, dtype=dtype).reshape(source, 1, source, 1)
    stretched = F.interpolate(identity, size=(size, 1), mode="bilinear", align_corners=False)
    return stretched.reshape(source, size).T.contiguous()


def sampling_matrix(places: Tensor, source: int) -> Tensor:
    """Weights (P, source) of bilinear interpolation along one axis at any places.

    Args:
        places: (P,) in (−1, 1) from edge to edge, as of `grid_of_points`; beyond the outer pixels' centres these hold.
        source: number of pixels.
    """
    position = ((places + 1) / 2 * source - 0.5).clamp(0, source - 1)
    pixels = torch.arange(source, dtype=places.dtype, device=places.device)
    return (1 - (position[:, None] - pixels).abs()).clamp_min(0)


def sample_maps(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Bilinear values of maps (N, A, h, w) at the crossings of rows, y (H,), and columns, x (W,), both in (−1, 1):
    (N, A, H, W).

    What is linear between its points has the same mean at every resolution.
    """
    height, width = int(maps.shape[2]), int(maps.shape[3])
    return sampling_matrix(rows, height) @ (maps @ sampling_matrix(columns, width).T)
