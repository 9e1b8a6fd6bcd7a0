"""The derivative of `coordinate_mlp` in Triton: every state is computed again, none is stored.

A program goes over its share of an image's points and adds to sums of its own, so that the result does not depend on
the order in which programs run; only feature maps, which neighbouring points share, are added to atomically.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .sizes import Sizes
from .tiles import activate, bottom_of, climb, corner, encode, matrix, product, row, slope_of

__all__ = ["coordinate_mlp_backward_fused"]

PROGRAMS = 528  # at most about so many: four for each multiprocessor of a large GPU


@triton.jit
def coordinate_mlp_bwd_kernel(
    p_gradient,
    p_frequencies,
    p_first,
    p_shift,
    p_area,
    p_weights,
    p_last,
    p_offset,
    p_features,
    p_to_frequencies,
    p_to_first,
    p_to_shift,
    p_to_area,
    p_to_weights,
    p_to_last,
    p_to_offset,
    p_to_features,
    height,
    width,
    images,
    areas,
    rows,
    columns,
    blocks,
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
    part = tl.program_id(1)
    own = part * images + image  # whose sums these are
    points = height * width
    o_value = tl.arange(0, BLOCK_D)
    o_frequency = tl.arange(0, BLOCK_F)
    p_first += image * s_first_n
    p_shift += image * s_shift_n
    p_weights += image * s_weights_n
    p_features += image * s_features_n
    p_to_features += image * s_features_n
    p_to_first += own * 2 * FREQUENCIES * VALUES
    p_to_shift += own * LAYERS * VALUES
    p_to_weights += own * (LAYERS - 1) * VALUES * VALUES
    b_last = row(p_last + image * s_last_n, VALUES, BLOCK_D)
    for item in range(part, blocks * areas, tl.num_programs(1)):  # points and area; what areas share is found for each
        index = item // blocks
        o_point = (item % blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
        x, y, sine, cosine = encode(p_frequencies, o_point, height, width, FREQUENCIES, BLOCK_F)
        inside = (o_point < points)[:, None] & (o_value < VALUES)[None, :]
        bottom = bottom_of(
            sine, cosine, x, y, p_first, p_shift, p_features, inside, rows, columns, FREQUENCIES, VALUES, LOCAL, EXACT,
            BLOCK_F, BLOCK_D,
        )  # fmt: skip
        p_own_area = p_area + image * s_area_n + index * VALUES
        if AREA_AT == 0:
            bottom += row(p_own_area, VALUES, BLOCK_D)[None, :]
        state = climb(bottom, p_weights, p_shift, p_own_area, VALUES, 0, LAYERS - 1, AREA_AT, SMOOTH, EXACT, BLOCK_D)
        hidden = activate(state, SMOOTH)
        at_point = (image * areas + index) * points + o_point
        of_logit = tl.load(p_gradient + at_point, o_point < points, 0).to(tl.float32)
        if SQUASH:
            logits = tl.sum(hidden * b_last[None, :], 1)
            mask = tl.sigmoid(logits + tl.load(p_offset + image * s_offset_n + index).to(tl.float32))
            of_logit = of_logit * mask * (1 - mask)
        _add_scalar(p_to_offset + own * areas + index, tl.sum(of_logit, 0))
        _add_row(p_to_last + own * VALUES, tl.sum(of_logit[:, None] * hidden, 0), VALUES, BLOCK_D)
        slope = of_logit[:, None] * b_last[None, :] * slope_of(state, SMOOTH)
        for back in tl.static_range(0, LAYERS):  # the slope is that by the state of this layer
            of_row = tl.sum(slope, 0)
            _add_row(p_to_shift + (LAYERS - 1 - back) * VALUES, of_row, VALUES, BLOCK_D)
            if LAYERS - 1 - back == AREA_AT:
                _add_row(p_to_area + (own * areas + index) * VALUES, of_row, VALUES, BLOCK_D)
            if back < LAYERS - 1:
                below = climb(
                    bottom, p_weights, p_shift, p_own_area, VALUES, 0, LAYERS - 2 - back, AREA_AT, SMOOTH, EXACT,
                    BLOCK_D,
                )  # fmt: skip
                at = (LAYERS - 2 - back) * VALUES * VALUES
                b_weights = matrix(p_weights + at, VALUES, VALUES, BLOCK_D, BLOCK_D)
                found = _outer(activate(below, SMOOTH), slope, b_weights, EXACT)
                _add_matrix(p_to_weights + at, found, VALUES, VALUES, BLOCK_D, BLOCK_D)
                slope = product(slope, tl.trans(b_weights), EXACT) * slope_of(below, SMOOTH)
        b_sine = matrix(p_first, FREQUENCIES, VALUES, BLOCK_F, BLOCK_D)
        b_cosine = matrix(p_first + FREQUENCIES * VALUES, FREQUENCIES, VALUES, BLOCK_F, BLOCK_D)
        _add_matrix(p_to_first, _outer(sine, slope, b_sine, EXACT), FREQUENCIES, VALUES, BLOCK_F, BLOCK_D)
        p_half = p_to_first + FREQUENCIES * VALUES
        _add_matrix(p_half, _outer(cosine, slope, b_cosine, EXACT), FREQUENCIES, VALUES, BLOCK_F, BLOCK_D)
        of_turn = -sine * product(slope, tl.trans(b_cosine), EXACT)
        of_turn += cosine * product(slope, tl.trans(b_sine), EXACT)
        p_turn = p_to_frequencies + own * 2 * FREQUENCIES + 2 * o_frequency
        known = o_frequency < FREQUENCIES
        tl.store(p_turn, tl.load(p_turn, known, 0) + tl.sum(of_turn * x[:, None], 0), known)
        tl.store(p_turn + 1, tl.load(p_turn + 1, known, 0) + tl.sum(of_turn * y[:, None], 0), known)
        if LOCAL:
            for which in tl.static_range(4):
                place, share = corner(x, y, rows, columns, which // 2, which % 2)
                at_corner = place[:, None] * VALUES + o_value[None, :]
                tl.atomic_add(p_to_features + at_corner, share[:, None] * slope, inside, sem="relaxed")


@triton.jit
def _outer(left, right, like, EXACT: tl.constexpr):
    """The sum over points of left × right, in the precision of `like`."""
    return product(tl.trans(left.to(like.dtype)), right.to(like.dtype), EXACT)


@triton.jit
def _add_matrix(p_sum, found, ROWS, COLUMNS, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    o_row, o_column = tl.arange(0, BLOCK_R)[:, None], tl.arange(0, BLOCK_C)[None, :]
    inside = (o_row < ROWS) & (o_column < COLUMNS)
    p_place = p_sum + o_row * COLUMNS + o_column
    tl.store(p_place, tl.load(p_place, inside, 0) + found, inside)
    tl.debug_barrier()  # the next block's sum is read by whichever threads hold that tile


@triton.jit
def _add_row(p_sum, found, SIZE, BLOCK: tl.constexpr):
    o_value = tl.arange(0, BLOCK)
    inside = o_value < SIZE
    tl.store(p_sum + o_value, tl.load(p_sum + o_value, inside, 0) + found, inside)
    tl.debug_barrier()


@triton.jit
def _add_scalar(p_sum, found):
    tl.store(p_sum, tl.load(p_sum) + found)
    tl.debug_barrier()


def coordinate_mlp_backward_fused(
    gradient: Tensor,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `coordinate_mlp_backward_reference`; sums in single precision."""
    wanted = (frequencies, first, shift, area, weights, last, offset, last if features is None else features)
    sizes = Sizes.of(*wanted[1:7], features)
    block = 64 if sizes.block_d <= 64 else 32
    blocks = triton.cdiv(height * width, block)
    parts = max(1, min(blocks * sizes.areas, PROGRAMS // sizes.images))

    def sums(like: Tensor) -> Tensor:
        return torch.zeros((parts, sizes.images, *like.shape[1:]), dtype=torch.float32, device=like.device)

    of_frequencies = sums(frequencies[None])
    own = [sums(value) for value in wanted[1:7]]
    to_features = torch.zeros(wanted[7].shape, dtype=torch.float32, device=first.device)
    coordinate_mlp_bwd_kernel[(sizes.images, parts)](
        gradient.contiguous(),
        frequencies.contiguous(),
        *sizes.tensors,
        of_frequencies,
        *own,
        to_features,
        height,
        width,
        sizes.images,
        sizes.areas,
        *sizes.grid,
        blocks,
        *sizes.strides,
        FREQUENCIES=len(frequencies),
        VALUES=sizes.values,
        LAYERS=sizes.layers,
        AREA_AT=area_at,
        SMOOTH=smooth,
        SQUASH=squash,
        LOCAL=features is not None,
        EXACT=first.dtype == torch.float32,
        BLOCK_F=max(16, triton.next_power_of_2(len(frequencies))),
        BLOCK_D=sizes.block_d,
        BLOCK_P=block,
        num_warps=4,
    )
    found = [2 * math.pi * of_frequencies.sum((0, 1))]
    for part, like in zip(own, wanted[1:7], strict=True):
        by_image = part.sum(0)
        found.append(by_image.sum(0, keepdim=True) if len(like) == 1 else by_image)
    found.append(to_features)
    cast = [value.to(like.dtype) for value, like in zip(found, wanted, strict=True)]
    return (cast[0], cast[1], cast[2], cast[3], cast[4], cast[5], cast[6], cast[7])
