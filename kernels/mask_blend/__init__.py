"""What masks keep and remove of images, normalised for the classifier, in one pass; see README.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ...errors import UsageError
from ..arguments import about, require_device, require_floating
from ..dispatch import kernel_op
from .reference import mask_blend_backward_reference, mask_blend_reference

__all__ = ["Branches", "mask_blend"]

Branches = Literal["keep", "remove", "both"]

_forward = kernel_op("mask_blend", mask_blend_reference)
_backward = kernel_op("mask_blend_backward", mask_blend_backward_reference)


def mask_blend(
    images: Tensor,
    masks: Tensor,
    baseline: Tensor,
    *,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    branches: Branches = "keep",
    dtype: torch.dtype | None = None,
    channels_last: bool = False,
) -> Tensor:
    """What each mask keeps of its image, what it removes, or both, over a baseline and normalised.

    Gradients go to the masks.

    Args:
        images: uint8 (N, H, W, 3), or floating point in [0, 1] (N, 3, H, W).
        masks: (N, A, H, W); 1 keeps the pixel.
        baseline: in place of removed pixels, in [0, 1]: (1 or N, 3, 1 or H, 1 or W).
        mean: per channel, subtracted.
        std: per channel, divided by.
        branches: ``"keep"`` (m·x + (1 − m)·b), ``"remove"`` (with 1 − m), or ``"both"``.
        dtype: of the result; that of the masks by default.
        channels_last: the result's memory format.

    Returns:
        (B·N·A, 3, H, W): kept before removed, image by image, mask by mask.

    Raises:
        UsageError: an argument of another shape, dtype or device.
    """
    _check(images, masks, baseline, mean, std, branches)
    require_floating(dtype)
    if baseline.shape[2:] != (1, 1):
        baseline = baseline.expand(-1, -1, *masks.shape[2:])
    keep, remove = branches != "remove", branches != "keep"
    result: Tensor = _forward(images, masks, baseline, mean, std, keep, remove, dtype or masks.dtype, channels_last)
    return result


def _check(
    images: Tensor, masks: Tensor, baseline: Tensor, mean: Sequence[float], std: Sequence[float], branches: str
) -> None:
    if branches not in ("keep", "remove", "both"):
        raise UsageError(f"branches is 'keep', 'remove' or 'both', not '{branches}'")
    if masks.ndim != 4 or not masks.is_floating_point() or not masks.numel():
        raise UsageError(f"masks are floating point (N, A, H, W) and not empty, not {about(masks)}")
    count, _, height, width = masks.shape
    if images.dtype == torch.uint8:
        if images.shape != (count, height, width, 3):
            raise UsageError(f"images of bytes are {(count, height, width, 3)} as the masks are, not {about(images)}")
    elif not images.is_floating_point() or images.shape != (count, 3, height, width):
        raise UsageError(
            f"images are floating point {(count, 3, height, width)} as the masks are, or uint8, not {about(images)}"
        )
    fits = baseline.ndim == 4 and all(
        size in sizes for size, sizes in zip(baseline.shape, ((1, count), (3,), (1, height), (1, width)), strict=True)
    )
    if not fits or not baseline.is_floating_point():
        raise UsageError(
            f"baseline is floating point and (3, {height}, {width}) for each image, or broadcasts to it, "
            f"not {about(baseline)}"
        )
    require_device(masks, "masks", images=images, baseline=baseline)
    for name, value in (("images", images), ("baseline", baseline)):
        if value.requires_grad:
            raise UsageError(f"{name} gets no gradient from mask_blend; detach it")
    if len(mean) != 3 or len(std) != 3 or not all(std):
        raise UsageError(f"mean and std are three numbers each, std without a zero, not {mean} and {std}")


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, masks, baseline, _, std, keep, remove, _, _ = inputs
    ctx.save_for_backward(images, masks, baseline)
    ctx.std, ctx.keep, ctx.remove = std, keep, remove


def _to_masks(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    towards = _backward(gradient, *ctx.saved_tensors, ctx.std, ctx.keep, ctx.remove)
    return (None, towards, *[None] * 7)


_forward.register_autograd(_to_masks, setup_context=_keep_inputs)
