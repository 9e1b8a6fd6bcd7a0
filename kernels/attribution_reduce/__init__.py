"""Gradients times activations, summed over the steps of a quadrature and over channels or heads; see README.md."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ...errors import UsageError
from ..arguments import about, require_device
from ..dispatch import kernel_op
from .reference import RULES, attribution_reduce_reference

__all__ = ["Rule", "attribution_reduce"]

Rule = Literal["product", "positive product", "positive gradient", "positive value"]

_forward = kernel_op("attribution_reduce", attribution_reduce_reference)


def attribution_reduce(gradients: Tensor, values: Tensor, weights: Tensor, rule: Rule = "product") -> Tensor:
    """Σ_s w_s Σ_c f(g, v): a map for each image, from its gradients at every step. Gradients do not go through it.

    Args:
        gradients: g, (S·N, C, …), step by step, as of `integration_path`; of attention matrices C is the heads.
        values: v, (S·N, C, …) of each step, or (N, C, …) the same for all.
        weights: w, (S,), of the quadrature; over the number of heads for their mean.
        rule: f: g·v (``"product"``), max(0, g·v), max(0, g)·v (``"positive gradient"``), or g·max(0, v).

    Returns:
        (N, …), in single precision at least.

    Raises:
        UsageError: an argument of another shape, dtype or device, or no such rule.
    """
    if rule not in RULES:
        raise UsageError(f"there is no rule '{rule}'; there are: {', '.join(RULES)}")
    if weights.ndim != 1 or not weights.numel() or not weights.is_floating_point():
        raise UsageError(f"weights are floating point (S,), not {about(weights)}")
    steps = weights.shape[0]
    if gradients.ndim < 3 or not gradients.numel() or not gradients.is_floating_point() or gradients.shape[0] % steps:
        raise UsageError(
            f"gradients are floating point (S·N, C, …) with S = {steps} as the weights say, not {about(gradients)}"
        )
    images = gradients.shape[0] // steps
    fits = values.shape[1:] == gradients.shape[1:] and values.shape[0] in (gradients.shape[0], images)
    if not fits or not values.is_floating_point():
        raise UsageError(
            f"values are floating point {tuple(gradients.shape)} as the gradients, or {images} "
            f"of them for all steps, not {about(values)}"
        )
    require_device(gradients, "gradients", values=values, weights=weights)
    result: Tensor = _forward(gradients.detach(), values.detach(), weights.detach(), rule)
    return result
