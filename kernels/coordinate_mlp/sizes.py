"""How the fused kernels address the weights of coordinate networks."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Sizes"]


class Sizes(NamedTuple):
    """Sizes of a call.

    Attributes:
        images: N.
        areas: A.
        layers: L, hidden ones.
        values: D, of a layer.
        block_d: the same up to a power of two.
        local: there are feature maps.
        grid: (h, w) of them; (1, 1) without.
        tensors: the arguments from `first` to `features`, contiguous.
        strides: of each from one image to the next; 0 where all images have the same.
    """

    images: int
    areas: int
    layers: int
    values: int
    block_d: int
    local: bool
    grid: tuple[int, int]
    tensors: tuple[Tensor, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, *given: Tensor | None) -> Sizes:
        """Of the arguments of `coordinate_mlp` from `first` to `features`; without those their place is taken by the
        first one, which is not read.
        """
        first, shift, area = (value for value in given[:3] if value is not None)
        features = given[-1]
        tensors = [first if value is None else value for value in given]
        values = first.shape[2]
        whole = tuple(value.contiguous() for value in tensors)
        return cls(
            images=max(len(value) for value in tensors),
            areas=area.shape[1],
            layers=shift.shape[1],
            values=values,
            block_d=max(16, _power_of_two(values)),
            local=features is not None,
            grid=(1, 1) if features is None else (features.shape[1], features.shape[2]),
            tensors=whole,
            strides=tuple(value.stride(0) if len(value) > 1 else 0 for value in whole),
        )

    def constants(self, frequencies: Tensor, area_at: int, smooth: bool, squash: bool) -> dict[str, Any]:
        """What a call's kernels are compiled for."""
        return {
            "FREQUENCIES": len(frequencies),
            "VALUES": self.values,
            "LAYERS": self.layers,
            "AREA_AT": area_at,
            "SMOOTH": smooth,
            "SQUASH": squash,
            "LOCAL": self.local,
            "EXACT": self.tensors[0].dtype == torch.float32,
            "BLOCK_F": max(16, _power_of_two(len(frequencies))),
            "BLOCK_D": self.block_d,
        }


def _power_of_two(least: int) -> int:
    """The smallest one that is not less."""
    return int(1 << (least - 1).bit_length())
