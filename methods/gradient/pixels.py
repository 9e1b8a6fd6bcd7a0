"""Integrated gradients over the image itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...kernels.attribution_reduce import attribution_reduce
from ...kernels.integration_path import integration_path
from ..quadrature import Quadrature
from ..representation import logits_of
from .paths import Attribution, completeness_gap, passes

__all__ = ["integrated_gradients"]


def integrated_gradients(
    model: nn.Module, images: Tensor, target: Tensor, rule: Quadrature, at_once: int, gained: Tensor
) -> Attribution:
    """X ∘ ∫ ∂f(a·x)/∂x da (Sundararajan et al. 2017, eq. 1), summed over channels.

    The baseline is 0 after normalisation, the data's mean colour. The sum over the image is f(x) − f(0) up to the error
    of the quadrature.

    Args:
        model: the classifier, frozen and in eval mode.
        images: normalised (N, 3, H, W).
        target: int64 (N,).
        rule: the quadrature.
        at_once: points per pass, 0 for all.
        gained: the target's logit less that of the baseline, (N,).

    Returns:
        The map, signed, (N, H, W), and its completeness gap.
    """
    maps = torch.zeros_like(images[:, 0])
    for points, weights in passes(rule, at_once, images):
        path = integration_path(images, points).requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(logits_of(model(path), target.repeat(len(points))).sum(), path)
        maps = maps + attribution_reduce(gradient, images, weights)
    return Attribution(maps, completeness_gap(maps.sum((1, 2)), gained))
