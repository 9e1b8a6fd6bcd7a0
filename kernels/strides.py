"""How the fused kernels address images and feature maps: by image, channel and place, in the layout they come in."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Addressed", "addressed", "is_channels_last", "path_layout"]


class Addressed(NamedTuple):
    """A tensor with its strides; 0 where it is broadcast.

    Attributes:
        values: of the storage.
        strides: of image, channel, and place in row-major order.
    """

    values: Tensor
    strides: tuple[int, int, int]


def addressed(values: Tensor, count: int, places: int) -> Addressed:
    """Address (1 or N, 1 or C, …) by image, channel and place; bytes come as (N, H, W, 3).

    Args:
        values: copied only where its rows do not follow one another.
        count: images, N.
        places: of each channel; values that have but one place are broadcast.
    """
    if values.dtype == torch.uint8:
        values = values.movedim(-1, 1)
    try:
        flat = values.view(values.shape[0], values.shape[1], -1)
    except RuntimeError:  # the last dimensions have no common stride
        flat = values.reshape(values.shape[0], values.shape[1], -1)
    sizes = (count, max(flat.shape[1], 2), places)
    strides = tuple(
        0 if own == 1 < size else step for own, size, step in zip(flat.shape, sizes, flat.stride(), strict=True)
    )
    return Addressed(flat, (strides[0], strides[1], strides[2]))


def is_channels_last(values: Tensor) -> bool:
    """The channels of a place lie next to one another, and there is more than one way to lie."""
    return values.ndim == 4 and not values.is_contiguous() and values.is_contiguous(memory_format=torch.channels_last)


def path_layout(end: Tensor) -> torch.memory_format:
    """How the points of a path lie: as its end does; those of bytes with the channels of a pixel together."""
    last = end.dtype == torch.uint8 or is_channels_last(end)
    return torch.channels_last if last else torch.contiguous_format
