"""Samples of `integration_path` for tests and benchmarks."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..spec import KernelSpec, Sample, arguments_bytes
from . import _forward  # noqa: F401  registers the operator
from .reference import integration_path_reference

__all__ = ["INTEGRATION_PATH"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _case(
    name: str,
    shape: tuple[int, ...],
    steps: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
    baseline: str = "zero",
    from_bytes: bool = False,
    channels_last: bool = False,
) -> Sample:
    generator = torch.Generator(device).manual_seed(0)

    def random(*sizes: int) -> Tensor:
        return torch.rand(sizes, generator=generator, device=device)

    end = random(*shape)
    start = {
        "zero": None,
        "of channels": random(*shape[:2], *[1] * (len(shape) - 2)),
        "whole": random(*shape),
    }[baseline]
    points = random(steps).sort().values
    if from_bytes:
        bytes_last = (end.movedim(1, -1) * 255).to(torch.uint8).contiguous()
        return Sample(name, (bytes_last, start, points, _MEAN, _STD, dtype))
    if channels_last:
        end = end.contiguous(memory_format=torch.channels_last)
    return Sample(name, (end.to(dtype), None if start is None else start.to(dtype), points, (), (), dtype))


def _strided(sample: Sample) -> Sample:
    """Every second column, of maps whose channels lie together."""
    return Sample(sample.name, (sample.arguments[0][..., ::2], *sample.arguments[1:]))


def _samples(dtype: torch.dtype, device: torch.device) -> list[Sample]:
    case = partial(_case, dtype=dtype, device=device)
    return [
        case("zero-7x5x7x9", (2, 5, 7, 9), 3),
        case("channels-last-33x7x7", (2, 33, 7, 7), 4, baseline="of channels", channels_last=True),
        case("whole-attention-3x197", (1, 3, 50, 50), 2, baseline="whole"),
        case("bytes-37x41", (2, 3, 37, 41), 2, baseline="of channels", from_bytes=True),
        case("tokens-50x65", (2, 50, 65), 3, baseline="whole"),
        _strided(case("every-second-8x7x5", (2, 8, 7, 10), 2, channels_last=True)),
    ]


def _large(dtype: torch.dtype, device: torch.device) -> list[Sample]:
    case = partial(_case, dtype=dtype, device=device)
    return [
        case("images-from-bytes", (64, 3, 224, 224), 20, baseline="of channels", from_bytes=True),
        case("maps-last", (64, 1024, 14, 14), 20, baseline="of channels", channels_last=True),
        case("attention", (64, 12, 197, 197), 10),
    ]


INTEGRATION_PATH = KernelSpec("integration_path", integration_path_reference, _samples, _large, arguments_bytes)
