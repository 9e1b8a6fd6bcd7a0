"""What the attention of a vision transformer looks like, and how it is rolled out into a map."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..contracts import ImageSpec
from ..errors import ModelError
from .attention_tap import AttentionTap
from .features import noise_images

__all__ = [
    "AttentionLayout",
    "AttentionTap",
    "attention_layout",
    "block_input",
    "first_tensor_replaced",
    "rollout",
    "token_grid",
]

_EXTRA_TOKENS = (1, 2, 5)  # the class token alone, with a distillation token (DeiT), with four registers (DINOv2)
_NONE_OR_MORE = (0, *_EXTRA_TOKENS)


@dataclass(frozen=True)
class AttentionLayout:
    """What the attention of a model looks like.

    Attributes:
        grid: (h, w) of the patches.
        extra: tokens before the patches (class and register tokens).
        blocks: for each attention matrix, in the order of calls, the outermost module that holds this one and no other
            (in a ViT: the transformer block), by name; empty where there is none whose input is all that the rest of
            the model needs.
    """

    grid: tuple[int, int]
    extra: int
    blocks: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def tokens(self) -> int:
        """T, of all patches and the tokens before them."""
        return self.grid[0] * self.grid[1] + self.extra


def attention_layout(model: nn.Module, spec: ImageSpec, *, class_token: bool = True) -> AttentionLayout:
    """Find out what the attention of a model looks like.

    Args:
        model: the classifier.
        spec: its input.
        class_token: there must be one.

    Raises:
        ModelError: the model calls no attention, or not one whose tokens are all patches of the image.
    """
    images = noise_images(model, spec, 2)
    tap = AttentionTap()
    with torch.no_grad(), tap, _callers(model, tap) as callers:
        logits = model(images[:1])
    shapes = {tuple(matrix.shape[-2:]) for matrix in tap.matrices}
    if not tap.matrices:
        raise ModelError("the model calls no attention; use a method for feature maps, such as dix or gradcam")
    if len(shapes) != 1 or any(matrix.shape[0] != 1 for matrix in tap.matrices):
        raise ModelError(
            "the model's attention is not between all patches of the image, as in a Swin transformer; "
            "name a layer with feature maps with --layer"
        )
    ((tokens, _),) = shapes
    grid, extra = token_grid(tokens, *spec.size, class_token=class_token)
    blocks = []
    for index, inside in enumerate(callers):
        others = {name for place, names in enumerate(callers) if place != index for name in names}
        name = next((name for name in inside if name not in others), "")
        whole = name and _takes_all(model, name, images, logits)
        blocks.append(name if whole else "")
    return AttentionLayout(grid, extra, tuple(blocks))


@contextmanager
def block_input(model: nn.Module, block: str, values: Tensor | None = None) -> Iterator[list[Tensor]]:
    """Collect the first tensor that a block is given while the model runs inside; with `values`, give it those instead.

    Args:
        model: the classifier.
        block: name of the module.
        values: (M, T, D).
    """
    taken: list[Tensor] = []

    def hook(
        module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def take(given: Tensor) -> Tensor:
            taken.append(given)
            return (given if values is None else values).clone()

        return first_tensor_replaced(inputs, named, take)

    handle = model.get_submodule(block).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield taken
    finally:
        handle.remove()


def first_tensor_replaced(
    inputs: tuple[Any, ...], named: dict[str, Any], change: Callable[[Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a module is given, with another tensor in the place of the first one, by position or by name.

    Raises:
        ModelError: it is given none.
    """
    if inputs and isinstance(inputs[0], Tensor):
        return (change(inputs[0]), *inputs[1:]), named
    key = next((key for key, value in named.items() if isinstance(value, Tensor)), None)
    if key is None:
        raise ModelError("a block with attention is given no tensor")
    return inputs, {**named, key: change(named[key])}


@contextmanager
def _callers(model: nn.Module, tap: AttentionTap) -> Iterator[list[list[str]]]:
    """For each attention inside the block: the modules that were running, outermost first, but for the model itself."""
    running: list[str] = []
    callers: list[list[str]] = []
    handles = []

    def enter(name: str) -> Callable[..., None]:
        return lambda module, inputs: running.append(name)

    def leave(module: nn.Module, inputs: object, output: object) -> None:
        running.pop()

    def note(keys: Tensor, values: Tensor) -> None:
        callers.append(list(running))

    for name, module in model.named_modules():
        if name:
            handles += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]
    tap.on_attention = note
    try:
        yield callers
    finally:
        tap.on_attention = lambda keys, values: None
        for handle in handles:
            handle.remove()


def _takes_all(model: nn.Module, block: str, images: Tensor, logits: Tensor) -> bool:
    """Another image with the block's input of the first one gives the first one's logits."""
    try:
        with torch.no_grad(), AttentionTap():
            with block_input(model, block) as taken:
                model(images[:1])
            if len(taken) != 1:
                return False
            with block_input(model, block, taken[0].repeat(2, 1, 1)):
                found = model(images[1:])
    except Exception:  # whatever a model raises whose blocks do not take what it did not give them
        return False
    return found.shape[0] == 2 and bool(torch.allclose(found[1:], logits, rtol=1e-4, atol=1e-5))


def token_grid(tokens: int, height: int, width: int, *, class_token: bool = True) -> tuple[tuple[int, int], int]:
    """The patches' (rows, columns) among so many tokens of an image of `height`×`width` pixels, and how many tokens lie
    before them; with `class_token` one at least.

    Raises:
        ModelError: no such tokens with a grid of the image's aspect ratio.
    """
    for extra in _EXTRA_TOKENS if class_token else _NONE_OR_MORE:
        patches = tokens - extra
        if patches < 1:
            break
        rows = round((patches * height / width) ** 0.5)
        if rows > 0 and patches % rows == 0 and height % rows == 0 and rows * width == (patches // rows) * height:
            return (rows, patches // rows), extra
    raise ModelError(
        f"{tokens} tokens are no class token and a grid of patches, which this method reads; explain the model by its "
        "pixels: --method ig"
    )


def rollout(layers: list[Tensor], grid: tuple[int, int], extra: int, row: Tensor | None = None) -> Tensor:
    """Attention rollout (Abnar & Zuidema 2020): how much of each patch arrives in the class token.

    R = Π_l norm(A_l + I), the last layer leftmost, where norm divides each row by its sum; the map is the class token's
    row of R. Only that row is carried along, from the last layer to the first.

    Args:
        layers: non-negative (N, T, T), first layer first.
        grid: (h, w) of the patches.
        extra: tokens before the patches.
        row: what is carried along, (N, 1, T) over the tokens behind the last of the layers; the class token alone
            unless told otherwise.

    Returns:
        (N, h, w).
    """
    if row is None:
        last = layers[-1]
        first = F.one_hot(torch.zeros(1, dtype=torch.int64, device=last.device), last.shape[-1]).to(last.dtype)
        row = first[None]  # (1, 1, T), broadcast by the first product
    carried = row
    for layer in reversed(layers):
        scaled = carried / (1 + layer.sum(-1))[:, None]
        carried = scaled @ layer + scaled
    return carried[:, 0, extra:].reshape(-1, *grid)
