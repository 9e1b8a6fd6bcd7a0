"""Feature maps of any classifier, captured by hooks on named layers; no architecture is split by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..contracts import ImageSpec
from ..errors import ModelError, suggest

__all__ = ["FeatureShape", "capture", "default_layers", "feature_shapes"]

FeatureShape = tuple[int, int, int]  # channels, height, width


@contextmanager
def capture(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of named layers while the model runs inside the block; the hooks are removed at its end.

    Raises:
        ModelError: the model has no such layer.
    """
    known = dict(model.named_modules())
    maps: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            maps[name] = output

        return hook

    handles = []
    try:
        for name in layers:
            if name not in known or not name:
                raise ModelError(f"the model has no layer '{name}'; {suggest(name, [key for key in known if key])}")
            handles.append(known[name].register_forward_hook(keep(name)))  # type: ignore[arg-type]
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def default_layers(model: nn.Module, image_spec: ImageSpec, levels: int = 2) -> tuple[str, ...]:
    """The layers whose feature maps say most about *where*: the last one before global pooling, and above it the last ones
    of each finer resolution; coarsest first.

    Raises:
        ModelError: the model has no feature maps (N, C, h, w) with more than one position, as a transformer without them.
    """
    seen: list[tuple[str, FeatureShape]] = []
    order: list[str] = []
    handles = []
    for name, module in model.named_modules():
        if name:
            def hook(_: nn.Module, __: object, output: object, name: str = name) -> None:
                if isinstance(output, Tensor) and output.ndim == 4:
                    seen.append((name, (int(output.shape[1]), int(output.shape[2]), int(output.shape[3]))))
                    order.append(name)

            handles.append(module.register_forward_hook(hook))
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, *image_spec.size))
    finally:
        for handle in handles:
            handle.remove()

    chosen: list[str] = []
    resolution = 0
    for name, (_, height, width) in reversed(seen):
        if min(height, width) > 1 and height * width > resolution:
            if chosen and height * width > 16 * resolution:
                break
            chosen.append(name)
            resolution = height * width
            if len(chosen) == levels:
                break
    if not chosen:
        raise ModelError("the model has no feature maps of shape (N, C, h, w) before its head; name a layer with --layer")
    return tuple(chosen)


def feature_shapes(model: nn.Module, layers: Sequence[str], image_spec: ImageSpec) -> list[FeatureShape]:
    """Channels, height and width of the layers' feature maps, in the order of the layers."""
    with torch.no_grad(), capture(model, layers) as maps:
        model(torch.zeros(1, 3, *image_spec.size))
    shapes = []
    for name in layers:
        output = maps.get(name)
        if not isinstance(output, Tensor) or output.ndim != 4:
            raise ModelError(f"the layer '{name}' does not give feature maps of shape (N, C, h, w); choose another with --layer")
        shapes.append((int(output.shape[1]), int(output.shape[2]), int(output.shape[3])))
    return shapes
