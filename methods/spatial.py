"""Layers of a model as maps over the image, whether they give feature maps or the tokens of a transformer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..contracts import ImageSpec
from ..errors import ModelError
from .attention import attention_layout, token_grid
from .features import FeatureShape, capture, default_layers, noise_images

__all__ = ["SpatialLayers", "TokensAsMaps", "layer_of_maps", "spatial_layers", "token_layer"]


class SpatialLayers:
    """Reads named layers as maps (N, C, h, w).

    Feature maps are taken as they are; of tokens (N, T, C) those before the patches (class and register tokens) are
    left out, and the patches are laid out in their grid.

    Args:
        model: the model.
        names: of its layers, in any order.
        spec: the model's input.

    Attributes:
        names: as given.
        shapes: (channels, height, width) of each layer's map.

    Raises:
        ModelError: no such layer, or one that gives neither maps nor tokens.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], spec: ImageSpec) -> None:
        self.names = tuple(names)
        self._grids: dict[str, tuple[tuple[int, int], int]] = {}
        with torch.no_grad(), capture(model, self.names) as outputs:
            model(noise_images(model, spec, 1))
        for name in self.names:
            output = outputs.get(name)
            if isinstance(output, Tensor) and output.ndim == 3:
                self._grids[name] = token_grid(int(output.shape[1]), *spec.size, class_token=False)
            elif not isinstance(output, Tensor) or output.ndim != 4:
                raise ModelError(
                    f"the layer '{name}' gives neither feature maps (N, C, h, w) nor tokens (N, T, C); choose another "
                    "with --layer"
                )
        self.shapes: list[FeatureShape] = [(int(c), int(h), int(w)) for _, c, h, w in map(_shape, self.read(outputs))]

    def grid_of(self, name: str) -> tuple[tuple[int, int], int]:
        """Of a layer of tokens: the patches' (rows, columns), and how many tokens lie before them."""
        return self._grids[name]

    def gives_tokens(self, name: str) -> bool:
        """A layer's output is tokens, not a feature map."""
        return name in self._grids

    def read(self, outputs: Mapping[str, Tensor]) -> list[Tensor]:
        """What `capture` collected, as maps (N, C, h, w), in the order of the names."""
        return [self._map(name, outputs[name]) for name in self.names]

    def _map(self, name: str, output: Tensor) -> Tensor:
        if name not in self._grids:
            return output
        (height, width), extra = self._grids[name]
        return output[:, extra:].transpose(1, 2).reshape(-1, int(output.shape[2]), height, width)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def spatial_layers(model: nn.Module, spec: ImageSpec, levels: int) -> tuple[str, ...]:
    """The layers that say most about where: the last feature maps of the coarsest resolutions, coarsest first; of a
    transformer without feature maps the last block, and others spread evenly before it.

    Raises:
        ModelError: the model has neither.
    """
    try:
        return default_layers(model, spec, levels)
    except ModelError as error:
        try:
            blocks = attention_layout(model, spec).blocks
        except ModelError:
            raise error from None
        if not all(blocks):
            raise error
        count = min(levels, len(blocks))
        return tuple(blocks[round(len(blocks) * (count - index) / count) - 1] for index in range(count))


def token_layer(model: nn.Module, spec: ImageSpec) -> str:
    """The layer of a transformer whose tokens a class activation map weighs: what the last attention block normalises
    first, as `blocks.11.norm1` of timm's ViT-B; behind it only the class token may bear on the logits.

    Raises:
        ModelError: the model has no such layer.
    """
    blocks = attention_layout(model, spec, class_token=False).blocks
    tokens: list[str] = []

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim == 3:
                tokens.append(name)

        return hook

    norms = [
        (f"{blocks[-1]}.{name}", module)
        for name, module in (model.get_submodule(blocks[-1]).named_modules() if blocks[-1] else ())
        if "norm" in type(module).__name__.lower()
    ]
    handles = [module.register_forward_hook(note(name)) for name, module in norms]
    try:
        with torch.no_grad():
            model(noise_images(model, spec, 1))
    finally:
        for handle in handles:
            handle.remove()
    if not tokens:
        raise ModelError("the model's last attention block normalises no tokens; name a layer that gives them: --layer")
    return tokens[0]


class TokensAsMaps(nn.Module):
    """In the place of a layer that gives tokens: the same, but that the patches pass through `maps` as (N, C, h, w),
    where what knows feature maps alone can be hooked on.

    Args:
        layer: gives tokens (N, extra + h·w, C).
        grid: (h, w) of the patches.
        extra: tokens before them.
    """

    def __init__(self, layer: nn.Module, grid: tuple[int, int], extra: int) -> None:
        super().__init__()
        self.layer, self.maps = layer, nn.Identity()
        self._grid, self._extra = grid, extra

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Tokens as the layer gives them."""
        tokens: Tensor = self.layer(*inputs, **named)
        patches = tokens[:, self._extra :].transpose(1, 2)
        maps = self.maps(patches.reshape(*patches.shape[:2], *self._grid))
        return torch.cat([tokens[:, : self._extra], maps.flatten(2).transpose(1, 2)], 1)


def layer_of_maps(model: nn.Module, spec: ImageSpec) -> str:
    """The layer whose maps a class activation map weighs; of a transformer without feature maps, whose tokens pass as
    maps from then on (see `TokensAsMaps`).

    Raises:
        ModelError: the model has neither.
    """
    try:
        return default_layers(model, spec, 1)[0]
    except ModelError as no_maps:
        try:
            name = token_layer(model, spec)
            grid, extra = SpatialLayers(model, (name,), spec).grid_of(name)
        except ModelError:
            raise no_maps from None
    model.set_submodule(name, TokensAsMaps(model.get_submodule(name), grid, extra))
    return f"{name}.maps"
