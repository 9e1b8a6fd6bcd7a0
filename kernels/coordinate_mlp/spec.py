"""Samples of `coordinate_mlp` for tests and benchmarks."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..spec import KernelSpec, Sample, arguments_bytes
from . import _backward, _forward  # noqa: F401  registers the operators
from .reference import coordinate_mlp_backward_reference, coordinate_mlp_reference

__all__ = ["COORDINATE_MLP", "COORDINATE_MLP_BACKWARD"]


def _case(
    name: str,
    size: tuple[int, int],
    *,
    dtype: torch.dtype,
    device: torch.device,
    images: int = 2,
    areas: int = 2,
    frequencies: int = 16,
    values: int = 32,
    layers: int = 3,
    area_at: int = 0,
    grid: tuple[int, int] | None = None,
    own: bool = True,
    smooth: bool = True,
    squash: bool = True,
) -> Sample:
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=generator, device=device)).to(dtype)

    count = images if own else 1
    tensors = (
        torch.randn(frequencies, 2, generator=generator, device=device),
        random(count, 2 * frequencies, values, scale=1 / math.sqrt(frequencies)),
        random(count, layers, values, scale=0.1),
        random(1, areas, values),
        random(count, layers - 1, values, values, scale=math.sqrt(2 / values)),
        random(count, values, scale=1 / math.sqrt(values)),
        random(images, areas),
        random(images, *grid, values) if grid else None,
    )
    return Sample(name, (*tensors, *size, area_at, smooth, squash, dtype))


def _strided(sample: Sample) -> Sample:
    """Features whose channels are the slowest dimension in memory, as those of a convolution are."""
    features = sample.arguments[7].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    return Sample(sample.name, (*sample.arguments[:7], features, *sample.arguments[8:]))


def _samples(dtype: torch.dtype, device: torch.device) -> list[Sample]:
    case = partial(_case, dtype=dtype, device=device)
    return [
        case("own-17x19", (17, 19)),
        case("local-trunk-12x13", (12, 13), grid=(3, 5), area_at=1, layers=2, own=False, smooth=False),
        case("width-40-deep-9x11", (9, 11), values=40, frequencies=10, layers=5, area_at=2, areas=1),
        case("one-layer-logits-8x8", (8, 8), layers=1, frequencies=20, images=1, squash=False, grid=(1, 1)),
        case("width-64-5x7", (5, 7), values=64, frequencies=32, layers=4, images=1, grid=(2, 2)),
        case("width-128-7x9", (7, 9), values=128, layers=2, images=1),
        _strided(case("strided-features-9x10", (9, 10), grid=(4, 3), own=False, areas=1)),
    ]


def _large(dtype: torch.dtype, device: torch.device) -> list[Sample]:
    case = partial(_case, dtype=dtype, device=device, images=64, areas=4, frequencies=32, values=64, layers=4)
    return [
        case("own-224", (224, 224)),
        case("local-224", (224, 224), own=False, grid=(14, 14), area_at=3, smooth=False),
    ]


def _towards(sample: Sample) -> Sample:
    """The backward pass of a sample, with a gradient for its result."""
    *arguments, dtype = sample.arguments
    images, areas = arguments[6].shape
    generator = torch.Generator(arguments[0].device).manual_seed(1)
    shape = (images, areas, *arguments[8:10])
    gradient = torch.randn(shape, generator=generator, device=arguments[0].device).to(dtype)
    return Sample(sample.name, (gradient, *arguments))


def _products(arguments: tuple[Any, ...]) -> int:
    """Multiplications and additions of the matrix products of a forward pass."""
    first, shift, area = arguments[1:4]
    images = max(len(value) for value in arguments[1:8] if value is not None)
    points, values, layers, area_at = arguments[8] * arguments[9], first.shape[2], shift.shape[1], arguments[10]
    of_point = first.shape[1] * values + values * values * (area_at + area.shape[1] * (layers - 1 - area_at))
    return int(2 * images * points * of_point)


COORDINATE_MLP = KernelSpec(
    "coordinate_mlp", coordinate_mlp_reference, _samples, _large, arguments_bytes, _products, tuple(range(8))
)
COORDINATE_MLP_BACKWARD = KernelSpec(
    "coordinate_mlp_backward",
    coordinate_mlp_backward_reference,
    lambda dtype, device: [_towards(sample) for sample in _samples(dtype, device)],
    lambda dtype, device: [_towards(sample) for sample in _large(dtype, device)],
    arguments_bytes,
    lambda arguments: 3 * _products(arguments[1:]),
)
