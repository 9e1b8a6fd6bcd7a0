"""A gradient method and its classifier as one module, as the exporter and the command line see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ModelError, UsageError
from ..attention import AttentionTap, attention_grid
from ..explainee import Explainee
from ..features import capture, default_layers, feature_shapes
from ..fold import folded
from ..quadrature import quadrature
from ..representation import linear_head
from ..upsample import BilinearUpsample
from .config import GradientConfig
from .feature_maps import Setting, dix, grad_cam, iia2, iia3, layer_cam
from .pixels import integrated_gradients
from .transformers import AttentionSetting, attention_rollout, dix_of_attention, gradient_rollout, iia_of_attention

__all__ = ["GradientExplainer", "MapToMask"]

_LAYERS = {"gradcam": 1, "layercam": 1, "dix1": 1, "dix2": 2, "dix3": 3, "iia2": 1, "iia3": 2}
_ON_MAPS: dict[str, Callable[..., Tensor]] = {
    "gradcam": grad_cam,
    "layercam": layer_cam,
    "dix1": dix,
    "dix2": dix,
    "dix3": dix,
    "iia2": iia2,
    "iia3": iia3,
}
_ATTENTION_ONLY = ("rollout", "gradient-rollout")


class MapToMask(nn.Module):
    """Raw maps (N, h, w) to masks (N, 1, H, W): the positive part, over its largest value, enlarged bilinearly.

    Args:
        grid: (h, w) of the maps; None where they have the image's size already.
        size: (H, W).
    """

    def __init__(self, grid: tuple[int, int] | None, size: tuple[int, int]) -> None:
        super().__init__()
        self.upsample = None if grid is None else BilinearUpsample(grid, size)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps to masks."""
        positive = maps.relu()[:, None]
        scaled = positive / positive.amax((2, 3), keepdim=True).clamp_min(1e-20)
        return scaled if self.upsample is None else self.upsample(scaled)


class GradientExplainer(nn.Module):
    """From normalised images and target classes to logits, the class explained, and the mask.

    DIX and IIA work on feature maps where the model has some, and on attention matrices where it has not.

    Args:
        explainee: the classifier; the explainer works on a frozen copy whose batch norms are folded.
        config: the method and its settings.

    Attributes:
        layers: names of the layers that are read, the last one first; empty for attention and pixels.
        on_attention: the method works on attention matrices.
        steps: of every integral.

    Raises:
        ModelError: the model has neither feature maps nor attention, or not enough layers.
        UsageError: the method does not exist for this kind of model.
    """

    def __init__(self, explainee: Explainee, config: GradientConfig) -> None:
        super().__init__()
        self.explainee = explainee
        self.config = config
        self.classifier = folded(explainee.model, explainee.image_spec, config.layers)
        self.layers: tuple[str, ...] = ()
        self.on_attention = config.method in _ATTENTION_ONLY or self._attention_is_better()
        self.steps = config.steps_of(self.on_attention)
        self.rule = quadrature(config.rule, self.steps)
        self._attribute, grid = self._choose()
        self.mask = MapToMask(grid, explainee.image_spec.size)

    def forward(self, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict and explain.

        Args:
            images: normalised (N, 3, H, W).
            target: int64 (N,); negative for the predicted class.

        Returns:
            logits (N, K); the class explained (N,); mask (N, 1, H, W) in [0, 1].
        """
        logits, chosen, attribution = self.attribute(images, target)
        return logits, chosen, self.mask(attribution)

    def attribute(self, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, the class explained, and the raw map (N, h, w) at its own resolution."""
        images = images.detach()
        with AttentionTap():  # attention spelled out: the fused operator's gradient has no forward form
            with torch.no_grad(), capture(self.classifier, self.layers) as maps:
                logits = self.classifier(images)
            chosen = torch.where(target < 0, logits.argmax(1), target)
            return logits, chosen, self._attribute(images, chosen, maps)

    def train(self, mode: bool = True) -> GradientExplainer:
        """Nothing here is trained: everything stays in eval mode."""
        super().train(False)
        return self

    def _choose(self) -> tuple[Callable[[Tensor, Tensor, Any], Tensor], tuple[int, int] | None]:
        """The function that attributes, and the grid of its maps (None: the image's own)."""
        config, model, spec = self.config, self.classifier, self.explainee.image_spec
        published = config.mode == "code"
        if config.method == "ig":
            return lambda x, c, maps: integrated_gradients(model, x, c, self.rule, config.points_per_pass), None
        if self.on_attention:
            if config.layers:
                raise UsageError(f"{config.method} reads all attention blocks of this model; leave out --layer")
            blocks, grid, extra = attention_grid(model, spec)
            if config.method.startswith("dix") and int(config.method[3:]) > blocks:
                raise ModelError(
                    f"{config.method} reads the last {config.method[3:]} attention blocks; there is {blocks}"
                )
            setting = AttentionSetting(model, blocks, grid, extra, self.rule, published, config.points_per_pass)
            return self._on_attention(setting), grid
        needed = _LAYERS[config.method]
        self.layers = config.layers or default_layers(model, spec, needed)
        if len(self.layers) != needed:
            raise ModelError(
                f"{config.method} reads {needed} layer{'s' * (needed > 1)} of the model, the last one first, and there "
                f"{'is' if len(self.layers) == 1 else 'are'} {len(self.layers)}: {', '.join(self.layers)}; "
                "name them with --layer"
            )
        shapes = feature_shapes(model, self.layers, spec)
        heads = [linear_head(model, name, spec) for name in self.layers]
        on_maps = Setting(model, self.layers, heads, self.rule, published, config.points_per_pass)
        method = _ON_MAPS[config.method]
        finest = shapes[-1] if config.method.startswith("dix") else shapes[0]
        return lambda x, c, maps: method(on_maps, x, c, maps), finest[1:]

    def _attention_is_better(self) -> bool:
        """DIX and IIA of a model without feature maps."""
        if self.config.layers or self.config.method[:3] not in ("dix", "iia"):
            return False
        try:
            default_layers(self.classifier, self.explainee.image_spec, 1)
        except ModelError:
            return True
        return False

    def _on_attention(self, setting: AttentionSetting) -> Callable[[Tensor, Tensor, Any], Tensor]:
        method = self.config.method
        if method == "rollout":
            return lambda x, c, maps: attention_rollout(setting, x, c)
        if method == "gradient-rollout":
            return lambda x, c, maps: gradient_rollout(setting, x, c)
        if method == "iia2":
            return lambda x, c, maps: iia_of_attention(setting, x, c)
        if method.startswith("dix"):
            return lambda x, c, maps: dix_of_attention(setting, x, c, int(method[3:]))
        raise UsageError(f"{method} does not exist for attention; take iia2")
