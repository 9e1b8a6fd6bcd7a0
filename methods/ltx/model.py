"""LTX explainer networks: from an explainee and its normalised images to logits and a mask, in one call."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..explainee import Explainee, load_explainee
from ..features import capture, device_of
from ..places import enlarge_to
from ..representation import class_weights, linear_head
from ..spatial import SpatialLayers, spatial_layers
from ..training.explainer import TrainedExplainer
from ..upsample import BilinearUpsample, BinomialBlur
from .backbone import OwnBackbone
from .config import LTXConfig
from .decoder import MaskDecoder

__all__ = ["LTXExplainer", "Predicted", "build_ltx"]

LIFT = 0.25  # added to the selection before it meets the evidence: what is not selected keeps its order, lower
AROUND = 0.1  # of a position's weight that is its neighbourhood's, enough to tell saturated positions apart
_FINE_ENOUGH = 10  # positions a side; a finer mask only adds noise to the order of its pixels
_LEVELS_OF_TOKENS = 3  # blocks of a transformer that a decoder reads; for any class one more
_MIXERS = 2  # of a decoder for any class on tokens


class Predicted(NamedTuple):
    """What an explainer finds before up-sampling.

    Attributes:
        logits: (N, K).
        target: the classes explained, int64 (N, T).
        selection: (N, T, h, w) in (0, 1).
        maps: the explainee's maps that were read, in the order of the explainer's layers.
    """

    logits: Tensor
    target: Tensor
    selection: Tensor
    maps: list[Tensor]


class LTXExplainer(TrainedExplainer):
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
        spatial: the explainee's layers that a `MaskDecoder` reads, and from which the evidence comes.
        grid: (height, width) of the mask before up-sampling.
        head: weights (K, C) of the explainee's linear head on the coarsest layer, or None where it has none.
        weighed: where the explainee has no such head, take a tenth off the selection where nothing around is selected:
            among positions that are all selected, those in the middle are the ones that matter.
    """

    head: Tensor | None

    def __init__(
        self,
        explainee: Explainee,
        network: MaskDecoder | OwnBackbone,
        spatial: SpatialLayers,
        grid: tuple[int, int],
        head: Tensor | None = None,
        weighed: bool = False,
    ) -> None:
        knows_classes = isinstance(network, MaskDecoder) and network.of_class is not None
        super().__init__(explainee, network, class_specific=knows_classes)
        self.upsample = BilinearUpsample(grid, explainee.image_spec.size)
        self.blur = BinomialBlur(grid) if weighed and head is None else None
        self.spatial = spatial
        self.register_buffer("head", None if head is None else head.detach().clone(), persistent=False)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the explainee's layers that are read, coarsest first."""
        return self.spatial.names

    def forward(self, images: Tensor, target: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Predict and explain.

        Args:
            images: normalised (N, 3, H, W).
            target: int64 (N, T), the classes to explain, negative for the predicted one; used if `class_specific`.

        Returns:
            logits (N, K) and mask (N, T, H, W) in [0, 1]; 1 keeps the pixel.
        """
        found = self.predict(images, target)
        return found.logits, self.mask(found)

    def mask(self, found: Predicted) -> Tensor:
        """The mask (N, T, H, W) of what `predict` found."""
        selection = found.selection
        if self.head is not None:
            maps = found.maps[0]
            activation = (F.embedding(found.target, self.head) @ maps.flatten(2)).clamp_min(1e-6)
            evidence = activation.reshape(*found.target.shape, int(maps.shape[2]), int(maps.shape[3]))
            evidence = evidence / ((1 + LIFT) * evidence.amax((2, 3), keepdim=True))  # so that the largest mask is 1
            selection = (selection + LIFT) * enlarge_to(evidence, selection.shape[-2:])
        elif self.blur is not None:
            selection = selection * (1 - AROUND + AROUND * self.blur(selection))
        mask: Tensor = self.upsample(selection)
        return mask

    def predict(self, images: Tensor, target: Tensor | None = None) -> Predicted:
        """Predict and select; arguments as for `forward`."""
        with capture(self.classifier, self.layers) as outputs:
            logits = self.classifier(images)
        chosen = logits.argmax(1, keepdim=True)
        if target is not None and self.class_specific:
            chosen = torch.where(target < 0, chosen, target)
        maps = self.spatial.read(outputs)
        if isinstance(self.network, OwnBackbone):
            return Predicted(logits, chosen, self.network(images), maps)
        return Predicted(logits, chosen, self.network(maps, chosen), maps)


def build_ltx(explainee: Explainee, config: LTXConfig, *, pretrained: bool = True) -> LTXExplainer:
    """A fresh explainer in the form that the config asks for, where the explainee lies.

    Args:
        explainee: the classifier to explain.
        config: the form and its settings.
        pretrained: load the weights of a backbone of another architecture; False where a checkpoint's follow.

    Raises:
        ModelError: the explainee has neither feature maps nor tokens, or a named layer gives neither.
    """
    spec = explainee.image_spec
    spatial = _layers_for(explainee, config)
    network: MaskDecoder | OwnBackbone
    if config.form == "shared":
        classes = class_weights(explainee.model, spec) if config.class_conditional else None
        mixers = _MIXERS if classes is not None and spatial.gives_tokens(spatial.names[0]) else 0
        width = config.width or max(64 if mixers else 32, spatial.shapes[-1][0] // 8)
        network, grid = MaskDecoder(spatial.shapes, width, classes, mixers), spatial.shapes[-1][1:]
    elif config.backbone:
        weights = config.backbone_weights or None
        other = load_explainee(config.backbone, weights if pretrained else "random")
        network = OwnBackbone.of(other, spatial_layers(other.model, other.image_spec, 1)[0], spec)
        grid = network.grid
    else:
        network = OwnBackbone.of(explainee, spatial.names[0], spec)
        grid = network.grid
    evidence = config.evidence and not spatial.gives_tokens(spatial.names[0])
    head = linear_head(explainee.model, spatial.names[0], spec) if evidence else None
    explainer = LTXExplainer(explainee, network, spatial, grid, head, config.evidence)
    return explainer.to(device_of(explainee.model)).eval()


def _layers_for(explainee: Explainee, config: LTXConfig) -> SpatialLayers:
    """The last feature map; for a decoder also the next finer one, if the last has fewer than ten positions a side. Of
    a transformer the last block, for a decoder also others.
    """
    model, spec = explainee.model, explainee.image_spec
    if config.layers:
        return SpatialLayers(model, config.layers, spec)
    (last,) = spatial_layers(model, spec, 1)
    one = SpatialLayers(model, [last], spec)
    if config.form == "own":
        return one
    if one.gives_tokens(last):
        return SpatialLayers(model, spatial_layers(model, spec, _LEVELS_OF_TOKENS + config.class_conditional), spec)
    if min(one.shapes[0][1:]) >= _FINE_ENOUGH:
        return one
    return SpatialLayers(model, spatial_layers(model, spec, 2), spec)
