"""The derivative of `coordinate_mlp` in Triton: every state is computed again, none is stored.

A program goes over its share of an image's points, all areas of each, and keeps sums of its own, those of the matrices
in registers, so that the result does not depend on the order in which programs run. Where the registers do not hold the
sums of all layers, several launches share them. One derivative is written, that by the first layer's state, which all
areas share; what comes before that layer follows from it by products of matrices.

States are values × points here: every warp has values of its own.
"""

# mypy: disable-error-code="assignment, var-annotated, unreachable"
# Tuples grow in Triton's loops, and mypy reads the empty ones that they begin with as all there is.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import as_wanted, before_the_first_layer
from .sizes import Sizes
from .tiles import activate, corner, encode, matrix, product, row, slope_of

__all__ = ["coordinate_mlp_backward_fused"]

PROGRAMS = 528  # at most about so many: four for each multiprocessor of a large GPU
BLOCK_P = 16  # points of a step; states of more leave the sums no registers
ROOM = 64  # numbers of sums that a thread holds beside all else


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
    p_to_bottom,
    p_to_shift,
    p_to_area,
    p_to_weights,
    p_to_last,
    p_to_offset,
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
    LOWEST: tl.constexpr,
    HIGHEST: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    own = part * images + image  # whose sums these are
    points = height * width
    o_value = tl.arange(0, BLOCK_D)
    p_first += image * s_first_n
    p_shift += image * s_shift_n
    p_weights += image * s_weights_n
    p_features += image * s_features_n
    p_to_bottom += image * points * VALUES
    p_to_shift += own * LAYERS * VALUES
    p_to_weights += own * (LAYERS - 1) * VALUES * VALUES
    b_last = row(p_last + image * s_last_n, VALUES, BLOCK_D)
    sums = ()  # over points: of the matrices below the layers from HIGHEST to LOWEST
    for _ in tl.static_range(LOWEST, HIGHEST + 1):
        sums += (tl.zeros((BLOCK_D, BLOCK_D), tl.float32),)
    of_bottom = tl.zeros((BLOCK_D, BLOCK_P), tl.float32)
    share = tl.cdiv(blocks, tl.num_programs(1))
    for item in range(part * share * areas, tl.minimum(blocks, (part + 1) * share) * areas):  # points, then area
        index = item % areas
        o_point = (item // areas) * BLOCK_P + tl.arange(0, BLOCK_P)
        x, y, sine, cosine = encode(p_frequencies, o_point, height, width, FREQUENCIES, BLOCK_F)
        inside = (o_value < VALUES)[:, None] & (o_point < points)[None, :]
        state = _times(p_first, tl.trans(sine), FREQUENCIES, VALUES, BLOCK_F, BLOCK_D, EXACT)
        p_half = p_first + FREQUENCIES * VALUES
        state += _times(p_half, tl.trans(cosine), FREQUENCIES, VALUES, BLOCK_F, BLOCK_D, EXACT)
        if LOCAL:
            for which in tl.static_range(4):
                place, weight = corner(x, y, rows, columns, which // 2, which % 2)
                sampled = tl.load(p_features + place[None, :] * VALUES + o_value[:, None], inside, 0)
                state += weight[None, :] * sampled.to(tl.float32)
        p_own_area = p_area + image * s_area_n + index * VALUES
        states = ()
        for layer in tl.static_range(0, LAYERS):
            if layer > 0:
                p_matrix = p_weights + (layer - 1) * VALUES * VALUES
                state = _times(p_matrix, activate(state, SMOOTH), VALUES, VALUES, BLOCK_D, BLOCK_D, EXACT)
            state += row(p_shift + layer * VALUES, VALUES, BLOCK_D)[:, None]
            if layer == AREA_AT:
                state += row(p_own_area, VALUES, BLOCK_D)[:, None]
            states += (state.to(p_first.dtype.element_ty),)
        hidden = activate(state, SMOOTH)
        at_point = (image * areas + index) * points + o_point
        of_logit = tl.load(p_gradient + at_point, o_point < points, 0).to(tl.float32)
        if SQUASH:
            logits = tl.sum(hidden * b_last[:, None], 0)
            mask = tl.sigmoid(logits + tl.load(p_offset + image * s_offset_n + index).to(tl.float32))
            of_logit = of_logit * mask * (1 - mask)
        if HIGHEST == LAYERS - 1:
            _add_scalar(p_to_offset + own * areas + index, tl.sum(of_logit, 0))
            _add_row(p_to_last + own * VALUES, tl.sum(of_logit[None, :] * hidden, 1), VALUES, BLOCK_D)
        slope = b_last[:, None] * of_logit[None, :] * slope_of(state, SMOOTH)
        added = ()
        for back in tl.static_range(0, LAYERS - LOWEST):  # the slope is that by the state of this layer
            below = states[LAYERS - 2 - back].to(tl.float32)
            if LAYERS - 1 - back <= HIGHEST:
                _add_shift(
                    p_to_shift, p_to_area + (own * areas + index) * VALUES, slope, LAYERS - 1 - back, AREA_AT, VALUES,
                    BLOCK_D,
                )  # fmt: skip
                of_points = tl.trans(slope).to(p_first.dtype.element_ty)
                hidden = activate(below, SMOOTH).to(p_first.dtype.element_ty)
                of_matrix = sums[back - LAYERS + 1 + HIGHEST]
                added += (tl.dot(hidden, of_points, of_matrix, input_precision="ieee" if EXACT else None),)
            if (LAYERS - 1 - back > LOWEST) | (LOWEST == 1):
                p_matrix = p_weights + (LAYERS - 2 - back) * VALUES * VALUES
                b_weights = matrix(p_matrix, VALUES, VALUES, BLOCK_D, BLOCK_D)
                slope = product(b_weights, slope.to(b_weights.dtype), EXACT) * slope_of(below, SMOOTH)
        sums = added
        if LOWEST == 1:
            _add_shift(p_to_shift, p_to_area + (own * areas + index) * VALUES, slope, 0, AREA_AT, VALUES, BLOCK_D)
            of_bottom = tl.where(index == 0, slope, of_bottom + slope)
            until = tl.where(index == areas - 1, points, 0)
            p_bottom = p_to_bottom + o_point[None, :] * VALUES + o_value[:, None]
            tl.store(p_bottom, of_bottom.to(p_to_bottom.dtype.element_ty), inside & (o_point < until)[None, :])
    for back in tl.static_range(0, HIGHEST - LOWEST + 1):
        o_row, o_column = o_value[:, None], o_value[None, :]
        p_sum = p_to_weights + (HIGHEST - 1 - back) * VALUES * VALUES + o_row * VALUES + o_column
        tl.store(p_sum, sums[back], (o_row < VALUES) & (o_column < VALUES))


@triton.jit
def _times(p_matrix, right, ROWS, COLUMNS, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, EXACT: tl.constexpr):
    """The transpose of a matrix in memory times values of points (ROWS, P)."""
    left = tl.trans(matrix(p_matrix, ROWS, COLUMNS, BLOCK_R, BLOCK_C))
    return product(left, right.to(left.dtype), EXACT)


@triton.jit
def _add_shift(
    p_to_shift, p_to_own_area, slope, LAYER: tl.constexpr, AREA_AT: tl.constexpr, VALUES, BLOCK_D: tl.constexpr
):
    of_row = tl.sum(slope, 1)
    _add_row(p_to_shift + LAYER * VALUES, of_row, VALUES, BLOCK_D)
    if LAYER == AREA_AT:
        _add_row(p_to_own_area, of_row, VALUES, BLOCK_D)


@triton.jit
def _add_row(p_sum, found, SIZE, BLOCK: tl.constexpr):
    o_value = tl.arange(0, BLOCK)
    inside = o_value < SIZE
    tl.store(p_sum + o_value, tl.load(p_sum + o_value, inside, 0) + found, inside)
    tl.debug_barrier()  # what is added next may be read by other threads


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
    sizes = Sizes.of(first, shift, area, weights, last, offset, features)
    blocks = triton.cdiv(height * width, BLOCK_P)
    parts = max(1, min(blocks, PROGRAMS // sizes.images))
    of_bottom = first.new_empty((sizes.images, height * width, sizes.values))
    sums = [
        torch.zeros((parts, sizes.images, *like.shape[1:]), dtype=torch.float32, device=like.device)
        for like in (shift, area, weights, last, offset)
    ]
    for lowest, highest in _groups(sizes):
        coordinate_mlp_bwd_kernel[(sizes.images, parts)](
            gradient.contiguous(),
            frequencies.contiguous(),
            *sizes.tensors,
            of_bottom,
            *sums,
            height,
            width,
            sizes.images,
            sizes.areas,
            *sizes.grid,
            blocks,
            *sizes.strides,
            **sizes.constants(frequencies, area_at, smooth, squash),
            LOWEST=lowest,
            HIGHEST=highest,
            BLOCK_P=BLOCK_P,
            num_warps=max(2, sizes.block_d // 16),
            num_stages=1,
        )
    found = [*before_the_first_layer(of_bottom, frequencies, first, features, (height, width))]
    wanted = (frequencies, first, shift, area, weights, last, offset, last if features is None else features)
    found[2:2] = [part.sum(0) for part in sums]
    cast = [as_wanted(value, like) for value, like in zip(found, wanted, strict=True)]
    return (cast[0], cast[1], cast[2], cast[3], cast[4], cast[5], cast[6], cast[7])


def _groups(sizes: Sizes) -> list[tuple[int, int]]:
    """The lowest and the highest layer of which a launch sums the derivatives: as many as registers have room for."""
    at_once = max(1, ROOM // (sizes.block_d // 2))
    lowest = range(1, max(2, sizes.layers), at_once)
    return [(layer, min(layer + at_once, sizes.layers) - 1) for layer in lowest]
