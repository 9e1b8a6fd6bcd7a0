"""All points of the straight path from a baseline to images, feature maps or attention matrices; see README.md."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import UsageError
from ..arguments import about, require_device, require_floating
from ..dispatch import kernel_op
from .reference import integration_path_reference

__all__ = ["integration_path"]

_forward = kernel_op("integration_path", integration_path_reference)


def integration_path(
    end: Tensor,
    points: Tensor,
    baseline: Tensor | None = None,
    *,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    dtype: torch.dtype | None = None,
) -> Tensor:
    """R + a·(u − r) at every point a of a path, normalised if wanted, written once.

    A path of several dimensions (iterated integrals) is one whose ends are already those of the points of the outer
    path: M = S₀·N of them, of which each gets its own points. Gradients begin at the points, and do not go through
    them.

    Args:
        end: u, (N, C, …); or uint8 images (N, H, W, 3).
        points: a, (S,).
        baseline: r, of the shape of u or one that broadcasts to it; None for zeros.
        mean: subtracted, of three channels; empty for none.
        std: divided by.
        dtype: of the result; that of `end` by default, of bytes float32.

    Returns:
        (S·N, C, …), point by point, in the memory format of `end`.

    Raises:
        UsageError: an argument of another shape, dtype or device.
    """
    require_floating(dtype)
    bytes_in = end.dtype == torch.uint8
    if end.ndim < 3 or not end.numel() or not (bytes_in or end.is_floating_point()):
        raise UsageError(f"end is floating point (N, C, …) or uint8 (N, H, W, 3), and not empty, not {about(end)}")
    if bytes_in and (end.ndim != 4 or end.shape[3] != 3):
        raise UsageError(f"an end of bytes is (N, H, W, 3), not {about(end)}")
    shape = end.movedim(-1, 1).shape if bytes_in else end.shape
    if points.ndim != 1 or not points.numel() or not points.is_floating_point():
        raise UsageError(f"points are floating point (S,), not {about(points)}")
    wanted = dtype or (torch.float32 if bytes_in else end.dtype)
    require_device(end, "end", points=points)
    if baseline is not None:
        baseline = _checked_baseline(baseline, end, shape)
    if len(mean) != len(std) or len(mean) not in (0, 3) or (mean and shape[1] != 3) or not all(std):
        raise UsageError(f"mean and std are three numbers for three channels, or none, not {mean} and {std}")
    result: Tensor = _forward(end.detach(), baseline, points.detach(), mean, std, wanted)
    return result


def _checked_baseline(baseline: Tensor, end: Tensor, shape: torch.Size) -> Tensor:
    fits = baseline.ndim == len(shape) and all(
        own in (1, size) for own, size in zip(baseline.shape, shape, strict=True)
    )
    if not fits or not baseline.is_floating_point():
        raise UsageError(f"baseline is floating point and broadcasts to {tuple(shape)}, not {about(baseline)}")
    require_device(end, "end", baseline=baseline)
    if baseline.shape[2:].numel() > 1:
        baseline = baseline.expand(-1, -1, *shape[2:])
    return baseline.detach()
