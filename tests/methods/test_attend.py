"""Attention with a gradient of its own beside autograd's, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saccade.export.autograd_free import trace_autograd_free
from saccade.methods.attend import attend
from saccade.methods.attention_tap import AttentionTap

SHAPES = pytest.mark.parametrize("queries", [1, 3, 7])


def tensors(queries: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values and a gradient of the output."""
    generator = torch.Generator().manual_seed(queries)
    query, key, value, gradient = (
        torch.randn(2, 3, rows, 5, dtype=torch.float64, generator=generator) for rows in (queries, 7, 7, queries)
    )
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_(), gradient


def naive(query: Tensor, key: Tensor, value: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    logits = torch.einsum("nhqd,nhtd->nhqt", query, key) * scale
    matrix = (logits if bias is None else logits + bias).exp()
    return torch.einsum("nhqt,nhtd->nhqd", matrix / matrix.sum(-1, keepdim=True), value)


@SHAPES
@pytest.mark.parametrize("bias", [None, (7,), (1, 3, 1, 7), (2, 1, 1, 7)])
def test_output_and_gradients_are_those_of_the_formula(queries: int, bias: tuple[int, ...] | None) -> None:
    *inputs, gradient = tensors(queries)
    added = None if bias is None else torch.randn(bias, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    found, expected = (function(*inputs, 0.3, added) for function in (attend, naive))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    of_found, of_expected = (torch.autograd.grad(output, inputs, gradient) for output in (found, expected))
    for one, other in zip(of_found, of_expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)
        assert float(one.abs().max()) > 1e-3


def test_keys_that_are_masked_out_get_no_gradient() -> None:
    *inputs, gradient = tensors(3)
    bias = torch.zeros(7, dtype=torch.float64)
    bias[4:] = -torch.inf
    of_query, of_key, of_value = torch.autograd.grad(attend(*inputs, 0.3, bias), inputs, gradient)
    assert bool(torch.isfinite(of_query).all())
    assert not bool(of_key[:, :, 4:].any() or of_value[:, :, 4:].any())
    assert float(of_key[:, :, :4].abs().max()) > 0


@SHAPES
def test_it_is_traced_with_its_gradient_and_expands_no_matrix(queries: int) -> None:
    *inputs, _ = tensors(queries)
    inputs = [one.detach().float() for one in inputs]

    def gradients(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        leaves = [one.detach().requires_grad_(True) for one in (query, key, value)]
        with torch.enable_grad():
            return torch.autograd.grad(attend(leaves[0], leaves[1], leaves[2], 0.3).square().sum(), leaves)

    traced = trace_autograd_free(gradients, inputs)
    for one, other in zip(traced(*inputs), gradients(*inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    expanded = [node for node in traced.graph.nodes if node.target is torch.ops.aten.expand.default]
    assert not [node for node in expanded if len(node.args[1]) == 4 and node.args[0].meta["val"].ndim == 4]


@pytest.mark.parametrize("masked", ["not", "by truth", "by a bias", "by a bias with a gradient"])
def test_a_tap_that_keeps_no_matrices_says_what_one_says_that_does(masked: str) -> None:
    *inputs, gradient = tensors(7)
    generator = torch.Generator().manual_seed(3)
    mask: Tensor | None = torch.randn(7, 7, dtype=torch.float64, generator=generator)
    if masked == "not":
        mask = None
    elif masked == "by truth":
        mask = mask > -1  # type: ignore[operator]
        assert not bool(mask.all())
    leaves = [*inputs, mask.requires_grad_()] if mask is not None and masked.endswith("gradient") else inputs

    def run(tap: AttentionTap) -> list[Tensor]:
        with tap:
            output = torch.nn.functional.scaled_dot_product_attention(*inputs, attn_mask=mask)
        return [output, *torch.autograd.grad(output, leaves, gradient)]

    keeping, other = AttentionTap(), AttentionTap(keep=False)
    for one, expected in zip(run(other), run(keeping), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-10, atol=1e-13)
    assert (len(keeping.matrices), len(other.matrices)) == (1, 0)
    assert (keeping.calls, other.calls) == (1, 1)
    assert (type(run(other)[0].grad_fn).__name__ == "_AttendBackward") == (not masked.endswith("gradient"))


@pytest.mark.parametrize("shape", ["one head of keys", "one image of keys", "three axes", "five axes"])
def test_attention_of_another_shape_is_spelled_out_as_it_was(shape: str) -> None:
    query, key, value, gradient = tensors(3)
    if shape == "one head of keys":  # multi-query attention, as of MobileNetV4
        key, value = key[:, :1], value[:, :1]
    elif shape == "one image of keys":
        key, value = key[:1], value[:1]
    elif shape == "three axes":
        query, key, value, gradient = (one[:, 0] for one in (query, key, value, gradient))
    else:
        query, key, value, gradient = (one[None] for one in (query, key, value, gradient))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    with AttentionTap(keep=False):
        found = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    for one, other in zip(
        torch.autograd.grad(found, [query, key, value], gradient),
        torch.autograd.grad(expected, [query, key, value], gradient),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)


def test_a_model_may_write_into_what_attention_gave_it() -> None:
    *inputs, gradient = tensors(1)
    output = attend(*inputs, 0.3)
    output = output.transpose(1, 2).reshape(2, 1, -1)
    output *= 2
    gradient = gradient.transpose(1, 2).reshape(2, 1, -1)
    expected = torch.autograd.grad(2 * naive(*inputs, 0.3, None).transpose(1, 2).reshape(2, 1, -1), inputs, gradient)
    for one, other in zip(torch.autograd.grad(output, inputs, gradient), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)


def test_a_second_derivative_is_refused() -> None:
    *inputs, gradient = tensors(3)
    gradient.requires_grad_()
    (first,) = torch.autograd.grad(attend(*inputs, 0.3), inputs[:1], gradient, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
