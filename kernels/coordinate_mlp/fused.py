"""`coordinate_mlp` in Triton: from coordinates made in registers to masks, with nothing in between in memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .fused_backward import coordinate_mlp_backward_fused
from .sizes import Sizes
from .tiles import activate, bottom_of, climb, encode, row

__all__ = ["coordinate_mlp_backward_fused", "coordinate_mlp_fused"]


@triton.jit
def coordinate_mlp_fwd_kernel(
    p_frequencies,
    p_first,
    p_shift,
    p_area,
    p_weights,
    p_last,
    p_offset,
    p_features,
    p_out,
    height,
    width,
    areas,
    rows,
    columns,
    s_first_n,
    s_shift_n,
    s_area_n,
    s_weights_n,
    s_last_n,
    s_offset_n,
    s_features_n,
    FREQUENCIES: tl.constexpr,
    VALUES: tl.constexpr,
    LAYERS: tl.constexpr,
    AREA_AT: tl.constexpr,
    SMOOTH: tl.constexpr,
    SQUASH: tl.constexpr,
    LOCAL: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    points = height * width
    o_point = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    p_first += image * s_first_n
    p_shift += image * s_shift_n
    p_weights += image * s_weights_n
    p_features += image * s_features_n
    x, y, sine, cosine = encode(p_frequencies, o_point, height, width, FREQUENCIES, BLOCK_F)
    inside = (o_point < points)[:, None] & (tl.arange(0, BLOCK_D) < VALUES)[None, :]
    state = bottom_of(
        sine, cosine, x, y, p_first, p_shift, p_features, inside, rows, columns, FREQUENCIES, VALUES, LOCAL, EXACT,
        BLOCK_F, BLOCK_D,
    )  # fmt: skip
    state = climb(state, p_weights, p_shift, VALUES, 0, AREA_AT, SMOOTH, EXACT, BLOCK_D)
    b_last = row(p_last + image * s_last_n, VALUES, BLOCK_D)
    for index in range(areas):
        upper = state + row(p_area + image * s_area_n + index * VALUES, VALUES, BLOCK_D)[None, :]
        upper = climb(upper, p_weights, p_shift, VALUES, AREA_AT, LAYERS - 1, SMOOTH, EXACT, BLOCK_D)
        found = tl.sum(activate(upper, SMOOTH) * b_last[None, :], 1)
        found += tl.load(p_offset + image * s_offset_n + index).to(tl.float32)
        if SQUASH:
            found = tl.sigmoid(found)
        p_row = p_out + (image * areas + index) * points
        tl.store(p_row + o_point, found.to(p_out.dtype.element_ty), o_point < points)


def coordinate_mlp_fused(
    frequencies: Tensor,
    first: Tensor,
    shift: Tensor,
    area: Tensor,
    weights: Tensor,
    last: Tensor,
    offset: Tensor,
    features: Tensor | None,
    height: int,
    width: int,
    area_at: int,
    smooth: bool,
    squash: bool,
    dtype: torch.dtype,
) -> Tensor:
    """As `coordinate_mlp_reference`; products in the precision of the weights, sums in single."""
    sizes = Sizes.of(first, shift, area, weights, last, offset, features)
    out = torch.empty((sizes.images, sizes.areas, height, width), dtype=dtype, device=first.device)
    block = 64  # with more, states of 64 values do not fit into registers
    coordinate_mlp_fwd_kernel[(sizes.images, triton.cdiv(height * width, block))](
        frequencies.contiguous(),
        *sizes.tensors,
        out,
        height,
        width,
        sizes.areas,
        *sizes.grid,
        *sizes.strides,
        **sizes.constants(frequencies, area_at, smooth, squash),
        BLOCK_P=block,
        num_warps=4 if sizes.block_d <= 64 else 8,
        num_stages=3 if sizes.block_d <= 64 else 1,  # two copies of every matrix would fill the shared memory
    )
    return out
