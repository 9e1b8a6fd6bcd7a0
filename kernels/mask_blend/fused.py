"""`mask_blend` in Triton: an image is read once for all of its masks and both branches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..strides import addressed, is_channels_last

__all__ = ["mask_blend_backward_fused", "mask_blend_fused"]

BLOCK = 1024  # pixels of a program


@triton.jit
def mask_blend_fwd_kernel(
    p_images,
    p_masks,
    p_baseline,
    p_out,
    images,
    masks,
    pixels,
    s_image_n,
    s_image_c,
    s_image_p,
    s_baseline_n,
    s_baseline_c,
    s_baseline_p,
    mean_0,
    mean_1,
    mean_2,
    std_0,
    std_1,
    std_2,
    FROM_BYTES: tl.constexpr,
    KEEP: tl.constexpr,
    REMOVE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.program_id(1) * BLOCK
    image = tl.program_id(0).to(tl.int64)
    for part in tl.static_range(3):
        if CHANNELS_LAST:  # a third of the values of these pixels, in the order in which they lie
            o_out = 3 * start + part * BLOCK + tl.arange(0, BLOCK)
            o_pixel = o_out // 3
            channel = o_out % 3
            mean = tl.where(channel == 0, mean_0, tl.where(channel == 1, mean_1, mean_2))
            std = tl.where(channel == 0, std_0, tl.where(channel == 1, std_1, std_2))
        else:  # one channel
            o_pixel = start + tl.arange(0, BLOCK)
            o_out = part * pixels + o_pixel
            channel = part
            mean = mean_0 if part == 0 else mean_1 if part == 1 else mean_2
            std = std_0 if part == 0 else std_1 if part == 1 else std_2
        inside = o_pixel < pixels
        b_image = tl.load(p_images + image * s_image_n + channel * s_image_c + o_pixel * s_image_p, inside, 0)
        b_image = b_image.to(tl.float32)
        if FROM_BYTES:
            b_image = b_image / 255
        at_baseline = image * s_baseline_n + channel * s_baseline_c + o_pixel * s_baseline_p
        b_baseline = tl.load(p_baseline + at_baseline, inside, 0).to(tl.float32)
        for index in range(masks):
            row = image * masks + index
            b_mask = tl.load(p_masks + row * pixels + o_pixel, inside, 0).to(tl.float32)
            if KEEP:
                kept = (b_mask * b_image + (1 - b_mask) * b_baseline - mean) / std
                tl.store(p_out + row * (3 * pixels) + o_out, kept.to(p_out.dtype.element_ty), inside)
            if REMOVE:
                removed = ((1 - b_mask) * b_image + b_mask * b_baseline - mean) / std
                row_out = row + KEEP * images * masks
                tl.store(p_out + row_out * (3 * pixels) + o_out, removed.to(p_out.dtype.element_ty), inside)


@triton.jit
def mask_blend_bwd_kernel(
    p_gradient,
    p_images,
    p_baseline,
    p_out,
    images,
    masks,
    pixels,
    s_image_n,
    s_image_c,
    s_image_p,
    s_baseline_n,
    s_baseline_c,
    s_baseline_p,
    std_0,
    std_1,
    std_2,
    FROM_BYTES: tl.constexpr,
    KEEP: tl.constexpr,
    REMOVE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    o_pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    image = tl.program_id(0).to(tl.int64)
    inside = o_pixel < pixels
    p_image = p_images + image * s_image_n + o_pixel * s_image_p
    p_background = p_baseline + image * s_baseline_n + o_pixel * s_baseline_p
    slope_0 = _slope(p_image, p_background, inside, std_0, FROM_BYTES)
    slope_1 = _slope(p_image + s_image_c, p_background + s_baseline_c, inside, std_1, FROM_BYTES)
    slope_2 = _slope(p_image + 2 * s_image_c, p_background + 2 * s_baseline_c, inside, std_2, FROM_BYTES)
    s_channel = 1 if CHANNELS_LAST else pixels
    s_pixel = 3 if CHANNELS_LAST else 1
    for index in range(masks):
        row = image * masks + index
        total = tl.zeros([BLOCK], tl.float32)
        if KEEP:
            p_kept = p_gradient + row * (3 * pixels) + o_pixel * s_pixel
            total += _along(p_kept, s_channel, inside, slope_0, slope_1, slope_2)
        if REMOVE:
            p_removed = p_gradient + (row + KEEP * images * masks) * (3 * pixels) + o_pixel * s_pixel
            total -= _along(p_removed, s_channel, inside, slope_0, slope_1, slope_2)
        tl.store(p_out + row * pixels + o_pixel, total.to(p_out.dtype.element_ty), inside)


@triton.jit
def _slope(p_image, p_baseline, inside, std, FROM_BYTES: tl.constexpr):
    b_image = tl.load(p_image, inside, 0).to(tl.float32)
    if FROM_BYTES:
        b_image = b_image / 255
    return (b_image - tl.load(p_baseline, inside, 0).to(tl.float32)) / std


@triton.jit
def _along(p_values, s_channel, inside, slope_0, slope_1, slope_2):
    total = slope_0 * tl.load(p_values, inside, 0).to(tl.float32)
    total += slope_1 * tl.load(p_values + s_channel, inside, 0).to(tl.float32)
    return total + slope_2 * tl.load(p_values + 2 * s_channel, inside, 0).to(tl.float32)


def mask_blend_fused(
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
    """As `mask_blend_reference`; single precision inside."""
    count, each, height, width = masks.shape
    out = torch.empty(
        ((keep + remove) * count * each, 3, height, width),
        dtype=dtype,
        device=masks.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )
    pixels = height * width
    shown, behind = addressed(images, count, pixels), addressed(baseline, count, pixels)
    mask_blend_fwd_kernel[(count, triton.cdiv(pixels, BLOCK))](
        shown.values,
        masks.contiguous(),
        behind.values,
        out,
        count,
        each,
        pixels,
        *shown.strides,
        *behind.strides,
        *mean,
        *std,
        FROM_BYTES=images.dtype == torch.uint8,
        KEEP=keep,
        REMOVE=remove,
        CHANNELS_LAST=channels_last,
        BLOCK=BLOCK,
    )
    return out


def mask_blend_backward_fused(
    gradient: Tensor, images: Tensor, masks: Tensor, baseline: Tensor, std: Sequence[float], keep: bool, remove: bool
) -> Tensor:
    """As `mask_blend_backward_reference`; reads the gradient in the layout in which it comes."""
    count, each, height, width = masks.shape
    out = torch.empty_like(masks, memory_format=torch.contiguous_format)
    channels_last = is_channels_last(gradient)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    pixels = height * width
    shown, behind = addressed(images, count, pixels), addressed(baseline, count, pixels)
    mask_blend_bwd_kernel[(count, triton.cdiv(pixels, BLOCK))](
        gradient.contiguous(memory_format=layout),
        shown.values,
        behind.values,
        out,
        count,
        each,
        pixels,
        *shown.strides,
        *behind.strides,
        *std,
        FROM_BYTES=images.dtype == torch.uint8,
        KEEP=keep,
        REMOVE=remove,
        CHANNELS_LAST=channels_last,
        BLOCK=BLOCK,
    )
    return out
