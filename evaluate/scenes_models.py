"""Small classifiers of planted scenes, with trained weights: something real to explain in seconds on two cores.

As model specs: ``python:saccade.evaluate.scenes_models:resnet`` and so on, or ``scenes:resnet``, ``scenes:vit`` and
``scenes:context`` for short. The file beside the weights says how they were trained and how good
they are; ``examples/train_scenes.py`` trains them again.
"""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..contracts import ImageSpec
from ..errors import ModelError
from .scenes import CLASS_NAMES
from .weights_folder import WEIGHTS

__all__ = ["IMAGE_SPEC", "ScenesResNet", "ScenesViT", "context", "resnet", "vit"]

_Model = TypeVar("_Model", bound=nn.Module)

IMAGE_SPEC = ImageSpec(size=(96, 96), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def resnet(pretrained: bool = True) -> ScenesResNet:
    """A residual network of 0.7 million parameters; its last feature map is 128×12×12 at 96 pixels."""
    return _load(ScenesResNet(), "scenes_resnet") if pretrained else ScenesResNet()


def context(pretrained: bool = True) -> ScenesResNet:
    """The same network, trained on scenes of the context variant: it knows a class by its digit or by its texture."""
    return _load(ScenesResNet(), "scenes_context") if pretrained else ScenesResNet()


def vit(pretrained: bool = True) -> ScenesViT:
    """A vision transformer of 0.9 million parameters: convolutional stem, 12×12 tokens, four blocks."""
    return _load(ScenesViT(), "scenes_vit") if pretrained else ScenesViT()


def _load(model: _Model, name: str) -> _Model:
    from safetensors.torch import load_file

    file = WEIGHTS / f"{name}.safetensors"
    if not file.exists():
        raise ModelError(f"there are no trained weights of '{name}'; train them with: python examples/train_scenes.py")
    model.load_state_dict(load_file(file))
    return model.eval()


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut (He et al. 2016, basic block)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Maps to maps; the stride divides height and width."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ScenesResNet(nn.Module):
    """Images (N, 3, 96, 96), normalised, to logits (N, 10)."""

    image_spec = IMAGE_SPEC
    class_names = CLASS_NAMES

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 128)) -> None:
        super().__init__()
        a, b, c = widths
        self.stem = nn.Sequential(nn.Conv2d(3, a, 3, 2, 1, bias=False), nn.BatchNorm2d(a), nn.ReLU())
        self.stage1 = nn.Sequential(ResidualBlock(a, a))
        self.stage2 = nn.Sequential(ResidualBlock(a, b, 2), ResidualBlock(b, b))
        self.stage3 = nn.Sequential(ResidualBlock(b, c, 2), ResidualBlock(c, c))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(c, len(CLASS_NAMES))

    def features(self, x: Tensor) -> Tensor:
        """Normalised images to the last feature map (N, 128, 12, 12)."""
        features: Tensor = self.stage3(self.stage2(self.stage1(self.stem(x))))
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images to logits."""
        logits: Tensor = self.fc(self.pool(self.features(x)).flatten(1))
        return logits


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP (Dosovitskiy et al. 2021)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (N, T, D) to tokens of the same shape."""
        n, t, d = tokens.shape
        q, k, v = self.qkv(self.norm1(tokens)).reshape(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d)
        tokens = tokens + self.projection(mixed)
        out: Tensor = tokens + self.mlp(self.norm2(tokens))
        return out


class ScenesViT(nn.Module):
    """Images (N, 3, 96, 96), normalised, to logits (N, 10), read from a class token."""

    image_spec = IMAGE_SPEC
    class_names = CLASS_NAMES

    def __init__(self, width: int = 128, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        stem: list[nn.Module] = []
        a, b = width // 4, width // 2
        for inputs, outputs, stride in ((3, a, 2), (a, b, 2), (b, b, 1), (b, width, 2)):
            stem += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.stem = nn.Sequential(*stem[:-1])
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, 1 + 12 * 12, width))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(CLASS_NAMES))

    def tokens(self, x: Tensor) -> Tensor:
        """Normalised images to the last tokens (N, 1 + 144, 128), class token first, patches row by row."""
        patches = self.stem(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), patches], 1) + self.position
        last: Tensor = self.norm(self.blocks(tokens))
        return last

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images to logits."""
        logits: Tensor = self.head(self.tokens(x)[:, 0])
        return logits
