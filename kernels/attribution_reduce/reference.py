"""What `attribution_reduce` computes, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["RULES", "attribution_reduce_reference"]

RULES = ("product", "positive product", "positive gradient", "positive value")


def attribution_reduce_reference(gradients: Tensor, values: Tensor, weights: Tensor, rule: str) -> Tensor:
    """Σ_s w_s Σ_c f(g, v), in single precision at least, (N, …); see `attribution_reduce`."""
    precision = torch.promote_types(gradients.dtype, torch.float32)
    weights = weights.to(precision)
    apart = gradients.to(precision).reshape(weights.shape[0], -1, *gradients.shape[1:])  # (S, N, C, …)
    by_step = values.shape[0] == gradients.shape[0]
    value = values.to(precision).reshape(apart.shape if by_step else (1, *values.shape))
    if rule == "positive gradient":
        apart = apart.relu()
    if rule == "positive value":
        value = value.relu()
    terms = apart * value
    if rule == "positive product":
        terms = terms.relu()
    of_step = weights.reshape(-1, *[1] * (terms.ndim - 2))
    return (terms.sum(2) * of_step).sum(0)
