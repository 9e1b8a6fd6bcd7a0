"""What `coordinate_mlp` and its derivative compute, in plain PyTorch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..bilinear import bilinear_shares

__all__ = ["coordinate_mlp_backward_reference", "coordinate_mlp_reference"]


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
    states, _, _ = _forward(frequencies, first, shift, area, weights, features, height, width, area_at, smooth)
    logits = _activate(states[-1], smooth) @ last[:, None, :, None] + offset[:, :, None, None]
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
    states, points, turned = _forward(
        frequencies, first, shift, area, weights, features, height, width, area_at, smooth
    )
    hidden = _activate(states[-1], smooth)
    towards = gradient.to(hidden.dtype).flatten(2)[..., None]  # (N, A, P, 1)
    if squash:
        masks = (hidden @ last[:, None, :, None] + offset[:, :, None, None]).sigmoid()
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
            to_weights.append((_activate(state, smooth).mT @ slope).sum(1))
            slope = (slope @ weights[:, layer - 1, None].mT) * _slope(state, smooth)
    slope = slope[:, 0]  # (N, P, D)
    encoded = torch.cat([turned.sin(), turned.cos()], 1).to(slope.dtype)
    to_first = encoded.mT @ slope
    to_sine, to_cosine = (slope @ first.mT).to(turned.dtype).chunk(2, 2)
    to_turned = (to_sine * turned.cos() - to_cosine * turned.sin()).sum(0)
    to_frequencies = 2 * math.pi * to_turned.mT @ points
    to_features = torch.zeros_like(last)  # of nothing
    if features is not None:
        maps = slope.reshape(len(slope), height, width, -1)
        down, across = bilinear_shares(features.shape[1:3], (height, width), features)
        to_features = torch.einsum("ih,nijd,jw->nhwd", down, maps.to(down.dtype), across)
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
    summed = [
        (value.sum(0, keepdim=True) if len(like) == 1 < len(value) else value).to(like.dtype).contiguous()
        for value, like in zip(found, wanted, strict=True)
    ]
    return (summed[0], summed[1], summed[2], summed[3], summed[4], summed[5], summed[6], summed[7])


def _forward(
    frequencies: Tensor,
    first: Tensor,
    shift: Tensor,
    area: Tensor,
    weights: Tensor,
    features: Tensor | None,
    height: int,
    width: int,
    area_at: int,
    smooth: bool,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The state of every layer before its activation (N, 1 or A, P, D), the points (P, 2), and what they turn to."""
    frequencies = frequencies.to(torch.promote_types(frequencies.dtype, torch.float32))
    y = (2 * torch.arange(height, device=first.device, dtype=frequencies.dtype) + 1) / height - 1
    x = (2 * torch.arange(width, device=first.device, dtype=frequencies.dtype) + 1) / width - 1
    points = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], 2).flatten(0, 1)
    turned = 2 * math.pi * points @ frequencies.mT
    encoded = torch.cat([turned.sin(), turned.cos()], 1).to(first.dtype)
    state = (encoded @ first + shift[:, :1])[:, None]  # (N, 1, P, D)
    if features is not None:
        down, across = bilinear_shares(features.shape[1:3], (height, width), features)
        sampled = torch.einsum("ih,nhwd,jw->nijd", down, features.to(down.dtype), across)
        state = state + sampled.flatten(1, 2)[:, None].to(state.dtype)
    states = []
    for layer in range(shift.shape[1]):
        if layer:
            state = _activate(state, smooth) @ weights[:, layer - 1, None] + shift[:, layer, None, None]
        if layer == area_at:
            state = state + area[:, :, None]
        states.append(state)
    return states, points, turned


def _activate(state: Tensor, smooth: bool) -> Tensor:
    return F.silu(state) if smooth else F.relu(state)


def _slope(state: Tensor, smooth: bool) -> Tensor:
    """Of the activation."""
    if not smooth:
        return (state > 0).to(state.dtype)
    part = state.sigmoid()
    return part * (1 + state * (1 - part))
