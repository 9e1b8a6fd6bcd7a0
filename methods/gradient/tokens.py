"""Grad-CAM and LayerCAM on the tokens of a vision transformer: its patches' tokens are a feature map of their grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ...contracts import ImageSpec
from ...errors import ModelError
from ..features import capture, default_layers, noise_images
from ..representation import logits_of
from ..spatial import SpatialLayers, token_layer
from .feature_maps import grad_cam_of, layer_cam_of
from .paths import Attribution

__all__ = ["TOKEN_METHODS", "cam_of_tokens", "tokens_to_weigh"]

TOKEN_METHODS: dict[str, Callable[[Tensor, Tensor], Attribution]] = {"gradcam": grad_cam_of, "layercam": layer_cam_of}
"""By name, of maps (N, C, h, w) and the gradient there."""


def tokens_to_weigh(model: nn.Module, spec: ImageSpec, layers: tuple[str, ...]) -> SpatialLayers | None:
    """The layer whose tokens are weighed; None where feature maps are.

    Args:
        model: the classifier.
        spec: its input.
        layers: that were asked for; without any, a model without feature maps is read by its tokens.

    Raises:
        ModelError: there is neither, or the logits do not depend on what the patches are at that layer.
    """
    if not layers:
        try:
            default_layers(model, spec, 1)
        except ModelError as no_maps:
            try:
                layers = (token_layer(model, spec),)
            except ModelError:
                raise no_maps from None
        else:
            return None
    with torch.no_grad(), capture(model, layers) as outputs:
        model(noise_images(model, spec, 1))
    if len(layers) != 1 or getattr(outputs.get(layers[0]), "ndim", 0) != 3:
        return None
    found = SpatialLayers(model, layers, spec)
    runs: list[None] = []
    handle = model.get_submodule(layers[0]).register_forward_hook(lambda *given: runs.append(None))
    with torch.enable_grad(), capture(model, layers, leaves=True) as outputs:
        logits = model(noise_images(model, spec, 1))
        (gradient,) = torch.autograd.grad(logits.square().sum(), [outputs[layers[0]]], allow_unused=True)
    handle.remove()
    if len(runs) > 1:
        raise ModelError(f"the layer '{layers[0]}' runs {len(runs)} times for an image; name another with --layer")
    if gradient is None or not bool(found.read({layers[0]: gradient})[0].any()):
        raise ModelError(
            f"the logits depend on none of the patches behind the layer '{layers[0]}', but on the class token alone; "
            "name a layer before the last attention, as its normalisation, with --layer"
        )
    return found


def cam_of_tokens(
    method: str, tokens: SpatialLayers, target: Tensor, outputs: Mapping[str, Tensor], logits: Tensor
) -> Attribution:
    """Grad-CAM or LayerCAM of the patches' tokens.

    Args:
        method: a key of `TOKEN_METHODS`.
        tokens: the layer.
        target: class, int64 (N,).
        outputs: of the layer, which want their gradient.
        logits: (N, K), computed from them.
    """
    (name,) = tokens.names
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(logits_of(logits, target).sum(), outputs[name])
    (values,), (gradients,) = (tokens.read({name: tensor}) for tensor in (outputs[name].detach(), gradient))
    return TOKEN_METHODS[method](values, gradients)
