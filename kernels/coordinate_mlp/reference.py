"""What `coordinate_mlp` and its derivative compute, in plain PyTorch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bilinear import bilinear_shares

__all__ = ["as_wanted", "before_the_first_layer", "coordinate_mlp_backward_reference", "coordinate_mlp_reference"]


def coordinate_mlp_reference(
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
    """The masks (N, A, H, W); see `coordinate_mlp`."""
    states = _states(frequencies, first, shift, area, weights, features, (height, width), area_at, smooth)
    logits = _last_layer(_activate(states[-1], smooth), last, offset)
    found = logits.sigmoid() if squash else logits
    return found.to(dtype).reshape(*found.shape[:2], height, width)


def coordinate_mlp_backward_reference(
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
    """The derivatives by the first eight arguments of `coordinate_mlp`, from that by the masks."""
    states = _states(frequencies, first, shift, area, weights, features, (height, width), area_at, smooth)
    hidden = _activate(states[-1], smooth)
    towards = gradient.to(hidden.dtype).flatten(2)[..., None]  # (N, A, P, 1)
    if squash:
        masks = _last_layer(hidden, last, offset).sigmoid()
        towards = towards * masks * (1 - masks)
    to_last = (towards * hidden).sum((1, 2))
    to_offset = towards.sum((2, 3))
    slope = towards * last[:, None, None] * _slope(states[-1], smooth)
    to_shift, to_weights = [], []
    to_area = slope.sum(2)
    for layer in range(len(states) - 1, -1, -1):  # the slope is that by the layer's state
        if layer == area_at:
            to_area = slope.sum(2)
            slope = slope.sum(1, keepdim=True)
        to_shift.append(slope.sum((1, 2)))
        if layer:
            state = states[layer - 1]
            to_weights.append(_of_all_areas(_activate(state, smooth)).mT @ _of_all_areas(slope))
            slope = _times(slope, weights[:, layer - 1].mT) * _slope(state, smooth)
    to_frequencies, to_first, to_features = before_the_first_layer(
        slope[:, 0], frequencies, first, features, (height, width)
    )
    found = [
        to_frequencies,
        to_first,
        torch.stack(to_shift[::-1], 1),
        to_area,
        torch.stack(to_weights[::-1], 1) if to_weights else torch.zeros_like(weights),
        to_last,
        to_offset,
        to_features,
    ]
    wanted = (frequencies, first, shift, area, weights, last, offset, last if features is None else features)
    cast = [as_wanted(value, like) for value, like in zip(found, wanted, strict=True)]
    return (cast[0], cast[1], cast[2], cast[3], cast[4], cast[5], cast[6], cast[7])


def before_the_first_layer(
    slope: Tensor, frequencies: Tensor, first: Tensor, features: Tensor | None, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The derivatives by the frequencies, the first matrix and the feature maps, of each image, from that by the state
    above, (N, P, D), which all areas share.

    With s the sine and c the cosine of a turn 2πBp, ∂/∂B = 2π Σ_p (W_s c − W_c s)·slope·p: all sums over points are of
    slope times one of s, c, cx, cy, sx and sy.
    """
    points, turned = _turns(frequencies, size)
    sine, cosine = turned.sin(), turned.cos()
    along = [wave * points[:, axis, None] for wave in (cosine, sine) for axis in (0, 1)]
    sums = torch.cat([sine, cosine, *along], 1).to(slope.dtype).mT @ slope  # (N, 6F, D)
    to_first, by_place = sums[:, : 2 * len(frequencies)], sums[:, 2 * len(frequencies) :].to(turned.dtype)
    of_cosine, of_sine = by_place.reshape(len(sums), 2, 2, len(frequencies), -1).unbind(1)  # (N, 2, F, D)
    by_sine, by_cosine = first.to(turned.dtype).chunk(2, 1)
    to_turns = by_sine[:, None] * of_cosine - by_cosine[:, None] * of_sine
    to_frequencies = 2 * math.pi * to_turns.sum((0, 3)).mT
    to_features = slope.new_zeros(len(first), slope.shape[2])  # of nothing
    if features is not None:
        maps = slope.reshape(len(slope), *size, -1)
        down, across = bilinear_shares(features.shape[1:3], size, features)
        to_features = torch.einsum("ih,nijd,jw->nhwd", down, maps.to(down.dtype), across)
    return to_frequencies, to_first, to_features


def as_wanted(found: Tensor, like: Tensor) -> Tensor:
    """A derivative of each image summed to the shape of what it is by, which all may share, and in its precision."""
    return (found.sum(0, keepdim=True) if len(like) == 1 < len(found) else found).to(like.dtype).contiguous()


def _states(
    frequencies: Tensor,
    first: Tensor,
    shift: Tensor,
    area: Tensor,
    weights: Tensor,
    features: Tensor | None,
    size: tuple[int, int],
    area_at: int,
    smooth: bool,
) -> list[Tensor]:
    """The state of every layer before its activation, (N, 1 or A, P, D)."""
    turned = _turns(frequencies, size)[1]
    encoded = torch.cat([turned.sin(), turned.cos()], 1).to(first.dtype)
    state = (encoded @ first + shift[:, :1])[:, None]  # (N, 1, P, D)
    if features is not None:
        down, across = bilinear_shares(features.shape[1:3], size, features)
        sampled = torch.einsum("ih,nhwd,jw->nijd", down, features.to(down.dtype), across)
        state = state + sampled.flatten(1, 2)[:, None].to(state.dtype)
    states = []
    for layer in range(shift.shape[1]):
        if layer:
            state = _times(_activate(state, smooth), weights[:, layer - 1], shift[:, layer, None])
        if layer == area_at:
            state = state + area[:, :, None]
        states.append(state)
    return states


def _of_all_areas(values: Tensor) -> Tensor:
    """(N, A, P, D) as (N, A·P, D): one product of matrices for an image, not one for each of its masks."""
    return values.flatten(1, 2)


def _times(values: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """Values (N, A, P, D) times a matrix (1 or N, D, E), and a bias (1 or N, 1, E): (N, A, P, E)."""
    rows, count = _of_all_areas(values), max(len(values), len(matrix), 1 if bias is None else len(bias))
    rows, matrix = rows.expand(count, -1, -1), matrix.expand(count, -1, -1)
    found = torch.bmm(rows, matrix) if bias is None else torch.baddbmm(bias.expand(count, -1, -1), rows, matrix)
    return found.reshape(count, *values.shape[1:3], -1)


def _last_layer(hidden: Tensor, last: Tensor, offset: Tensor) -> Tensor:
    """The logits (N, A, P, 1) of masks."""
    return _times(hidden, last[:, :, None]) + offset[:, :, None, None]


def _turns(frequencies: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The centres of the cells of a grid, (P, 2), and what each frequency turns there, in radians, (P, F)."""
    precise = frequencies.to(torch.promote_types(frequencies.dtype, torch.float32))
    height, width = size
    y = (2 * torch.arange(height, device=precise.device, dtype=precise.dtype) + 1) / height - 1
    x = (2 * torch.arange(width, device=precise.device, dtype=precise.dtype) + 1) / width - 1
    points = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], 2).flatten(0, 1)
    return points, 2 * math.pi * points @ precise.mT


def _activate(state: Tensor, smooth: bool) -> Tensor:
    return F.silu(state) if smooth else F.relu(state)


def _slope(state: Tensor, smooth: bool) -> Tensor:
    """Of the activation."""
    if not smooth:
        return (state > 0).to(state.dtype)
    part = state.sigmoid()
    return part * (1 + state * (1 - part))
