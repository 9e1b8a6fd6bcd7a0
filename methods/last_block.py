"""The last block of a vision transformer, for the tokens alone that the logits are read from.

Behind the last attention nothing looks at a patch again where the logits are read from a class token: projection, MLP
and norms of the patches there are computed for nobody. A graph does without them, and a gradient through the block is
that of a few tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..contracts import ImageSpec
from ..errors import ModelError
from .attention import AttentionLayout, AttentionTap, block_input
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

    def finish(
        self,
        model: nn.Module,
        images: Tensor,
        block_inputs: Tensor,
        attended: tuple[Tensor, Tensor],
        *,
        leaf: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """The logits (N, K), and the attention of the tokens that are read, (N, heads, tokens, T).

        The model runs again, and what lies before the block is dropped: for graphs, in which that costs nothing.

        Args:
            model: the classifier.
            images: normalised (N, 3, H, W); only their shape matters.
            block_inputs: what the block was given, (N, T, D).
            attended: keys and values of its attention, of all tokens.
            leaf: let a gradient begin at the attention.
        """
        tap = AttentionTap(leaf=self.attention if leaf else None, attended={self.attention: attended})
        with tap, block_input(model, self.name, block_inputs[:, : self.tokens]):
            logits: Tensor = model(images)
        return logits, tap.matrices[self.attention]


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
    try:
        with torch.no_grad():
            with AttentionTap() as tap, block_input(model, found.name) as taken:
                expected = model(images)
            assert tap.last_attended is not None, "the layout has an attention"
            logits, matrix = found.finish(model, images, taken[0], tap.last_attended)
    except (ModelError, RuntimeError):
        return None
    alike = logits.shape == expected.shape and torch.allclose(logits, expected, rtol=1e-4, atol=1e-5)
    row = tap.matrices[-1][:, :, : found.tokens]
    return found if alike and torch.allclose(matrix, row, rtol=1e-4, atol=1e-5) else None
