"""The own form's network: a trained copy of the explainee, or of another architecture, that emits the mask."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ...contracts import ImageSpec
from ..attention import attention_layout
from ..explainee import Explainee
from ..features import capture
from ..spatial import SpatialLayers
from ..upsample import BilinearUpsample
from .decoder import MASK_PRIOR

__all__ = ["OwnBackbone", "TokenReadout"]


class OwnBackbone(nn.Module):
    """An architecture with its trained weights, trained further to emit the mask from its last feature map or its last
    tokens (Barkan et al. 2023).

    As in the published code batch-norm statistics stay as they are, and so do the embeddings of a transformer's
    patches and positions.

    Args:
        model: the architecture with its weights; copied.
        layer: the layer that is read.
        own: what the model takes.
        given: what the images were normalised for: the explainee's.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, layer: str, own: ImageSpec, given: ImageSpec) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(model)
        self.layer = layer
        self.spec = own
        self.spatial = SpatialLayers(self.backbone, [layer], own)
        ((channels, height, width),) = self.spatial.shapes
        self.grid = (height, width)
        self.read: nn.Module
        if self.spatial.gives_tokens(layer):
            self.backbone.requires_grad_(False)
            for block in attention_layout(self.backbone, own).blocks:
                self.backbone.get_submodule(block).requires_grad_(True)
            self.read = TokenReadout(channels)
        else:
            self.backbone.requires_grad_(True)
            self.read = nn.Conv2d(channels, 1, 1)
            nn.init.constant_(self.read.bias, MASK_PRIOR)  # type: ignore[arg-type]
        self.resize = None if own.size == given.size else BilinearUpsample(given.size, own.size)
        (mean, std), (own_mean, own_std) = (
            (torch.tensor(spec.mean)[:, None, None], torch.tensor(spec.std)[:, None, None]) for spec in (given, own)
        )
        self.same_colours = (own.mean, own.std) == (given.mean, given.std)
        self.register_buffer("scale", std / own_std, persistent=False)
        self.register_buffer("shift", (mean - own_mean) / own_std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W), normalised for the explainee, to the selection (N, 1, h, w) in (0, 1)."""
        (maps,) = self.spatial.read({self.layer: self.features(self.prepared(images))})
        found: Tensor = self.read(maps)
        return found.sigmoid()

    def prepared(self, images: Tensor) -> Tensor:
        """Images that were normalised for the explainee, at the size and in the colours that the backbone takes."""
        if not self.same_colours:
            images = images * self.scale + self.shift
        return images if self.resize is None else self.resize(images)

    def features(self, images: Tensor) -> Tensor:
        """What the layer that is read gives for prepared images."""
        with capture(self.backbone, [self.layer]) as outputs:
            self.backbone(images)
        return outputs[self.layer]

    def train(self, mode: bool = True) -> OwnBackbone:
        """Train the weights, never the batch-norm statistics."""
        super().train(mode)
        self.backbone.eval()
        return self

    @classmethod
    def of(cls, source: Explainee, layer: str, given: ImageSpec) -> OwnBackbone:
        """From a classifier."""
        return cls(source.model, layer, source.image_spec, given)


class TokenReadout(nn.Module):
    """The mask's logit from each patch's token: layer norm, linear, tanh, linear, as published."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        last = nn.Linear(channels, 1)
        nn.init.constant_(last.bias, MASK_PRIOR)
        self.layers = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, channels), nn.Tanh(), last)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, C, h, w) to (N, 1, h, w)."""
        found: Tensor = self.layers(maps.permute(0, 2, 3, 1))
        return found.permute(0, 3, 1, 2)
