"""LTX explainer networks: from an explainee and its normalised images to logits and a mask, in one call."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..explainee import Explainee
from ..features import FeatureShape, capture, default_layers, device_of, feature_shapes
from ..representation import linear_head
from ..upsample import BilinearUpsample
from .config import LTXConfig

__all__ = ["LTXExplainer", "MaskDecoder", "OwnBackbone", "build_ltx"]

LIFT = 0.25  # added to the selection before it meets the evidence: what is not selected keeps its order, lower
_FINE_ENOUGH = 10  # positions a side; a finer mask only adds noise to the order of its pixels
_MASK_PRIOR = 0.0  # logit of the mask before training: half of every pixel


class MaskDecoder(nn.Module):
    """A light decoder on frozen feature maps.

    Each map is projected to `width` channels, they meet at the finest resolution, and a read-out gives a selection in
    (0, 1). Everything is 1×1, since the maps' receptive fields are wide already; so the explanation costs a few percent
    of the prediction.

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
        """Feature maps (N, C, h, w), coarsest first, to the selection (N, 1, h, w) in (0, 1) at the finest map's
        resolution.
        """
        size = maps[-1].shape[-2:]
        parts = [_enlarge(project(features), size) for project, features in zip(self.projections, maps, strict=True)]
        selection: Tensor = self.read(F.relu(sum(parts[1:], parts[0]))).sigmoid()
        return selection


def _weigh(maps: Tensor, weights: Tensor) -> Tensor:
    """Sum over channels with each image's own weights: (N, C, h, w) and (N, C) to (N, 1, h, w)."""
    total = weights[:, None] @ maps.flatten(2)
    return total.reshape(maps.shape[0], 1, int(maps.shape[2]), int(maps.shape[3]))


def _enlarge(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest-neighbour up-sampling; by a constant factor where there is one, which exports without shape
    arithmetic.
    """
    if maps.shape[-2:] == size:
        return maps
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
        """Normalised images (N, 3, H, W) to the selection (N, 1, h, w) in (0, 1)."""
        with capture(self.backbone, [self.layer]) as maps:
            self.backbone(images)
        out: Tensor = self.read(maps[self.layer]).sigmoid()
        return out

    def train(self, mode: bool = True) -> OwnBackbone:
        """Train the weights, never the batch-norm statistics."""
        super().train(mode)
        self.backbone.eval()
        return self


class LTXExplainer(nn.Module):
    """Explainee and explainer network as one module.

    The network says which positions matter, a selection in (0, 1) that saturates where the evidence is, and so does
    not tell the better of two good positions. Where the explainee's head is linear after global pooling, the
    selection is multiplied by the evidence that the head itself finds at each position: the class activation (Zhou et
    al. 2016), its positive part, over its largest value in the image. The logit is the mean of these activations
    plus a constant, and the map is at hand in both forms. Training sees the selection alone: multiplied
    already, it would learn to select everything.

    Args:
        explainee: the classifier; kept frozen and in eval mode.
        network: a `MaskDecoder` or an `OwnBackbone`; the only part that is trained and stored.
        layers: the explainee's layers that a `MaskDecoder` reads.
        grid: (height, width) of the mask before up-sampling.
        head: weights (K, C) of the explainee's linear head on the coarsest layer, or None to use the selection alone.
    """

    head: Tensor | None

    def __init__(
        self,
        explainee: Explainee,
        network: MaskDecoder | OwnBackbone,
        layers: Sequence[str],
        grid: tuple[int, int],
        head: Tensor | None = None,
    ) -> None:
        super().__init__()
        largest = 1 if head is None else 1 + LIFT  # the largest value before up-sampling
        self.upsample = BilinearUpsample(grid, explainee.image_spec.size, 1 / largest)
        self.explainee = explainee
        self.classifier = explainee.model
        self.network = network
        self.layers = tuple(layers)
        self.register_buffer("head", None if head is None else head.detach().clone(), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (N, 3, H, W) to logits (N, K) and mask (N, 1, H, W) in [0, 1]; 1 keeps the pixel.

        The mask is about the predicted class.
        """
        logits, selection, maps = self.predict(images)
        if self.head is not None:
            weights = F.embedding(logits.argmax(1), self.head)
            activation = _weigh(maps[self.layers[0]], weights).clamp_min(1e-6)
            evidence = activation / activation.amax((2, 3), keepdim=True)
            selection = (selection + LIFT) * _enlarge(evidence, selection.shape[-2:])
        return logits, self.upsample(selection)

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What training needs of normalised images: logits (N, K), selection (N, 1, h, w), and the explainee's maps
        by layer.
        """
        with capture(self.classifier, self.layers) as maps:
            logits = self.classifier(images)
        if isinstance(self.network, OwnBackbone):
            return logits, self.network(images), maps
        return logits, self.network([maps[name] for name in self.layers]), maps

    def train(self, mode: bool = True) -> LTXExplainer:
        """Switch the network; the explainee stays in eval mode."""
        super().train(mode)
        self.classifier.eval()
        return self


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
    head = linear_head(explainee.model, layers[0], explainee.image_spec) if config.evidence else None
    explainer = LTXExplainer(explainee, network, layers, shapes[-1][1:], head)
    return explainer.to(device_of(explainee.model)).eval()


def _layers_for(explainee: Explainee, config: LTXConfig) -> tuple[str, ...]:
    """The last feature map; for a decoder also the next finer one, if the last has fewer than ten positions a side."""
    layers = default_layers(explainee.model, explainee.image_spec, 2)
    (_, height, width), *_ = feature_shapes(explainee.model, layers[:1], explainee.image_spec)
    return layers if config.form == "shared" and min(height, width) < _FINE_ENOUGH else layers[:1]
