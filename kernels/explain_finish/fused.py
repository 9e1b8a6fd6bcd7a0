"""`explain_finish` in Triton: from small maps and images to masks and pictures in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["explain_finish_fused"]

BLOCK = 512  # pixels of a program


@triton.jit
def explain_finish_fwd_kernel(
    p_maps,
    p_low,
    p_high,
    p_images,
    p_table,
    p_masks,
    p_out,
    height,
    width,
    rows,
    columns,
    outline,
    BLOCK: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    o_pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = o_pixel < height * width
    y, x = o_pixel // width, o_pixel % width
    p_map = p_maps + image * rows * columns
    low = tl.load(p_low + image).to(tl.float32)
    reach = tl.load(p_high + image).to(tl.float32) - low
    mask = _mask(p_map, y, x, inside, height, width, rows, columns, low, reach)
    above = _mask(p_map, tl.maximum(y - 1, 0), x, inside, height, width, rows, columns, low, reach)
    below = _mask(p_map, tl.minimum(y + 1, height - 1), x, inside, height, width, rows, columns, low, reach)
    left = _mask(p_map, y, tl.maximum(x - 1, 0), inside, height, width, rows, columns, low, reach)
    right = _mask(p_map, y, tl.minimum(x + 1, width - 1), inside, height, width, rows, columns, low, reach)
    least = tl.minimum(tl.minimum(above, below), tl.minimum(left, right))
    edge = (mask > outline) & (least <= outline)
    at = image * height * width + o_pixel
    tl.store(p_masks + at, mask, inside)
    red = tl.load(p_images + 3 * at, inside, 0).to(tl.float32)
    green = tl.load(p_images + 3 * at + 1, inside, 0).to(tl.float32)
    blue = tl.load(p_images + 3 * at + 2, inside, 0).to(tl.float32)
    grey = (0.299 * red + 0.587 * green + 0.114 * blue) * 0.85 + 12
    opacity = 0.75 * tl.exp2(0.7 * tl.log2(tl.maximum(mask, 1e-30)))
    shade = 0.55 + 0.45 * grey / 255
    colour = tl.minimum((mask * 255 + 0.5).to(tl.int32), 255)
    for channel in tl.static_range(3):
        value = tl.load(p_table + 3 * colour + channel, inside, 0).to(tl.float32)
        blended = (1 - opacity) * grey + opacity * value * shade
        blended = tl.where(edge, 255.0, tl.minimum(tl.maximum(blended, 0), 255))
        tl.store(p_out + 3 * at + channel, (blended + 0.5).to(tl.uint8), inside)


@triton.jit
def _mask(p_map, y, x, inside, height, width, rows, columns, low, reach):
    """The map at pixels of the image: scaled, then bilinear between the centres of its cells."""
    along = tl.minimum(tl.maximum((2 * y + 1).to(tl.float32) * rows / (2 * height) - 0.5, 0), rows - 1)
    across = tl.minimum(tl.maximum((2 * x + 1).to(tl.float32) * columns / (2 * width) - 0.5, 0), columns - 1)
    top, left = tl.floor(along).to(tl.int32), tl.floor(across).to(tl.int32)
    bottom, right = tl.minimum(top + 1, rows - 1), tl.minimum(left + 1, columns - 1)
    down, over = along - top, across - left
    upper = (1 - over) * _cell(p_map + top * columns + left, inside, low, reach)
    upper += over * _cell(p_map + top * columns + right, inside, low, reach)
    lower = (1 - over) * _cell(p_map + bottom * columns + left, inside, low, reach)
    lower += over * _cell(p_map + bottom * columns + right, inside, low, reach)
    return (1 - down) * upper + down * lower


@triton.jit
def _cell(p_cell, inside, low, reach):
    value = (tl.load(p_cell, inside, 0).to(tl.float32) - low) / reach
    return tl.minimum(tl.maximum(value, 0), 1)


def explain_finish_fused(
    maps: Tensor, low: Tensor, high: Tensor, images: Tensor, table: Tensor, outline: float
) -> tuple[Tensor, Tensor]:
    """As `explain_finish_reference`; single precision inside."""
    count, height, width, _ = images.shape
    masks = torch.empty((count, height, width), dtype=torch.float32, device=maps.device)
    pictures = torch.empty(images.shape, dtype=torch.uint8, device=maps.device)
    explain_finish_fwd_kernel[(count, triton.cdiv(height * width, BLOCK))](
        maps.contiguous(),
        low.contiguous(),
        high.contiguous(),
        images.contiguous(),
        table.contiguous(),
        masks,
        pictures,
        height,
        width,
        maps.shape[1],
        maps.shape[2],
        float(outline),
        BLOCK=BLOCK,
    )
    return masks, pictures
