"""Coordinate networks: the logit of a mask as a function of the place and of the mask's area, one network per image."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import INRConfig

__all__ = ["CoordinateNetworks", "area_code", "grid_of_points", "logit"]

_AREA_SPREAD = 1.5  # of log areas between 0.01 and 1, so that the code is of the order of one


def grid_of_points(height: int, width: int, *, device: torch.device | str = "cpu") -> Tensor:
    """Centres of the pixels of an image, (H·W, 2): x to the right and y downwards, both in (−1, 1); row by row."""
    y = (2 * torch.arange(height, device=device, dtype=torch.float32) + 1) / height - 1
    x = (2 * torch.arange(width, device=device, dtype=torch.float32) + 1) / width - 1
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
        sizes = [2 * config.features] + [config.width] * config.layers
        weights, biases = [], []
        for inputs, outputs in pairwise(sizes):
            bound = math.sqrt(6 / inputs)
            first = bound * (2 * torch.rand(inputs, outputs, generator=generator) - 1)
            weights.append(nn.Parameter(first[None].repeat(count, 1, 1)))
            biases.append(nn.Parameter(torch.zeros(count, 1, outputs)))
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList(biases)
        of_area = 0.5 * torch.randn(1, config.width, generator=generator)
        self.of_area = nn.Parameter(of_area[None].repeat(count, 1, 1))
        last = torch.randn(config.width, 1, generator=generator) * (0.1 / math.sqrt(config.width))
        self.last = nn.Parameter(last[None].repeat(count, 1, 1))
        self.offset = nn.Parameter(torch.zeros(count, 1, 1))

    def forward(self, points: Tensor, areas: Tensor, images: slice = slice(None)) -> Tensor:
        """The logits of all images' masks.

        Args:
            points: places (P, 2) as of `grid_of_points`.
            areas: (A,) in (0, 1).
            images: whose networks are asked.

        Returns:
            (N, A, P).
        """
        turned = 2 * math.pi * points @ self.frequencies.T
        encoded = torch.cat([turned.sin(), turned.cos()], 1)
        hidden = encoded[None] @ self.weights[0][images] + self.biases[0][images]  # (N, P, D), the same for all areas
        code = area_code(areas)[None] @ self.of_area[images]  # (N, A, D)
        hidden = F.silu(hidden[:, None] + code[:, :, None]).flatten(1, 2)
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            hidden = F.silu(torch.baddbmm(bias[images], hidden, weight[images]))
        found = torch.baddbmm(self.offset[images], hidden, self.last[images]).reshape(-1, len(areas), len(points))
        return found + logit(areas)[:, None]
