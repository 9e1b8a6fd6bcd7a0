"""`attribution_reduce` in Triton: gradients and values are read once, and summed in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..strides import addressed

__all__ = ["attribution_reduce_fused"]

TILE = 2048  # values of a program at a time
WIDEST = 256  # places of a program
PROGRAMS = 1024  # at least, if there are so many rows: each sums a part of them


@triton.jit
def attribution_reduce_fwd_kernel(
    p_gradients,
    p_values,
    p_weights,
    p_out,
    images,
    channels,
    places,
    rows,
    rows_each,
    s_gradient_n,
    s_gradient_c,
    s_gradient_p,
    s_value_n,
    s_value_c,
    s_value_p,
    RULE: tl.constexpr,
    BY_STEP: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    o_place = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    image = tl.program_id(0)
    split = tl.program_id(2)
    last = tl.minimum((split + 1) * rows_each, rows)
    total = tl.zeros([BLOCK_R, BLOCK_P], tl.float32)
    for start in range(split * rows_each, last, BLOCK_R):
        row = start + tl.arange(0, BLOCK_R)  # steps times channels
        step = row // channels
        channel = row % channels
        inside = (row < last)[:, None] & (o_place < places)[None, :]
        at = (step * images + image).to(tl.int64)
        of_value = at if BY_STEP else image + 0 * at
        at_gradient = (at * s_gradient_n + channel * s_gradient_c)[:, None] + o_place[None, :] * s_gradient_p
        at_value = (of_value * s_value_n + channel * s_value_c)[:, None] + o_place[None, :] * s_value_p
        b_gradient = tl.load(p_gradients + at_gradient, inside, 0).to(tl.float32)
        b_value = tl.load(p_values + at_value, inside, 0).to(tl.float32)
        b_weight = tl.load(p_weights + step, row < last, 0).to(tl.float32)
        if RULE == "positive gradient":
            b_gradient = tl.maximum(b_gradient, 0, propagate_nan=tl.PropagateNan.ALL)
        if RULE == "positive value":
            b_value = tl.maximum(b_value, 0, propagate_nan=tl.PropagateNan.ALL)
        terms = b_gradient * b_value
        if RULE == "positive product":
            terms = tl.maximum(terms, 0, propagate_nan=tl.PropagateNan.ALL)
        total += terms * b_weight[:, None]
    p_row = p_out + (split * images + image).to(tl.int64) * places
    tl.store(p_row + o_place, tl.sum(total, 0), o_place < places)


def attribution_reduce_fused(gradients: Tensor, values: Tensor, weights: Tensor, rule: str) -> Tensor:
    """As `attribution_reduce_reference`; single precision inside."""
    steps, channels, places = len(weights), gradients.shape[1], gradients.shape[2:].numel()
    count = len(gradients) // steps
    across = min(WIDEST, max(16, triton.next_power_of_2(places)))
    down = TILE // across
    rows = steps * channels
    splits = max(1, min(triton.cdiv(rows, down), PROGRAMS // (count * triton.cdiv(places, across))))
    rows_each = triton.cdiv(triton.cdiv(rows, splits), down) * down
    splits = triton.cdiv(rows, rows_each)
    out = torch.empty((splits, count, places), dtype=torch.float32, device=gradients.device)
    gradient, value = addressed(gradients, len(gradients), places), addressed(values, len(values), places)
    attribution_reduce_fwd_kernel[(count, triton.cdiv(places, across), splits)](
        gradient.values,
        value.values,
        weights.contiguous(),
        out,
        count,
        channels,
        places,
        rows,
        rows_each,
        *gradient.strides,
        *value.strides,
        RULE=rule,
        BY_STEP=len(values) == len(gradients),
        BLOCK_R=down,
        BLOCK_P=across,
    )
    return out.sum(0).reshape(count, *gradients.shape[2:])
