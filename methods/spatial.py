"""Layers of a model as maps over the image, whether they give feature maps or the tokens of a transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..contracts import ImageSpec
from ..errors import ModelError
from .attention import attention_layout, token_grid
from .features import FeatureShape, capture, default_layers, noise_images

__all__ = ["SpatialLayers", "spatial_layers"]


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
                self._grids[name] = token_grid(int(output.shape[1]), *spec.size)
            elif not isinstance(output, Tensor) or output.ndim != 4:
                raise ModelError(
                    f"the layer '{name}' gives neither feature maps (N, C, h, w) nor tokens (N, T, C); choose another "
                    "with --layer"
                )
        self.shapes: list[FeatureShape] = [(int(c), int(h), int(w)) for _, c, h, w in map(_shape, self.read(outputs))]

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
