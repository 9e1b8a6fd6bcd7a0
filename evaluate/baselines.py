"""Explainers to compare with: two that know nothing, and two of the classics by Captum."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..contracts import Floats, Uint8
from ..errors import require
from .metrics import Explain

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "BASELINES",
    "centre_gaussian",
    "grad_cam",
    "integrated_gradients",
    "random_masks",
    "stretch",
]

BASELINES = ("random", "centre", "grad-cam", "integrated-gradients")
"""By the names that users type."""


def random_masks() -> Explain:
    """Independent uniform values; the same for the same image."""

    def explain(images: Uint8, target: NDArray[np.int64]) -> Floats:
        return np.stack([_generator(image).random(image.shape[:2], dtype=np.float32) for image in images])

    return explain


def centre_gaussian(deviation: float = 0.25) -> Explain:
    """A Gaussian about the image's centre, whatever the image shows: what photographers make hard to beat.

    Args:
        deviation: in units of height and width.
    """

    def explain(images: Uint8, target: NDArray[np.int64]) -> Floats:
        height, width = images.shape[1:3]
        y = (np.arange(height) - (height - 1) / 2) / (deviation * height)
        x = (np.arange(width) - (width - 1) / 2) / (deviation * width)
        bump = np.exp(-0.5 * (y[:, None] ** 2 + x[None] ** 2)).astype(np.float32)
        return np.repeat(bump[None], len(images), axis=0)

    return explain


def grad_cam(model: nn.Module, layer: str, normalise: Callable[[Tensor], Tensor]) -> Explain:
    """Grad-CAM (Selvaraju et al. 2017) by Captum: positive part of the layer's maps weighted by their mean gradients,
    enlarged bilinearly, over its largest value.

    Args:
        model: from normalised images (N, 3, H, W) to logits, in eval mode.
        layer: name of the layer in `model.named_modules()`.
        normalise: from images in [0, 1] to the model's input.

    Raises:
        MissingDependencyError: Captum is not installed.
    """
    torch = require("torch", extra="train", purpose="Grad-CAM")
    attribution = require("captum.attr", extra="evaluate", purpose="Grad-CAM")
    cam = attribution.LayerGradCam(model, model.get_submodule(layer))

    def explain(images: Uint8, target: NDArray[np.int64]) -> Floats:
        maps = cam.attribute(_tensor(torch, images, normalise), target=torch.from_numpy(target), relu_attributions=True)
        enlarged = torch.nn.functional.interpolate(maps, images.shape[1:3], mode="bilinear", align_corners=False)
        return stretch(enlarged.detach()[:, 0].numpy())

    return explain


def integrated_gradients(model: nn.Module, normalise: Callable[[Tensor], Tensor], steps: int = 50) -> Explain:
    """Integrated gradients (Sundararajan et al. 2017) by Captum, from black; the absolute value of the sum over
    channels, over its largest value.

    Args:
        model: from normalised images (N, 3, H, W) to logits, in eval mode.
        normalise: from images in [0, 1] to the model's input.
        steps: of the integral.

    Raises:
        MissingDependencyError: Captum is not installed.
    """
    torch = require("torch", extra="train", purpose="integrated gradients")
    attribution = require("captum.attr", extra="evaluate", purpose="integrated gradients")
    gradients = attribution.IntegratedGradients(model)

    def explain(images: Uint8, target: NDArray[np.int64]) -> Floats:
        inputs = _tensor(torch, images, normalise)
        found = gradients.attribute(
            inputs,
            baselines=_tensor(torch, np.zeros_like(images), normalise),
            target=torch.from_numpy(target),
            n_steps=steps,
            internal_batch_size=max(len(images), 32),
        )
        return stretch(found.detach().sum(1).abs().numpy())

    return explain


def stretch(maps: NDArray[Any]) -> Floats:
    """Non-negative maps (N, H, W), each over its largest value; a map of zeros stays."""
    largest = maps.max((1, 2), keepdims=True)
    scaled: Floats = (maps / np.where(largest > 0, largest, 1)).astype(np.float32)
    return scaled


def _tensor(torch: Any, images: Uint8, normalise: Callable[[Tensor], Tensor]) -> Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    return normalise(pixels)


def _generator(image: Uint8) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(np.ascontiguousarray(image).tobytes()))
