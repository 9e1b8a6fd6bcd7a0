"""The gradient methods as their formulas are written: one image, one point of a path, one call of autograd at a time.

Slow, and shares nothing with `saccade.methods.gradient`; what benchmarks and tests hold the traced graphs against.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.methods.attention_tap import AttentionTap

__all__ = ["naive_map"]

Tail = Callable[[Tensor], Tensor]


def naive_map(
    method: str,
    model: nn.Module,
    image: Tensor,
    label: int,
    points: Sequence[float],
    layers: Sequence[str],
    extra: int = 1,
) -> Tensor:
    """The raw map (h, w) of one image (1, 3, H, W).

    Args:
        method: ``"gradcam"``, ``"ig"``, ``"dix1"`` … ``"iia3"``, ``"class-rollout"``, ``"gradient-rollout"``, and on
            attention, where `layers` is empty, ``"dix1"`` … ``"iia2"``.
        model: the classifier.
        image: normalised.
        label: the class.
        points: of every integral, with equal weights.
        layers: the last one first, of feature maps or, for ``"gradcam"``, of tokens; empty for attention.
        extra: tokens before the patches.
    """
    if method == "ig":
        total = sum(_gradient(model, a * image, label) for a in points)
        return (image * total / len(points)).sum(1)[0]
    if layers:
        return _on_maps(method, model, image, label, points, layers)
    rolled = _on_attention(method, model, image, label, points)[extra:]
    side = round(len(rolled) ** 0.5)
    return rolled.reshape(side, side)


def _gradient(function: Tail, at: Tensor, label: int) -> Tensor:
    leaf = at.detach().clone().requires_grad_(True)
    return torch.autograd.grad(function(leaf)[0, label], leaf)[0]


def _output(model: nn.Module, image: Tensor, layer: str) -> Tensor:
    found: list[Tensor] = []
    module = model.get_submodule(layer)
    handle = module.register_forward_hook(lambda module, inputs, output: found.append(output.clone()))
    with torch.no_grad():
        model(image)
    handle.remove()
    return found[0].detach().clone()


def _tail(model: nn.Module, image: Tensor, layer: str, until: str | None = None) -> Tail:
    """The logits, or another layer's output, as a function of a layer's; a copy, since models write into it."""

    def run(values: Tensor) -> Tensor:
        handle = model.get_submodule(layer).register_forward_hook(lambda module, inputs, output: values.clone())
        try:
            return model(image) if until is None else _output(model, image, until)
        finally:
            handle.remove()

    return run


def _lowest(maps: Tensor) -> Tensor:
    return torch.stack([torch.full_like(channel, float(channel.min())) for channel in maps[0]])[None]


def _integral(tail: Tail, end: Tensor, label: int, points: Sequence[float]) -> Tensor:
    start = _lowest(end)
    total = torch.zeros_like(end)
    for a in points:
        at = start + a * (end - start)
        total += at * _gradient(tail, at, label) / len(points)
    return ((end - start) * total).sum(1)[0]


def _on_maps(
    method: str, model: nn.Module, image: Tensor, label: int, points: Sequence[float], layers: Sequence[str]
) -> Tensor:
    last = _tail(model, image, layers[0])
    if method == "gradcam":
        maps = _output(model, image, layers[0])
        gradient = _gradient(last, maps, label)
        if maps.ndim == 3:
            return _of_tokens(maps[0], gradient[0])
        weights = gradient.mean((2, 3), keepdim=True)
        return (weights * maps).sum(1).clamp_min(0)[0]
    if method == "iia2":
        parts = [_integral(last, _output(model, a * image, layers[0]), label, points) for a in points]
        return (sum(parts) / len(points)).clamp_min(0)
    if method == "iia3":
        total = 0
        for a in points:
            end = _output(model, a * image, layers[1])
            start = _lowest(end)
            through = _tail(model, image, layers[1], until=layers[0])
            for b in points:
                total = total + _integral(last, through(start + b * (end - start)), label, points)
        return (total / len(points) ** 2).clamp_min(0)
    found = []
    for layer in layers:
        one = _integral(_tail(model, image, layer), _output(model, image, layer), label, points).clamp_min(0)
        found.append(one / one.max())
    size = found[-1].shape
    found = [F.interpolate(one[None, None], size, mode="bilinear", align_corners=False)[0, 0] for one in found]
    product = result = found[0]
    for finer in found[1:]:
        product = product * finer
        result = result + product
    return result


def _of_tokens(tokens: Tensor, gradient: Tensor) -> Tensor:
    """Grad-CAM of a square of patches behind as few tokens as there can be: (T, C) to (h, w)."""
    side = int(len(tokens) ** 0.5)
    patches = slice(len(tokens) - side**2, None)
    return (tokens[patches] @ gradient[patches].mean(0)).clamp_min(0).reshape(side, side)


def _evidence(model: nn.Module, image: Tensor, label: int, replace: dict[int, Tensor]) -> list[Tensor]:
    """Of every block max(0, A ∘ ∂f/∂A), mean over heads, (T, T)."""
    replace = {block: matrix.detach().clone().requires_grad_(True) for block, matrix in replace.items()}
    with AttentionTap(replace) as tap:
        logits = model(image.detach().clone().requires_grad_(True))
    gradients = torch.autograd.grad(logits[0, label], tap.matrices)
    return [
        (matrix.detach() * gradient).clamp_min(0)[0].mean(0)
        for matrix, gradient in zip(tap.matrices, gradients, strict=True)
    ]


def _roll(layers: Sequence[Tensor]) -> Tensor:
    """The class token's row of the product of the row-normalised A + I."""
    product = torch.eye(layers[0].shape[-1], dtype=layers[0].dtype)
    for layer in layers:
        with_skip = layer + torch.eye(layer.shape[-1], dtype=layer.dtype)
        product = (with_skip / with_skip.sum(-1, keepdim=True)) @ product
    return product[0]


def _matrices(model: nn.Module, image: Tensor) -> list[Tensor]:
    with torch.no_grad(), AttentionTap() as tap:
        model(image)
    return tap.matrices


def _on_attention(method: str, model: nn.Module, image: Tensor, label: int, points: Sequence[float]) -> Tensor:
    if method == "class-rollout":
        row = _evidence(model, image, label, {})[-1][0]
        carried = row / row.sum()
        for matrix in reversed(_matrices(model, image)[:-1]):
            with_skip = matrix[0].mean(0) + torch.eye(len(carried), dtype=image.dtype)
            carried = carried @ (with_skip / with_skip.sum(-1, keepdim=True))
        return carried
    if method == "gradient-rollout":
        return _roll(_evidence(model, image, label, {}))
    if method == "iia2":
        total: list[Tensor] = []
        for a in points:
            last = _matrices(model, a * image)
            for b in points:
                found = _evidence(model, a * image, label, {len(last) - 1: b * last[-1]})
                total = [x + y for x, y in zip(total, found, strict=True)] if total else found
        return _roll([one / len(points) ** 2 for one in total])
    matrices = _matrices(model, image)
    result = torch.zeros(matrices[0].shape[-1], dtype=image.dtype)
    for back in range(1, int(method[3:]) + 1):
        block = len(matrices) - back
        total = []
        for a in points:
            found = _evidence(model, image, label, {block: a * matrices[block]})
            total = [x + y for x, y in zip(total, found, strict=True)] if total else found
        result = result + _roll([one / len(points) for one in total])
    return result
