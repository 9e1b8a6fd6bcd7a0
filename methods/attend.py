"""Attention whose matrix nobody asks for, with its gradient in matrix products that a graph keeps as they are.

What autograd records of `softmax(q kᵀ) v` is longer: it expands operands to the shape that they have, transposes what
one product could give transposed, and sums a product as large as the matrix where a row of the output is enough.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["attend"]


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    """softmax(scale · q kᵀ + b) v.

    Its gradient is that of Dao et al. 2022 (FlashAttention, appendix B.2), whose Σ_j P_ij ∂P_ij is a product of output
    and its gradient, Σ_d O_id ∂O_id.

    Args:
        query: (N, heads, Q, d).
        key: (N, heads, T, d).
        value: (N, heads, T, d).
        scale: of the products.
        bias: added before the softmax, broadcast to (N, heads, Q, T); takes no gradient.

    Returns:
        (N, heads, Q, d).
    """
    result: Tensor = _Attend.apply(query, key, value, scale, bias)  # type: ignore[no-untyped-call]
    return result


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None) -> Tensor:
        queries, keys, values = (tensor.flatten(0, 1) for tensor in (query * scale, key, value))
        logits = torch.bmm(queries, keys.transpose(1, 2))
        if bias is not None:
            logits = (logits.reshape(*query.shape[:2], *logits.shape[1:]) + bias).flatten(0, 1)
        matrix = logits.softmax(-1)
        output = torch.bmm(matrix, values)
        ctx.save_for_backward(queries, keys, values, matrix, output)
        ctx.scale = scale
        return output.reshape(*query.shape[:3], -1).clone()  # a model may write into it

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        queries, keys, values, matrix, output = ctx.saved_tensors
        shape, gradient = gradient.shape[:2], gradient.flatten(0, 1)
        of_values = torch.bmm(matrix.transpose(1, 2), gradient)
        rows = (gradient * output).sum(-1, keepdim=True)
        of_logits = (torch.bmm(gradient, values.transpose(1, 2)) - rows) * matrix
        of_queries = torch.bmm(of_logits, keys) * ctx.scale
        of_keys = torch.bmm(of_logits.transpose(1, 2), queries)
        found = [each.reshape(*shape, *each.shape[1:]) for each in (of_queries, of_keys, of_values)]
        return found[0], found[1], found[2], None, None
