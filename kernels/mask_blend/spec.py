"""Samples of `mask_blend` for tests and benchmarks."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..spec import KernelSpec, Sample, arguments_bytes
from . import _backward, _forward  # noqa: F401  registers the operators
from .reference import mask_blend_backward_reference, mask_blend_reference

__all__ = ["MASK_BLEND", "MASK_BLEND_BACKWARD"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _case(
    name: str,
    size: tuple[int, int, int, int],
    *,
    dtype: torch.dtype,
    device: torch.device,
    from_bytes: bool = False,
    blurred: bool = False,
    branches: str = "keep",
    channels_last: bool = False,
) -> Sample:
    count, each, height, width = size
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator, device=device)

    images = random(count, 3, height, width)
    if from_bytes:
        images = (images.permute(0, 2, 3, 1) * 255).to(torch.uint8).contiguous()
    masks = random(count, each, height, width).to(dtype)
    baseline = random(count, 3, height, width) if blurred else random(1, 3, 1, 1)
    keep, remove = branches != "remove", branches != "keep"
    return Sample(name, (images, masks, baseline, _MEAN, _STD, keep, remove, dtype, channels_last))


def _strided(sample: Sample) -> Sample:
    """Every second column of images and masks, and a baseline that is the same for all columns."""
    images, masks, baseline, *rest = sample.arguments
    images, masks = images[..., ::2], masks[..., ::2]
    return Sample(sample.name, (images, masks, baseline.expand(-1, -1, *masks.shape[2:]), *rest))


def _samples(dtype: torch.dtype, device: torch.device) -> list[Sample]:
    case = partial(_case, dtype=dtype, device=device)
    return [
        case("keep-37x41", (2, 3, 37, 41)),
        case("both-bytes-37x41", (2, 3, 37, 41), from_bytes=True, branches="both"),
        case("remove-blurred-last-63x65", (3, 1, 63, 65), blurred=True, branches="remove", channels_last=True),
        case("both-bytes-last-1x1", (1, 2, 1, 1), from_bytes=True, branches="both", channels_last=True),
        case("both-last-32x32", (2, 4, 32, 32), branches="both", channels_last=True),
        _strided(case("both-strided-21x22", (2, 3, 21, 44), branches="both")),
    ]  # fmt: skip


def _large(dtype: torch.dtype, device: torch.device) -> list[Sample]:
    case, size = partial(_case, dtype=dtype, device=device), (64, 4, 224, 224)
    return [
        case("both-bytes", size, from_bytes=True, branches="both"),
        case("both-bytes-last", size, from_bytes=True, branches="both", channels_last=True),
        case("keep-blurred-last", size, blurred=True, channels_last=True),
    ]


def _towards(sample: Sample) -> Sample:
    """The backward pass of a sample, with a gradient for its result."""
    images, masks, baseline, _, std, keep, remove, dtype, channels_last = sample.arguments
    generator = torch.Generator(masks.device).manual_seed(1)
    shape = ((keep + remove) * masks.shape[0] * masks.shape[1], 3, *masks.shape[2:])
    layout = torch.channels_last if channels_last else torch.contiguous_format
    gradient = torch.randn(shape, generator=generator, device=masks.device).to(dtype).contiguous(memory_format=layout)
    return Sample(sample.name, (gradient, images, masks, baseline, std, keep, remove))


def _backward_bytes(arguments: tuple[Any, ...], result: torch.Tensor) -> int:
    """Without the masks, of which only the shape is needed."""
    return arguments_bytes((*arguments[:2], *arguments[3:]), result)


MASK_BLEND = KernelSpec("mask_blend", mask_blend_reference, _samples, _large, arguments_bytes, differentiable=(1,))
MASK_BLEND_BACKWARD = KernelSpec(
    "mask_blend_backward",
    mask_blend_backward_reference,
    lambda dtype, device: [_towards(sample) for sample in _samples(dtype, device)],
    lambda dtype, device: [_towards(sample) for sample in _large(dtype, device)],
    _backward_bytes,
)
