"""Random small convolutional networks and vision transformers, made of what real ones are made of."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from random_weights import randomise
from torch import Tensor, nn

from saccade.contracts import ImageSpec
from saccade.methods.explainee import Explainee, fingerprint

__all__ = ["random_cnn", "random_explainee", "random_transformer"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "relu6": nn.ReLU6,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "elu": nn.ELU,
    "mish": nn.Mish,
}


class Sum(nn.Module):
    """Residual: what goes in, brought to the size of what comes out, plus it."""

    def __init__(self, inner: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.inner, self.shortcut = inner, shortcut

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.shortcut(x) + 0.5 * self.inner(x)
        return result


class Gate(nn.Module):
    """Squeeze and excite."""

    def __init__(self, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, 4, 1), activation, nn.Conv2d(4, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x * self.gate(x)
        return result


class Mean(nn.Module):
    """Mean over the places of a map."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def _norm(draw: random.Random, width: int) -> nn.Module:
    kind = draw.choice(("batch", "batch", "batch", "group", "none"))
    return {"batch": nn.BatchNorm2d(width), "group": nn.GroupNorm(2, width), "none": nn.Identity()}[kind]


def _block(draw: random.Random, before: int, width: int, act: Callable[[], nn.Module]) -> nn.Module:
    """One block, which halves the map or leaves its size."""
    stride, kernel = draw.choice((1, 2)), draw.choice((1, 3, 3, 5))
    bias = draw.random() < 0.5
    conv = nn.Conv2d(before, width, kernel, stride, kernel // 2, bias=bias)
    kind = draw.choice(("plain", "residual", "depthwise", "inverted", "gated", "grouped", "dilated", "pooled"))
    if kind == "residual":
        inner = nn.Sequential(conv, _norm(draw, width), act(), nn.Conv2d(width, width, 3, 1, 1), _norm(draw, width))
        same = stride == 1 and before == width
        return nn.Sequential(Sum(inner, nn.Identity() if same else nn.Conv2d(before, width, 1, stride)), act())
    if kind == "depthwise":
        apart = nn.Conv2d(before, before, 3, stride, 1, groups=before, bias=bias)
        return nn.Sequential(apart, _norm(draw, before), act(), nn.Conv2d(before, width, 1), act())
    if kind == "inverted":
        wide = 2 * width
        middle = nn.Conv2d(wide, wide, 3, stride, 1, groups=wide)
        return nn.Sequential(nn.Conv2d(before, wide, 1), act(), middle, act(), nn.Conv2d(wide, width, 1))
    if kind == "gated":
        return nn.Sequential(conv, _norm(draw, width), act(), Gate(width, act()))
    if kind == "grouped":
        return nn.Sequential(conv, act(), nn.Conv2d(width, width, 3, 1, 1, groups=2), _norm(draw, width), act())
    if kind == "dilated":
        return nn.Sequential(conv, act(), nn.Conv2d(width, width, 3, 1, 2, dilation=2), act())
    if kind == "pooled":
        pool = draw.choice((nn.MaxPool2d(2), nn.AvgPool2d(2), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1)))
        return nn.Sequential(nn.Conv2d(before, width, kernel, 1, kernel // 2), _norm(draw, width), act(), pool)
    return nn.Sequential(conv, _norm(draw, width), act())


def random_cnn(draw: random.Random, classes: int) -> nn.Module:
    """A stem, two to four blocks, a last convolution, pooling, and a head that is linear or not."""
    act = ACTIVATIONS[draw.choice(sorted(ACTIVATIONS))]
    width = draw.choice((8, 12))
    layers = [nn.Sequential(nn.Conv2d(3, width, 3, draw.choice((1, 2)), 1), act())]
    for _ in range(draw.randint(1, 3)):
        after = draw.choice((8, 12, 16))
        layers.append(_block(draw, width, after, act))
        width = after
    layers.append(nn.Sequential(nn.Conv2d(width, 16, 3, 1, 1), _norm(draw, 16), act()))
    pool = draw.choice((nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), Mean()))
    heads = (
        [nn.Linear(16, classes)],
        [nn.Dropout(0.2), nn.Linear(16, classes)],
        [nn.LayerNorm(16), nn.Linear(16, classes)],
        [nn.Linear(16, 12), act(), nn.Linear(12, classes)],
    )
    return nn.Sequential(*layers, pool, *draw.choice(heads))


class Attention(nn.Module):
    """As timm writes it: one projection, `scaled_dot_product_attention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        query, key, value = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.out(mixed.transpose(1, 2).reshape(n, tokens, width))
        return result


class Packed(nn.Module):
    """As torchvision writes it: `nn.MultiheadAttention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return result


class Layer(nn.Module):
    """Attention and MLP, normalised before or after."""

    def __init__(self, attention: nn.Module, width: int, act: nn.Module, first: bool) -> None:
        super().__init__()
        self.attention, self.first = attention, first
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), act, nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        for norm, part in zip(self.norms, (self.attention, self.mlp), strict=True):
            x = x + part(norm(x)) if self.first else norm(x + part(x))
        return x


class Transformer(nn.Module):
    """Patches, a class token or the mean of all tokens, blocks, a head."""

    def __init__(self, draw: random.Random, size: tuple[int, int], classes: int) -> None:
        super().__init__()
        patch, width = draw.choice((4, 8)), draw.choice((16, 24))
        heads, act = draw.choice((1, 2, 4)), draw.choice((nn.GELU, nn.SiLU, nn.ReLU))
        attention = draw.choice((Attention, Packed))
        self.patches = nn.Conv2d(3, width, patch, patch)
        with_token = draw.random() < 0.7
        self.token = nn.Parameter(torch.randn(1, 1, width)) if with_token else None
        count = (size[0] // patch) * (size[1] // patch) + with_token
        self.places = nn.Parameter(0.5 * torch.randn(1, count, width))
        first, depth = draw.random() < 0.8, draw.randint(1, 3)
        self.blocks = nn.Sequential(*(Layer(attention(width, heads), width, act(), first) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1)
        tokens = self.norm(self.blocks(tokens + self.places))
        logits: Tensor = self.head(tokens[:, 0] if self.token is not None else tokens.mean(1))
        return logits


def random_transformer(draw: random.Random, size: tuple[int, int], classes: int) -> nn.Module:
    """See `Transformer`."""
    torch.manual_seed(draw.randrange(2**31))
    return Transformer(draw, size, classes)


def random_explainee(seed: int) -> tuple[Explainee, bool]:
    """A random network with random weights, and whether it is a transformer."""
    draw = random.Random(seed)
    attention = draw.random() < 0.4
    size = (draw.choice((16, 24, 32)), draw.choice((16, 24, 32)))
    classes = draw.randint(2, 7)
    model = random_transformer(draw, size, classes) if attention else random_cnn(draw, classes)
    model = randomise(model, seed)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    mean, std = (draw.uniform(0.3, 0.6) for _ in range(3)), (draw.uniform(0.2, 0.3) for _ in range(3))
    spec = ImageSpec(size=size, mean=tuple(mean), std=tuple(std))  # type: ignore[arg-type]
    names = tuple(f"class {number}" for number in range(classes))
    return Explainee(model, spec, names, f"python:random:{seed}", "random", fingerprint(model)), attention
