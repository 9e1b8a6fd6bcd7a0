"""Integrated gradients over the image itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...kernels.attribution_reduce import attribution_reduce
from ...kernels.integration_path import integration_path
from ..quadrature import Quadrature
from ..representation import logits_of
from .paths import Attribution, completeness_gap, passes

__all__ = ["integrated_gradients"]


def integrated_gradients(
    run: Callable[[Tensor], Tensor],
    images: Tensor,
    logits: Tensor,
    target: Tensor,
    rule: Quadrature,
    at_once: int,
    nothing: Tensor,
) -> Attribution:
    """X ∘ ∫ ∂f(a·x)/∂x da (Sundararajan et al. 2017, eq. 1), summed over channels.

    The baseline is 0 after normalisation, the data's mean colour. The sum over the image is f(x) − f(0) up to the error
    of the quadrature. Where the path's end is one of the rule's points, the gradient there is that of the prediction
    itself, which is not computed again.

    Args:
        run: the classifier, frozen and in eval mode, from images to logits.
        images: normalised (N, 3, H, W).
        logits: of the images, (N, K); where the rule has the path's end, with their graph from the images on.
        target: int64 (N,).
        rule: the quadrature.
        at_once: points per pass, 0 for all.
        nothing: logits of the baseline, (1, K).

    Returns:
        The map, signed, (N, H, W), and its completeness gap.
    """
    maps = torch.zeros_like(images[:, 0])
    if rule.reaches_end:
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(logits_of(logits, target).sum(), images)
        maps = maps + attribution_reduce(gradient, images.detach(), images.new_full((1,), float(rule.weights[-1])))
    for points, weights in passes(rule.before_end, at_once, images):
        path = integration_path(images, points).requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(logits_of(run(path), target.repeat(len(points))).sum(), path)
        maps = maps + attribution_reduce(gradient, images.detach(), weights)
    gained = logits_of(logits.detach() - nothing, target)
    return Attribution(maps, completeness_gap(maps.sum((1, 2)), gained))
