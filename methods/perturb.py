"""Perturbation of images by masks, and the baselines that replace what a mask does not keep.

Images here are float (N, 3, H, W) with values in [0, 1], before normalisation; masks are (N, 1, H, W), 1 keeps the
pixel. A baseline is an image, or a pyramid (N, L, 3, H, W): images from the least to the most blurred one, through
which a pixel goes as its mask falls (Fong et al. 2019), so that half a mask is a sharper image than half of a blur.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError, suggest

__all__ = ["BASELINES", "REPLACEMENTS", "Baseline", "checked_replacement", "make_baseline", "one_each", "perturb"]

Baseline = Literal["black", "mean", "blur"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
REPLACEMENTS = (*BASELINES, "pyramid")  # or a colour
_COLOUR = re.compile("#[0-9a-fA-F]{6}")
_LEVELS = 8  # of a pyramid, the image itself among them


def perturb(images: Tensor, mask: Tensor, baseline: Tensor) -> Tensor:
    """``mask · images + (1 − mask) · baseline``; pass ``1 − mask`` to remove what the mask keeps.

    With a pyramid, linear between the two levels next to (1 − mask) · (L − 1).
    """
    if baseline.ndim == images.ndim + 1:
        steps = baseline.shape[1] - 1
        position = (1 - mask) * steps
        low = position.detach().floor().clamp(0, steps - 1)
        part = position - low
        levels = torch.arange(steps, dtype=mask.dtype, device=mask.device)[:, None, None, None]
        here = (levels == low[:, None]).to(mask.dtype)  # (N, L − 1, 1, H, W): one of them for each pixel
        part = part[:, None]
        return (here * ((1 - part) * baseline[:, :-1] + part * baseline[:, 1:])).sum(1)
    return mask * images + (1 - mask) * baseline  # in this form exact at 0 and 1


def checked_replacement(kind: str) -> str:
    """The kind of baseline as it is.

    Raises:
        UsageError: it is neither one of `REPLACEMENTS` nor a colour such as ``#808080``.
    """
    if kind not in REPLACEMENTS and not _COLOUR.fullmatch(kind):
        raise UsageError(f"unknown baseline '{kind}', nor is it a colour like #808080; {suggest(kind, REPLACEMENTS)}")
    return kind


def make_baseline(images: Tensor, kind: str, mean: Sequence[float]) -> Tensor:
    """What replaces a removed pixel: black (as published for LTX), the mean colour of the training data, another colour
    (``#rrggbb``), the blurred image, or a pyramid of eight images from the image itself to that one, of standard
    deviations in equal steps.

    Args:
        images: (N, 3, H, W) in [0, 1].
        kind: which baseline.
        mean: mean colour per channel, for ``kind="mean"``.

    Returns:
        (N, 3, H, W) or a shape that broadcasts to it; of a pyramid (N, L, 3, H, W).
    """
    if kind == "black":
        return images.new_zeros(1, 3, 1, 1)
    if kind == "mean":
        return images.new_tensor(tuple(mean)).view(1, 3, 1, 1)
    if kind == "blur":
        return _gaussian_blur(images, sigma=images.shape[-1] / 16)
    if kind == "pyramid":
        widths = [images.shape[-1] / 16 * level / (_LEVELS - 1) for level in range(1, _LEVELS)]
        return torch.stack([images, *(_gaussian_blur(images, sigma) for sigma in widths)], 1)
    red_green_blue = bytes.fromhex(checked_replacement(kind)[1:])
    return images.new_tensor(tuple(red_green_blue)).view(1, 3, 1, 1) / 255


def one_each(baseline: Tensor, count: int) -> Tensor:
    """A baseline with an entry for each of so many images, so that it can be indexed by the image."""
    return baseline.expand(count, *baseline.shape[1:])


def _gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    radius = max(1, round(3 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1)
    padded = F.pad(images, (radius, radius, radius, radius), mode="replicate")
    rows = F.conv2d(padded, kernel[:, :, :, None], groups=images.shape[1])
    return F.conv2d(rows, kernel[:, :, None, :], groups=images.shape[1])
