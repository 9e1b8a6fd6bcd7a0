"""The last part of an explainer network as a function of what comes before: what fine-tuning gives each image its own
copy of.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor, nn

from ...errors import ModelError
from ..attention import AttentionTap, attention_layout, block_input
from .backbone import OwnBackbone
from .model import LTXExplainer, Predicted

__all__ = ["MaskLogits", "head_of", "is_one_convolution"]


class MaskLogits(nn.Module):
    """The mask's own logits (1, h, w); no image of the batch knows another's."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.empty(0))

    def forward(self, features: list[Tensor], target: Tensor) -> Tensor:
        """The selection (1, 1, h, w); features and classes play no role."""
        return self.logits[None].sigmoid()


class _Backbone(nn.Module):
    """The last blocks of an own backbone and its read-out."""

    def __init__(self, network: OwnBackbone, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.read = network.read
        self._network = [network]  # in a list, so that its weights are not this module's

    def forward(self, features: list[Tensor], target: Tensor) -> Tensor:
        """Tokens (N, T, C), or a map (N, C, h, w), to the selection (N, 1, h, w)."""
        (values,) = features
        for block in self.blocks:
            values = block(values)
        (network,) = self._network
        (maps,) = network.spatial.read({network.layer: values})
        selection: Tensor = self.read(maps).sigmoid()
        return selection


def is_one_convolution(head: nn.Module) -> bool:
    """The head reads a map by a single convolution."""
    return isinstance(head, _Backbone) and not len(head.blocks) and isinstance(head.read, nn.Conv2d)


def head_of(explainer: LTXExplainer, found: Predicted, pixels: Tensor, blocks: int) -> tuple[nn.Module, list[Tensor]]:
    """What is fine-tuned, and what it is given.

    Args:
        explainer: pretrained.
        found: what it predicted for the images.
        pixels: (N, 3, H, W) in [0, 1].
        blocks: of a transformer's own backbone, how many of its last blocks belong to the head.

    Returns:
        A module of (features, target (N, 1)) that gives the selection, and the features of these images.

    Raises:
        ModelError: the network has no such blocks.
    """
    network = explainer.network
    if not isinstance(network, OwnBackbone):
        if blocks:
            raise ModelError("a decoder has no blocks to tune, it is tuned as a whole; leave them out")
        return network, found.maps
    normalised = network.prepared(explainer.explainee.normalise(pixels))
    names = attention_layout(network.backbone, network.spec).blocks if blocks else ()
    if blocks and (not network.spatial.gives_tokens(network.layer) or blocks > len(names) or not all(names)):
        raise ModelError(f"the backbone has no {blocks} transformer blocks of its own to tune")
    with ExitStack() as stack, AttentionTap():
        if blocks:
            taken = stack.enter_context(block_input(network.backbone, names[-blocks]))
            network.backbone(normalised)
            features = taken[0]
        else:
            features = network.features(normalised)
    chosen = [network.backbone.get_submodule(name) for name in names[len(names) - blocks :]] if blocks else []
    head = _Backbone(network, chosen)
    if not torch.allclose(head([features], found.target), found.selection, atol=1e-4):
        raise ModelError(f"the last {blocks} blocks of the backbone do not follow one another; tune fewer")
    return head, [features]
