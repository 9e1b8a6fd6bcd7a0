"""Samples of `explain_finish` for tests and benchmarks."""

from __future__ import annotations

import torch

from ..spec import KernelSpec, Sample, arguments_bytes
from . import _forward  # noqa: F401  registers the operator
from .reference import explain_finish_reference

__all__ = ["EXPLAIN_FINISH"]


def _case(
    name: str, grid: tuple[int, int], size: tuple[int, int], count: int, dtype: torch.dtype, device: torch.device
) -> Sample:
    generator = torch.Generator(device).manual_seed(0)
    maps = torch.rand((count, *grid), generator=generator, device=device).to(dtype)
    images = torch.randint(0, 256, (count, *size, 3), generator=generator, device=device, dtype=torch.uint8)
    table = torch.arange(256, device=device)[:, None].expand(256, 3).to(torch.uint8).contiguous()
    low = torch.full((count,), 0.1, device=device)
    return Sample(name, (maps, low, low + 0.8, images, table, 0.47))


def _samples(dtype: torch.dtype, device: torch.device) -> list[Sample]:
    return [
        _case("7x7-to-37x41", (7, 7), (37, 41), 2, dtype, device),
        _case("same-size-33x29", (33, 29), (33, 29), 3, dtype, device),
        _case("one-cell-to-1x5", (1, 1), (1, 5), 1, dtype, device),
    ]


def _large(dtype: torch.dtype, device: torch.device) -> list[Sample]:
    return [_case("14x14-to-448x448", (14, 14), (448, 448), 256, dtype, device)]


EXPLAIN_FINISH = KernelSpec("explain_finish", explain_finish_reference, _samples, _large, arguments_bytes)
