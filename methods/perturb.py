"""Perturbation of images by masks, and the baselines that replace what a mask does not keep.

Images here are float (N, 3, H, W) with values in [0, 1], before normalisation; masks are (N, 1, H, W), 1 keeps the
pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError

__all__ = ["BASELINES", "Baseline", "make_baseline", "perturb"]

Baseline = Literal["black", "mean", "blur"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)


def perturb(images: Tensor, mask: Tensor, baseline: Tensor) -> Tensor:
    """``mask · images + (1 − mask) · baseline``; pass ``1 − mask`` to remove what the mask keeps."""
    return mask * images + (1 - mask) * baseline  # in this form exact at 0 and 1


def make_baseline(images: Tensor, kind: Baseline, mean: Sequence[float]) -> Tensor:
    """What replaces a removed pixel: black (as published for LTX), the mean colour of the training data, or the
    blurred image.

    Args:
        images: (N, 3, H, W) in [0, 1].
        kind: which baseline.
        mean: mean colour per channel, for ``kind="mean"``.

    Returns:
        (N, 3, H, W) or a shape that broadcasts to it.
    """
    if kind == "black":
        return images.new_zeros(1, 3, 1, 1)
    if kind == "mean":
        return images.new_tensor(tuple(mean)).view(1, 3, 1, 1)
    if kind == "blur":
        return _gaussian_blur(images, sigma=images.shape[-1] / 16)
    raise UsageError(f"unknown baseline '{kind}'; there are: {', '.join(BASELINES)}")


def _gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    radius = max(1, round(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1)
    padded = F.pad(images, (radius, radius, radius, radius), mode="replicate")
    rows = F.conv2d(padded, kernel[:, :, :, None], groups=images.shape[1])
    return F.conv2d(rows, kernel[:, :, None, :], groups=images.shape[1])
