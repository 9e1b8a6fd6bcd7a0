"""Perturbation of images by masks, and the baselines that replace what a mask does not keep.

Images here are float (N, 3, H, W) with values in [0, 1], before normalisation; masks are (N, A, H, W), 1 keeps the
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
from ..kernels.mask_blend import Branches, mask_blend

__all__ = [
    "BASELINES",
    "REPLACEMENTS",
    "Baseline",
    "branches_of",
    "by_branch",
    "checked_replacement",
    "make_baseline",
    "one_each",
    "perturb",
]

Baseline = Literal["black", "mean", "blur"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
REPLACEMENTS = (*BASELINES, "pyramid")  # or a colour
_COLOUR = re.compile("#[0-9a-fA-F]{6}")
_LEVELS = 8  # of a pyramid, the image itself among them


def perturb(
    images: Tensor,
    masks: Tensor,
    baseline: Tensor,
    branches: Branches = "keep",
    *,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    dtype: torch.dtype | None = None,
) -> Tensor:
    """What each mask keeps of its image, what it removes, or both: m·x + (1 − m)·b, and the same with 1 − m.

    With a pyramid, linear between the two levels next to (1 − m) · (L − 1).

    Args:
        images: (N, 3, H, W) in [0, 1].
        masks: (N, A, H, W); gradients go to them alone.
        baseline: see `make_baseline`.
        branches: what is kept (``"keep"``), what is removed (``"remove"``), or ``"both"``.
        mean: per channel, subtracted from the result.
        std: per channel, that the result is divided by.
        dtype: of the result; that of the masks by default.

    Returns:
        (B·N·A, 3, H, W): kept before removed, image by image, mask by mask.
    """
    if baseline.ndim == images.ndim:
        return mask_blend(images, masks, baseline, mean=mean, std=std, branches=branches, dtype=dtype)
    each = masks.flatten(0, 1)[:, None]
    levels = baseline if len(baseline) == 1 else baseline.repeat_interleave(masks.shape[1], 0)
    kept = {"keep": [each], "remove": [1 - each], "both": [each, 1 - each]}[branches]
    shown = torch.cat([_in_pyramid(mask, levels) for mask in kept])
    of_channel = (3, 1, 1)
    shown = (shown - shown.new_tensor(mean).view(of_channel)) / shown.new_tensor(std).view(of_channel)
    return shown.to(dtype or masks.dtype)


def branches_of(keep: bool, remove: bool) -> Branches:
    """The branches of `perturb` for what a loss asks about: what masks keep, what they remove, or both."""
    return "both" if keep and remove else "keep" if keep else "remove"


def by_branch(branches: Branches, answers: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """What belongs to what is kept and to what is removed, such as a classifier's answers; None of a branch that is not
    there.
    """
    first, last = answers.tensor_split(2) if branches == "both" else (answers, answers)
    return (None if branches == "remove" else first, None if branches == "keep" else last)


def _in_pyramid(mask: Tensor, pyramid: Tensor) -> Tensor:
    """The images (M, 3, H, W) between the levels of pyramids (1 or M, L, 3, H, W) that masks (M, 1, H, W) ask for."""
    steps = pyramid.shape[1] - 1
    position = (1 - mask) * steps
    low = position.detach().floor().clamp(0, steps - 1)
    part = (position - low)[:, None]
    levels = torch.arange(steps, dtype=mask.dtype, device=mask.device)[:, None, None, None]
    here = (levels == low[:, None]).to(mask.dtype)  # (M, L − 1, 1, H, W): one of them for each pixel
    return (here * ((1 - part) * pyramid[:, :-1] + part * pyramid[:, 1:])).sum(1)


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
