"""`integration_path` in Triton: the end of a path is read once for all of its points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..strides import addressed, path_layout

__all__ = ["integration_path_fused"]

BLOCK = 1024  # values of a program


@triton.jit
def integration_path_fwd_kernel(
    p_end,
    p_baseline,
    p_points,
    p_out,
    images,
    steps,
    channels,
    places,
    s_end_n,
    s_end_c,
    s_end_p,
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
    NORMALISE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    size = channels * places
    o_out = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # in the order in which the results lie
    image = tl.program_id(0).to(tl.int64)
    inside = o_out < size
    if CHANNELS_LAST:
        channel = o_out % channels
        place = o_out // channels
    else:
        channel = o_out // places
        place = o_out % places
    b_end = tl.load(p_end + image * s_end_n + channel * s_end_c + place * s_end_p, inside, 0).to(tl.float32)
    if FROM_BYTES:
        b_end = b_end / 255
    at_baseline = image * s_baseline_n + channel * s_baseline_c + place * s_baseline_p
    b_baseline = tl.load(p_baseline + at_baseline, inside, 0).to(tl.float32)
    distance = b_end - b_baseline
    if NORMALISE:
        mean = tl.where(channel == 0, mean_0, tl.where(channel == 1, mean_1, mean_2))
        std = tl.where(channel == 0, std_0, tl.where(channel == 1, std_1, std_2))
    for step in range(steps):
        value = b_baseline + tl.load(p_points + step).to(tl.float32) * distance
        if NORMALISE:
            value = (value - mean) / std
        tl.store(p_out + (step * images + image) * size + o_out, value.to(p_out.dtype.element_ty), inside)


def integration_path_fused(
    end: Tensor,
    baseline: Tensor | None,
    points: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """As `integration_path_reference`; single precision inside."""
    from_bytes = end.dtype == torch.uint8
    count, steps = len(end), len(points)
    shape = end.movedim(-1, 1).shape if from_bytes else end.shape
    channels, places = shape[1], shape[2:].numel()
    layout = path_layout(end)
    if baseline is None:
        baseline = torch.zeros([1] * len(shape), device=end.device)
    out = torch.empty((steps * count, *shape[1:]), dtype=dtype, device=end.device, memory_format=layout)
    until, start = addressed(end, count, places), addressed(baseline, count, places)
    integration_path_fwd_kernel[(count, triton.cdiv(channels * places, BLOCK))](
        until.values,
        start.values,
        points.contiguous(),
        out,
        count,
        steps,
        channels,
        places,
        *until.strides,
        *start.strides,
        *(mean or (0.0, 0.0, 0.0)),
        *(std or (1.0, 1.0, 1.0)),
        FROM_BYTES=from_bytes,
        NORMALISE=len(mean) > 0,
        CHANNELS_LAST=layout == torch.channels_last,
        BLOCK=BLOCK,
    )
    return out
