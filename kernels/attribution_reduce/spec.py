"""Samples of `attribution_reduce` for tests and benchmarks."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..spec import KernelSpec, Sample, arguments_bytes
from . import _forward  # noqa: F401  registers the operator
from .reference import attribution_reduce_reference

__all__ = ["ATTRIBUTION_REDUCE"]


def _case(
    name: str,
    shape: tuple[int, ...],
    steps: int,
    rule: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    shared: bool = False,
    channels_last: bool = False,
) -> Sample:
    generator = torch.Generator(device).manual_seed(0)

    def random(count: int) -> Tensor:
        values = torch.randn((count, *shape[1:]), generator=generator, device=device).to(dtype)
        return values.contiguous(memory_format=torch.channels_last) if channels_last else values

    weights = torch.rand(steps, generator=generator, device=device)
    return Sample(name, (random(steps * shape[0]), random(shape[0] * (1 if shared else steps)), weights, rule))


def _strided(sample: Sample) -> Sample:
    """Every second column of gradients and values."""
    gradients, values, *rest = sample.arguments
    return Sample(sample.name, (gradients[..., ::2], values[..., ::2], *rest))


def _samples(dtype: torch.dtype, device: torch.device) -> list[Sample]:
    case = partial(_case, dtype=dtype, device=device)
    return [
        case("product-70x7x9", (2, 70, 7, 9), 3, "product"),
        case("shared-last-33x7x7", (3, 33, 7, 7), 4, "product", shared=True, channels_last=True),
        case("positive-attention-3x50", (2, 3, 50, 50), 2, "positive product"),
        case("gradient-5x13x13", (1, 5, 13, 13), 1, "positive gradient"),
        case("value-tokens-50x65", (2, 50, 65), 3, "positive value"),
        _strided(case("every-second-6x7x5", (2, 6, 7, 10), 2, "product", shared=True)),
    ]


def _large(dtype: torch.dtype, device: torch.device) -> list[Sample]:
    case = partial(_case, dtype=dtype, device=device)
    return [
        case("maps", (64, 1024, 14, 14), 20, "product"),
        case("maps-last", (64, 1024, 14, 14), 20, "product", channels_last=True),
        case("attention", (64, 12, 197, 197), 10, "positive product"),
    ]


ATTRIBUTION_REDUCE = KernelSpec("attribution_reduce", attribution_reduce_reference, _samples, _large, arguments_bytes)
