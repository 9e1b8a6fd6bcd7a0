"""The last block of a vision transformer, for the tokens alone that the logits are read from.

Behind the last attention nothing looks at a patch again where the logits are read from a class token: projection, MLP
and norms of the patches there are computed for nobody. An explanation does without them, and a gradient through the
block is that of a few tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..contracts import ImageSpec
from ..errors import ModelError
from .attention import AttentionLayout, AttentionTap, first_tensor_replaced
from .features import noise_images

__all__ = ["LastBlock", "last_block"]


@dataclass(frozen=True)
class LastBlock:
    """The block, where the logits are read from the tokens before the patches.

    Attributes:
        name: of the module.
        attention: its number in the order of calls.
        tokens: that are read, the first ones.
    """

    name: str
    attention: int
    tokens: int

    @contextmanager
    def shortened(self, model: nn.Module, tap: AttentionTap) -> Iterator[None]:
        """While the model runs inside, once, its last block is entered twice: with all tokens as far as to the keys and
        values of its attention, and then with those alone that are read, which attend to these.

        Args:
            model: the classifier.
            tap: inside which it runs, a new one that spells this attention out; the matrix is then (N, heads, tokens,
                T).

        Raises:
            ModelError: the block came to no attention, or not in the place that is known.
        """
        inside = False

        def hook(
            module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            nonlocal inside
            if inside:
                return inputs, named
            inside, kept = True, tap.on_attention
            tap.on_attention = _leave
            try:
                given, others = first_tensor_replaced(inputs, named, Tensor.clone)  # it may write into what it is given
                module(*given, **others)
            except _Attended as found:
                tap.attended[tap.calls] = found.keys, found.values
            finally:
                inside, tap.on_attention = False, kept
            if tap.calls != self.attention or self.attention not in tap.attended:
                raise ModelError(f"the block '{self.name}' came to no attention, or not in its usual place")
            return first_tensor_replaced(inputs, named, lambda tokens: tokens[:, : self.tokens])

        handle = model.get_submodule(self.name).register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


class _Attended(Exception):
    """Leaves a block at its attention, with what is attended to."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values


def _leave(keys: Tensor, values: Tensor) -> None:
    raise _Attended(keys, values)


def last_block(model: nn.Module, spec: ImageSpec, layout: AttentionLayout) -> LastBlock | None:
    """The last block, if the logits need of it no more than the tokens before the patches; proven on noise.

    Args:
        model: the classifier.
        spec: its input.
        layout: of its attention.
    """
    if not layout.extra or not layout.blocks[-1]:
        return None
    found = LastBlock(layout.blocks[-1], len(layout) - 1, layout.extra)
    images = noise_images(model, spec, 2)
    with torch.no_grad():
        with AttentionTap() as whole:
            expected = model(images)
        try:
            with AttentionTap() as short, found.shortened(model, short):
                logits = model(images)
        except Exception:  # whatever a model raises that is given fewer tokens than it expects
            return None
    rows = whole.matrices[-1][:, :, : found.tokens]
    return found if _alike(logits, expected) and _alike(short.matrices[-1], rows) else None


def _alike(found: Tensor, expected: Tensor) -> bool:
    size = float(expected.abs().max())
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * size)
