"""Integrals along the straight path from a baseline to a feature map, many points in one pass."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..quadrature import Quadrature
from ..representation import class_gradient

__all__ = ["Integrand", "by_point", "channel_minimum", "integrate_layer", "interpolate", "passes"]


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

    def gradient(self, images: Tensor, values: Tensor, target: Tensor) -> Tensor:
        """The gradient at any point, (M, C, h, w); M a multiple of the number of images, point by point."""
        return class_gradient(self.model, images, self.layer, values, target)


def by_point(values: Tensor, count: int) -> Tensor:
    """Values of all points of a path, (P·N, …), apart: (P, N, …)."""
    return values.reshape(count, -1, *values.shape[1:])


def channel_minimum(maps: Tensor) -> Tensor:
    """The baseline of IIA and DIX: each channel's smallest value in the image, (N, C, 1, 1)."""
    return maps.amin((2, 3), keepdim=True)


def interpolate(baseline: Tensor, end: Tensor, points: Tensor) -> Tensor:
    """The path r + a·(u − r) at points a, point by point: (P·N, …) of `end` (N, …) and points (P,)."""
    scale = points.to(end.dtype).reshape(-1, *[1] * end.ndim)
    path: Tensor = (baseline[None] + scale * (end - baseline)[None]).flatten(0, 1)
    return path


def passes(rule: Quadrature, at_once: int, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Points and weights of a rule in groups that go through the model together.

    Args:
        rule: the quadrature.
        at_once: points per group; 0 for all.
        like: of the dtype and device wanted.
    """
    size = at_once or len(rule)
    for start in range(0, len(rule), size):
        yield (
            torch.tensor(rule.points[start : start + size], dtype=like.dtype, device=like.device),
            torch.tensor(rule.weights[start : start + size], dtype=like.dtype, device=like.device),
        )


def integrate_layer(
    integrand: Integrand, images: Tensor, end: Tensor, target: Tensor, rule: Quadrature, at_once: int
) -> Tensor:
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

    Returns:
        (M, h, w).
    """
    baseline = channel_minimum(end)
    if integrand.head is not None:
        inner = integrand.constant(end, target) * (end + baseline) / 2
        return ((end - baseline) * inner).sum(1)
    total = torch.zeros_like(end)
    for points, weights in passes(rule, at_once, end):
        path = interpolate(baseline, end, points)
        terms = path * integrand.gradient(images, path, target)
        total = total + (by_point(terms, len(points)) * weights.reshape(-1, 1, 1, 1, 1)).sum(0)
    return ((end - baseline) * total).sum(1)
