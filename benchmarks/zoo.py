"""Real architectures with random weights of a sensible size, for benchmarks and tests.

Nothing is downloaded. Weights as libraries draw them make poor test objects: the logits of a random ResNet explode,
those of a torchvision ViT are zero, the blocks of a ConvNeXt do nothing. Here layers keep the scale of their input,
batch norms hold the statistics of real photographs, and logits have a standard deviation of two.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torchvision_on_cpu
from torch import Tensor, nn

from saccade.accel.image import resize_image
from saccade.contracts import ImageSpec, Uint8
from saccade.evaluate.scene_material import PHOTOGRAPHS, load_photograph
from saccade.methods.explainee import Explainee, fingerprint
from saccade.methods.sources import LogitsOnly

__all__ = ["ATTENTION", "FEATURE_MAPS", "build", "photographs", "tensors"]

CLASSES = 40
LOGIT_STD = 2.0
RESIDUAL = 0.2
"""What the last batch norm of a ResNet's residual branch scales by. Training may begin with zero there; with one the
gradient for the pixels of a random ResNet is so jagged that float32 is 2 % off.
"""


def _torchvision(name: str, size: int, **options: Any) -> nn.Module:
    torchvision_on_cpu.declare_operators()
    import torchvision

    if name.startswith("vit"):
        options["image_size"] = size
    if depth := options.pop("depth", 0):
        return _smaller(name, size, depth)
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options)
    return model


def _smaller(name: str, size: int, depth: int) -> nn.Module:
    """The same operators in fewer stages and blocks, for tests."""
    from torchvision.models import ConvNeXt, DenseNet, EfficientNet, ResNet, SwinTransformer, VisionTransformer, vgg16
    from torchvision.models.convnext import CNBlockConfig
    from torchvision.models.efficientnet import MBConvConfig
    from torchvision.models.resnet import Bottleneck

    if name == "resnet50":
        return ResNet(Bottleneck, [1, depth, 1, 1], num_classes=CLASSES)
    if name == "densenet121":
        return DenseNet(32, (depth, depth, depth), 64, num_classes=CLASSES)
    if name == "convnext_tiny":
        return ConvNeXt([CNBlockConfig(96, 192, 1), CNBlockConfig(192, None, depth)], 0.1, num_classes=CLASSES)
    if name == "efficientnet_b0":
        stages = [
            MBConvConfig(1, 3, 1, 32, 16, 1),
            MBConvConfig(6, 3, 2, 16, 24, depth),
            MBConvConfig(6, 5, 2, 24, 40, 1),
        ]
        return EfficientNet(stages, 0.2, num_classes=CLASSES)
    if name == "swin_t":  # the second stage has the shifted windows
        return SwinTransformer([4, 4], 96, [1, depth], [3, 6], [7, 7], num_classes=CLASSES)
    if name == "vgg16":  # whose layers without convolutions are nine tenths of its weights
        model: nn.Module = vgg16(num_classes=CLASSES)
        model.classifier = nn.Sequential(nn.Linear(512 * 7 * 7, 64 * depth), nn.ReLU(), nn.Linear(64 * depth, CLASSES))
        return model
    return VisionTransformer(size, 16, depth, 12, 768, 3072, num_classes=CLASSES)


def _timm(name: str, size: int, **options: Any) -> nn.Module:
    torchvision_on_cpu.declare_operators()
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=CLASSES, img_size=size, **options)
    return model


def _transformers(size: int, depth: int = 12) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(image_size=size, num_labels=CLASSES, num_hidden_layers=depth)
    return LogitsOnly(ViTForImageClassification(config))


FEATURE_MAPS: dict[str, Callable[..., nn.Module]] = {
    "ResNet-50": partial(_torchvision, "resnet50"),
    "DenseNet-121": partial(_torchvision, "densenet121"),
    "ConvNeXt-T": partial(_torchvision, "convnext_tiny"),
    "VGG-16": partial(_torchvision, "vgg16"),
    "EfficientNet-B0": partial(_torchvision, "efficientnet_b0"),
    "MobileNetV3-L": partial(_torchvision, "mobilenet_v3_large"),
    "Swin-T": partial(_torchvision, "swin_t"),
    "ResNet-101": partial(_torchvision, "resnet101"),
}
"""Networks with feature maps, by the names that the papers gave them."""

ATTENTION: dict[str, Callable[..., nn.Module]] = {
    "ViT-B/16 (torchvision)": partial(_torchvision, "vit_b_16"),
    "ViT-B/16 (timm)": partial(_timm, "vit_base_patch16_224"),
    "ViT-B/16 (transformers)": _transformers,
    "DeiT-S distilled": partial(_timm, "deit_small_distilled_patch16_224"),
}
"""Networks of attention between all patches."""


def photographs(spec: ImageSpec) -> Uint8:
    """The photographs that come with scikit-image, scikit-learn and matplotlib, (N, H, W, 3)."""
    names = [name for split in PHOTOGRAPHS.values() for name in split]
    return np.stack([resize_image(load_photograph(name), spec) for name in names])


def tensors(images: Uint8, spec: ImageSpec) -> Tensor:
    """Images (N, H, W, 3) as a model takes them, (N, 3, H, W)."""
    mean, std = (torch.tensor(value)[:, None, None] for value in (spec.mean, spec.std))
    return (torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255 - mean) / std


def build(name: str, size: int = 224, seed: int = 0, depth: int = 0) -> Explainee:
    """An architecture of the zoo, at an input of `size` pixels a side; transformers and VGG smaller if told so."""
    torch.manual_seed(seed)
    spec = ImageSpec(size=(size, size))
    make = (FEATURE_MAPS | ATTENTION)[name]
    model = make(size, depth=depth) if depth else make(size)
    _sensible(model, tensors(photographs(spec), spec))
    names = tuple(f"class {index}" for index in range(CLASSES))
    return Explainee(model.eval().requires_grad_(False), spec, names, f"zoo:{name}", "random", fingerprint(model))


@torch.no_grad()
def _sensible(model: nn.Module, images: Tensor) -> None:
    head: nn.Linear | None = None
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.normal_(0, (1.6 / module.weight[0].numel()) ** 0.5)
            if module.bias is not None:
                module.bias.normal_(0, 0.05)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all that is seen
            module.reset_running_stats()
        if isinstance(module, nn.Linear) and module.out_features == CLASSES:
            head = module
    for key, parameter in model.named_parameters():
        if key.endswith(("layer_scale", "gamma")):
            parameter.fill_(0.5)
        elif key.endswith("bn3.weight"):
            parameter.fill_(RESIDUAL)
        elif key.endswith(("_token", "pos_embed", "pos_embedding", "position_embeddings")):
            parameter.normal_(0, 0.3)
    for module in model.modules():
        module.train(isinstance(module, nn.BatchNorm2d))
    model(images[:8])
    model.eval()
    assert head is not None, "every classifier ends in a linear layer"
    spread = model(images[:8]).std(0).mean()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.out_features == CLASSES:
            module.weight.mul_(LOGIT_STD / spread)
