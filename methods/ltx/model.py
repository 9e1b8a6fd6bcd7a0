"""LTX explainer networks: from an explainee and its normalised images to logits and a mask, in one call."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..explainee import Explainee
from ..features import FeatureShape, capture, default_layers, device_of, feature_shapes
from .config import LTXConfig

__all__ = ["BilinearUpsample", "LTXExplainer", "MaskDecoder", "OwnBackbone", "build_ltx"]

_BELOW_ONE = 1 - 2**-22  # so that rounding lifts no mask above 1
_FINE_ENOUGH = 10  # positions a side; a finer mask only adds noise to the order of its pixels
_MASK_PRIOR = 0.0  # logit of the mask before training: half of every pixel


class MaskDecoder(nn.Module):
    """A light decoder on frozen feature maps: each is projected to `width` channels, they meet at the finest
    resolution, and a last projection reads the mask. Everything is 1×1, since the maps' receptive fields are wide
    already; so the explanation costs a few percent of the prediction.

    Args:
        shapes: (channels, height, width) of the maps, coarsest first.
        width: channels inside.
    """

    def __init__(self, shapes: Sequence[FeatureShape], width: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)) for channels, _, _ in shapes
        )
        self.read = nn.Conv2d(width, 1, 1)
        nn.init.constant_(self.read.bias, _MASK_PRIOR)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps, coarsest first, to mask logits (N, 1, h, w) at the finest map's resolution."""
        size = maps[-1].shape[-2:]
        parts = []
        for projection, features in zip(self.projections, maps, strict=True):
            part: Tensor = projection(features)
            if features.shape[-2:] != size:
                part = _enlarge(part, size)
            parts.append(part)
        out: Tensor = self.read(F.relu(sum(parts[1:], parts[0])))
        return out


def _enlarge(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest-neighbour up-sampling; by a constant factor where there is one, which exports without shape
    arithmetic.
    """
    if size[0] % maps.shape[2] == 0 and size[1] % maps.shape[3] == 0:
        factors = (float(size[0] // maps.shape[2]), float(size[1] // maps.shape[3]))
        return F.interpolate(maps, scale_factor=factors, mode="nearest")
    return F.interpolate(maps, size=(int(size[0]), int(size[1])), mode="nearest")


class OwnBackbone(nn.Module):
    """The explainee's architecture and weights again, trained to emit the mask from its last feature map (Barkan et
    al. 2023).

    Batch-norm statistics stay as they are, as in the published code.
    """

    def __init__(self, model: nn.Module, layer: str, channels: int) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(model)
        self.backbone.requires_grad_(True)
        self.layer = layer
        self.read = nn.Conv2d(channels, 1, 1)
        nn.init.constant_(self.read.bias, _MASK_PRIOR)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) to mask logits (N, 1, h, w)."""
        with capture(self.backbone, [self.layer]) as maps:
            self.backbone(images)
        out: Tensor = self.read(maps[self.layer])
        return out

    def train(self, mode: bool = True) -> OwnBackbone:
        """Train the weights, never the batch-norm statistics."""
        super().train(mode)
        self.backbone.eval()
        return self


class LTXExplainer(nn.Module):
    """Explainee and explainer network as one module.

    Args:
        explainee: the classifier; kept frozen and in eval mode.
        network: a `MaskDecoder` or an `OwnBackbone`; the only part that is trained and stored.
        layers: the explainee's layers that a `MaskDecoder` reads.
        grid: (height, width) of the mask before up-sampling.
    """

    def __init__(
        self, explainee: Explainee, network: MaskDecoder | OwnBackbone, layers: Sequence[str], grid: tuple[int, int]
    ) -> None:
        super().__init__()
        self.upsample = BilinearUpsample(grid, explainee.image_spec.size)
        self.explainee = explainee
        self.classifier = explainee.model
        self.network = network
        self.layers = tuple(layers)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (N, 3, H, W) to logits (N, K) and mask (N, 1, H, W) in [0, 1]; 1 keeps the pixel.

        The mask is about the predicted class.
        """
        logits, small = self.logits(images)
        return logits, self.upsample(small.sigmoid())

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images to the class logits (N, K) and the mask's logits before up-sampling (N, 1, h, w)."""
        if isinstance(self.network, OwnBackbone):
            return self.classifier(images), self.network(images)
        with capture(self.classifier, self.layers) as maps:
            logits = self.classifier(images)
        return logits, self.network([maps[name] for name in self.layers])

    def train(self, mode: bool = True) -> LTXExplainer:
        """Switch the network; the explainee stays in eval mode."""
        super().train(mode)
        self.classifier.eval()
        return self


class BilinearUpsample(nn.Module):
    """Bilinear up-sampling (align_corners=False) of one-channel maps, as two small matrix products: rows, then columns.

    The same weights as `F.interpolate`, an order of magnitude faster in ONNX Runtime, and native to every engine.

    Args:
        source: (height, width) of the maps.
        size: (height, width) of the result.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, source: tuple[int, int], size: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("rows", _BELOW_ONE * _interpolation_matrix(source[0], size[0]), persistent=False)
        self.register_buffer("columns", _interpolation_matrix(source[1], size[1]).T.contiguous(), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, 1, h, w) to (N, 1, H, W)."""
        return self.rows @ (maps @ self.columns)


def _interpolation_matrix(source: int, size: int) -> Tensor:
    """Weights (size, source) of bilinear interpolation along one axis."""
    identity = torch.eye(source).reshape(source, 1, source, 1)
    stretched = F.interpolate(identity, size=(size, 1), mode="bilinear", align_corners=False)
    return stretched.reshape(source, size).T.contiguous()


def build_ltx(explainee: Explainee, config: LTXConfig) -> LTXExplainer:
    """A fresh explainer in the form that the config asks for, where the explainee lies.

    Raises:
        ModelError: the explainee has no feature maps, or a named layer does not give any.
    """
    layers = config.layers or _layers_for(explainee, config)
    shapes = feature_shapes(explainee.model, layers, explainee.image_spec)
    network: MaskDecoder | OwnBackbone
    if config.form == "shared":
        network = MaskDecoder(shapes, config.width or max(32, shapes[-1][0] // 8))
    else:
        network = OwnBackbone(explainee.model, layers[0], shapes[0][0])
    return LTXExplainer(explainee, network, layers, shapes[-1][1:]).to(device_of(explainee.model)).eval()


def _layers_for(explainee: Explainee, config: LTXConfig) -> tuple[str, ...]:
    """The last feature map; for a decoder also the next finer one, if the last has fewer than ten positions a side."""
    layers = default_layers(explainee.model, explainee.image_spec, 2)
    (_, height, width), *_ = feature_shapes(explainee.model, layers[:1], explainee.image_spec)
    return layers if config.form == "shared" and min(height, width) < _FINE_ENOUGH else layers[:1]
