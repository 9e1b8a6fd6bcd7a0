"""The small models that the documentation's commands are run with, in place of large ones that are downloaded."""

from __future__ import annotations

import torch
from random_weights import randomise
from torch import nn

from saccade.contracts import ImageSpec

CLASSES = ("ant", "bee", "cat", "dog", "emu")
SPEC = ImageSpec(size=(32, 32), mean=(0.5, 0.45, 0.4), std=(0.25, 0.2, 0.3))


def cnn() -> nn.Module:
    """Convolutions, batch norm, a linear head behind global pooling, as a ResNet."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU()),
        nn.Sequential(nn.Conv2d(12, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, len(CLASSES)),
    )
    return _described(model)


def vit() -> nn.Module:
    """A vision transformer of timm, with fewer and smaller blocks."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    return _described(
        VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=2, num_classes=len(CLASSES))
    )


def _described(model: nn.Module) -> nn.Module:
    randomise(model)
    model.image_spec, model.class_names = SPEC, CLASSES  # type: ignore[assignment]
    return model
