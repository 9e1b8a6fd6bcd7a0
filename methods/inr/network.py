"""Coordinate networks: the logit of a mask as a function of the place and of the mask's area, one network per image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...kernels.coordinate_mlp import coordinate_mlp
from .config import INRConfig

__all__ = ["CoordinateNetworks", "area_code", "grid_of_points", "logit"]

_AREA_SPREAD = 1.5  # of log areas between 0.01 and 1, so that the code is of the order of one


def grid_of_points(height: int, width: int) -> Tensor:
    """Centres of the pixels of an image, (H·W, 2): x to the right and y downwards, both in (−1, 1); row by row."""
    y = (2 * torch.arange(height, dtype=torch.float32) + 1) / height - 1
    x = (2 * torch.arange(width, dtype=torch.float32) + 1) / width - 1
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([columns.flatten(), rows.flatten()], 1)


def logit(area: Tensor) -> Tensor:
    """log(a / (1 − a)), of areas in (0, 1)."""
    return area.log() - (-area).log1p()


def area_code(areas: Tensor) -> Tensor:
    """What a network is told of areas (A,): (A, 1), of the order of one for areas from 0.01 to 0.9."""
    return (logit(areas)[:, None] + 2) / _AREA_SPREAD


class CoordinateNetworks(nn.Module):
    """One small network per image, their weights stacked: (place, area) to the logit of the mask.

    The features γ(p) = [sin 2πBp, cos 2πBp] (Tancik et al. 2020) are the same for all images, and so are the first
    weights: an image gets alone what it gets in a batch. The last layer starts at zero but for the logit of the area,
    so that every pixel begins as kept to the fraction that is asked for.

    Args:
        count: images, N.
        config: sizes and seed.
    """

    frequencies: Tensor

    def __init__(self, count: int, config: INRConfig) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(config.seed)
        frequencies = config.frequency * torch.randn(config.features, 2, generator=generator) / 2
        self.register_buffer("frequencies", frequencies)

        def of_each_image(values: Tensor) -> nn.Parameter:
            return nn.Parameter(values[None].repeat(count, *[1] * values.ndim))

        def drawn(inputs: int) -> Tensor:
            return math.sqrt(6 / inputs) * (2 * torch.rand(inputs, config.width, generator=generator) - 1)

        self.first = of_each_image(drawn(2 * config.features))
        between = [drawn(config.width) for _ in range(config.layers - 1)]
        self.weights = of_each_image(torch.stack(between) if between else torch.zeros(0, config.width, config.width))
        self.shift = of_each_image(torch.zeros(config.layers, config.width))
        self.of_area = of_each_image(0.5 * torch.randn(1, config.width, generator=generator))
        last = torch.randn(config.width, 1, generator=generator)[:, 0]
        self.last = of_each_image(last * (0.1 / math.sqrt(config.width)))
        self.offset = of_each_image(torch.zeros(1))

    def forward(self, grid: tuple[int, int], areas: Tensor, images: slice = slice(None)) -> Tensor:
        """The logits of all images' masks.

        Args:
            grid: (height, width), at the centres of whose cells the networks are asked.
            areas: (A,) in (0, 1).
            images: whose networks are asked.

        Returns:
            (N, A, height·width).
        """
        return coordinate_mlp(
            grid,
            self.frequencies,
            self.first[images],
            self.shift[images],
            area_code(areas)[None] @ self.of_area[images],
            self.weights[images],
            self.last[images],
            self.offset[images] + logit(areas),
            squash=False,
        ).flatten(2)
