"""Attention matrices of any vision transformer, captured and replaced without touching the model.

timm and transformers call `torch.nn.functional.scaled_dot_product_attention`, torchvision calls
`multi_head_attention_forward`; both are intercepted and spelled out, all of them or those that are asked for, so that
the matrices are tensors with gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..errors import ModelError
from .attend import attend

__all__ = ["AttentionTap"]

_FUSED, _MULTI_HEAD = F.scaled_dot_product_attention, F.multi_head_attention_forward


class AttentionTap(TorchFunctionMode):
    """Collects the attention matrices of one pass through a model inside the block, and replaces some of them.

    Args:
        replace: by the number of the attention in the order of calls, the matrix (N, heads, T, T) that takes its place.
        leaf: of this attention's matrix a gradient is wanted, and of nothing before it.
        only: these are spelled out, by number, and the others left to PyTorch's fused operator; None for all.
        keep: collect the matrices. Without, what is spelled out has a shorter gradient where it is usual attention:
            four axes, as many heads of keys and values as of queries, and a mask that takes no gradient.

    Attributes:
        matrices: (N, heads, T, T), after softmax, in the order of calls; of those that are spelled out and kept.
        attended: by the number of the attention, keys and values (N, heads, T, d) that take the place of its own, of
            which there may be fewer.
        calls: attentions so far, spelled out or not.
        on_attention: called at each attention that is spelled out, with its keys and values, before it counts as one.
    """

    def __init__(
        self,
        replace: Mapping[int, Tensor] | None = None,
        *,
        leaf: int | None = None,
        only: Collection[int] | None = None,
        keep: bool = True,
    ) -> None:
        super().__init__()
        assert keep or (replace is None and leaf is None), "what is replaced or differentiated is a matrix that is kept"
        self.keep = keep
        self.attended: dict[int, tuple[Tensor, Tensor]] = {}
        self.leaf = leaf
        self.matrices: list[Tensor] = []
        self.only = only
        self.replace = dict(replace or {})
        self.on_attention: Callable[[Tensor, Tensor], None] = lambda keys, values: None
        self.calls = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Intercept the two attention functions; everything else runs as it is."""
        kwargs = kwargs or {}
        if func is _FUSED:
            return self._attend(*args, **kwargs)
        if func is _MULTI_HEAD:
            return self._multi_head(*args, **kwargs)
        return func(*args, **kwargs)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if self.only is not None and self.calls not in self.only:
            self.calls += 1
            found: Tensor = _FUSED(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
            return found
        if is_causal or enable_gqa:
            raise ModelError("attention that is causal or grouped cannot be captured; vision transformers use neither")
        self.on_attention(key, value)
        index = self.calls
        self.calls += 1
        key, value = self.attended.get(index, (key, value))
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
        fixed = attn_mask is None or not attn_mask.requires_grad
        if not self.keep and fixed and query.ndim == 4 and query.shape[:2] == key.shape[:2] == value.shape[:2]:
            return attend(query, key, value, scale, attn_mask)
        logits = query * scale @ key.transpose(-2, -1)
        if attn_mask is not None:
            logits = logits + attn_mask
        matrix = logits.softmax(-1)
        if index in self.replace:
            matrix = self.replace[index]
        if index == self.leaf:
            matrix = matrix.detach().requires_grad_(True)
        if self.keep:
            self.matrices.append(matrix)
        return matrix @ value

    def _multi_head(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        embed_dim_to_check: int,
        num_heads: int,
        in_proj_weight: Tensor | None,
        in_proj_bias: Tensor | None,
        bias_k: Tensor | None,
        bias_v: Tensor | None,
        add_zero_attn: bool,
        dropout_p: float,
        out_proj_weight: Tensor,
        out_proj_bias: Tensor | None,
        training: bool = False,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        use_separate_proj_weight: bool = False,
        **options: Any,
    ) -> tuple[Tensor, None]:
        """Attention with packed weights: inputs (T, N, D), as `nn.MultiheadAttention` hands them on."""
        if in_proj_weight is None or use_separate_proj_weight or bias_k is not None or add_zero_attn:
            raise ModelError("only attention with packed weights can be captured in nn.MultiheadAttention")
        if key_padding_mask is not None:
            raise ModelError("attention with padded keys cannot be captured; images have none")
        count, width = query.shape[1:]
        weights = in_proj_weight.chunk(3)
        biases = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)
        # image by image, as the tokens lie in memory: of others PyTorch multiplies with copies of the weights
        parts = [
            F.linear(tokens.transpose(0, 1), weight, bias)
            .reshape(count, -1, num_heads, width // num_heads)
            .transpose(1, 2)
            for tokens, weight, bias in zip((query, key, value), weights, biases, strict=True)
        ]
        if attn_mask is not None and attn_mask.ndim == 3:
            attn_mask = attn_mask.reshape(count, num_heads, *attn_mask.shape[1:])
        mixed = self._attend(parts[0], parts[1], parts[2], attn_mask)
        mixed = mixed.transpose(1, 2).reshape(count, -1, width)
        return F.linear(mixed, out_proj_weight, out_proj_bias).transpose(0, 1), None
