"""Integrals along the straight path from a baseline to a feature map, many points in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...kernels.attribution_reduce import attribution_reduce
from ...kernels.integration_path import integration_path
from ..quadrature import Quadrature
from ..representation import class_gradient, class_logits

__all__ = [
    "Attribution",
    "Integrand",
    "PathIntegral",
    "by_point",
    "channel_minimum",
    "completeness_gap",
    "integrate_layer",
    "passes",
    "weighted_sum",
]


class Attribution(NamedTuple):
    """What a method finds.

    Attributes:
        maps: (N, h, w).
        gap: the completeness gap of each image, (N,), see `completeness_gap`; None where nothing is integrated.
    """

    maps: Tensor
    gap: Tensor | None


class PathIntegral(NamedTuple):
    """An integral along the path of a layer from its baseline to its value.

    Attributes:
        maps: the integral, summed over channels, (M, h, w).
        walked: ∫ ⟨∂f/∂v, dv⟩ by the same points, (M,).
        gained: the target's logit at the end of the path less that at its start, (M,).
    """

    maps: Tensor
    walked: Tensor
    gained: Tensor


class Integrand:
    """The gradient of the target's logit at points of a layer, in closed form where the head allows it.

    Args:
        model: the classifier, frozen.
        layer: name of the layer.
        head: weights (K, C) of a head that is linear after global average pooling of this layer, or None.
    """

    def __init__(self, model: nn.Module, layer: str, head: Tensor | None) -> None:
        self.model, self.layer, self.head = model, layer, head

    def constant(self, values: Tensor, target: Tensor) -> Tensor:
        """The gradient (M, C, 1, 1) of a linear head, the same at every point and position: w_y / (h·w)."""
        assert self.head is not None, "only asked where there is a linear head"
        weights = torch.nn.functional.embedding(target, self.head) / (values.shape[2] * values.shape[3])
        return weights.repeat(values.shape[0] // target.shape[0], 1)[..., None, None]

    def gradient(self, images: Tensor, values: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient at any point, (M, C, h, w), and the logit there, (M,); M a multiple of the number of images,
        point by point.
        """
        return class_gradient(self.model, images, self.layer, values, target)

    def logits(self, images: Tensor, values: Tensor, target: Tensor) -> Tensor:
        """The target's logit at any point, (M,)."""
        return class_logits(self.model, images, self.layer, values, target)


def by_point(values: Tensor, count: int) -> Tensor:
    """Values of all points of a path, (P·N, …), apart: (P, N, …)."""
    return values.reshape(count, -1, *values.shape[1:])


def channel_minimum(maps: Tensor) -> Tensor:
    """The baseline of IIA and DIX: each channel's smallest value in the image, (N, C, 1, 1)."""
    return maps.amin((2, 3), keepdim=True)


def completeness_gap(walked: Tensor, gained: Tensor) -> Tensor:
    """How far a quadrature is from the integral: the sum of the gradients along the path, less what the logit gains on
    it, over that gain (the completeness axiom of Sundararajan et al. 2017). 0 is exact; (M,).
    """
    return (walked - gained).abs() / gained.abs().clamp_min(1e-12)


def weighted_sum(values: Tensor, weights: Tensor) -> Tensor:
    """The sum over a path's points of (P·N, …) with weights (P,): (N, …)."""
    apart = by_point(values, len(weights))
    return (apart * weights.reshape(-1, *[1] * (apart.ndim - 1))).sum(0)


def passes(rule: Quadrature, at_once: int, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Points and weights of a rule in groups that go through the model together, as few and as even as they can be.

    Args:
        rule: the quadrature.
        at_once: points per group, at most; 0 for all.
        like: of the dtype and device wanted.
    """
    groups = -(-len(rule) // (at_once or len(rule)))
    for points, weights in zip(np.array_split(rule.points, groups), np.array_split(rule.weights, groups), strict=True):
        yield (
            torch.tensor(points, dtype=like.dtype, device=like.device),
            torch.tensor(weights, dtype=like.dtype, device=like.device),
        )


def integrate_layer(
    integrand: Integrand, images: Tensor, end: Tensor, target: Tensor, rule: Quadrature, at_once: int
) -> PathIntegral:
    """(u − r) ∘ ∫ v ∘ ∂f/∂v da with v = r + a·(u − r) and r each channel's minimum (IIA, eq. of the innermost integral;
    DIX of one layer), summed over channels.

    With a linear head ∂f/∂v is a constant, and the integral is that constant times (u + r) / 2, exactly.

    Args:
        integrand: gives the gradients.
        images: (N, 3, H, W) with which the model runs.
        end: u, (M, C, h, w), M a multiple of N.
        target: int64 (N,).
        rule: the quadrature.
        at_once: points per pass.
    """
    baseline = channel_minimum(end)
    distance = end - baseline
    if integrand.head is not None:
        slope = integrand.constant(end, target)
        gained = (slope * distance).sum((1, 2, 3))
        return PathIntegral((distance * slope * (end + baseline) / 2).sum(1), gained, gained)
    total, walked = torch.zeros_like(end[:, 0]), torch.zeros_like(end[:, 0, 0, 0])
    logits: list[Tensor] = []
    for points, weights in passes(rule, at_once, end):
        gradient, found = integrand.gradient(images, integration_path(end, points, baseline), target)
        of_start = attribution_reduce(gradient, distance * baseline, weights)  # v is r and a·(u − r)
        of_way = attribution_reduce(gradient, distance * distance, weights * points)
        total = total + of_start + of_way
        walked = walked + attribution_reduce(gradient, distance, weights).sum((1, 2))
        logits.append(by_point(found, len(points)))
    if rule.closed:
        gained = logits[-1][-1] - logits[0][0]
    else:
        ends = torch.tensor([0.0, 1.0], dtype=end.dtype, device=end.device)
        first, last = by_point(integrand.logits(images, integration_path(end, ends, baseline), target), 2)
        gained = last - first
    return PathIntegral(total, walked, gained)
