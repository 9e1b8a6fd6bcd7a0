"""What `integration_path` computes, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..strides import path_layout

__all__ = ["integration_path_reference"]


def integration_path_reference(
    end: Tensor,
    baseline: Tensor | None,
    points: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """(r + a·(u − r) − μ) / σ at every point a, (S·N, C, …); see `integration_path`."""
    precision, layout = torch.promote_types(dtype, torch.float32), path_layout(end)
    if end.dtype == torch.uint8:
        end = end.movedim(-1, 1).to(precision) / 255
    end = end.to(precision)
    scale = points.to(precision).reshape(-1, *[1] * end.ndim)
    if baseline is None:
        path = (scale * end[None]).flatten(0, 1)
    else:
        start = baseline.to(precision)
        path = (start[None] + scale * (end - start)[None]).flatten(0, 1)
    if mean:
        of_channel = (-1, *[1] * (end.ndim - 2))
        path = (path - path.new_tensor(mean).view(of_channel)) / path.new_tensor(std).view(of_channel)
    return path.to(dtype).contiguous(memory_format=layout)
