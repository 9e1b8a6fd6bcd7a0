"""Feature maps of any classifier, captured by hooks on named layers; no architecture is split by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..contracts import ImageSpec
from ..errors import ModelError, suggest
from .attention_tap import AttentionTap

__all__ = [
    "FeatureShape",
    "best_device",
    "capture",
    "default_layers",
    "device_of",
    "feature_shapes",
    "noise_images",
]

_MOST_FINER = 4  # times as many positions a side as the next coarser map; a finer one says little about classes
FeatureShape = tuple[int, int, int]  # channels, height, width


@contextmanager
def capture(model: nn.Module, layers: Sequence[str], *, leaves: bool = False) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of named layers while the model runs inside the block; the hooks are removed at its end.

    The model goes on with a copy, so that a map is not what the model makes of it in place (a ReLU in DenseNet).

    Args:
        model: it.
        layers: names.
        leaves: let a gradient begin at what is collected, and reach nothing before it; of a layer that runs again,
            at its first output.

    Raises:
        ModelError: the model has no such layer.
    """
    known = dict(model.named_modules())
    maps: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
            if leaves and name in maps:
                return output
            if leaves and isinstance(output, Tensor):
                output = output.detach().requires_grad_(True)
            maps[name] = output
            return output.clone() if isinstance(output, Tensor) else output

        return hook

    handles = []
    try:
        for name in layers:
            if name not in known or not name:
                raise ModelError(f"the model has no layer '{name}'; {suggest(name, [key for key in known if key])}")
            handles.append(known[name].register_forward_hook(keep(name)))
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def default_layers(model: nn.Module, image_spec: ImageSpec, levels: int = 2) -> tuple[str, ...]:
    """The layers whose feature maps say most about *where*: those of the coarsest resolution before global pooling,
    and above it those of the next finer ones; of the layers of one resolution the outermost, and of these the last.

    Returns:
        Names, coarsest first; fewer than `levels` where the model has no more resolutions.

    Raises:
        ModelError: the model has no feature maps (N, C, h, w) with more than one position, as a transformer without
            them.
    """
    chosen: list[str] = []
    finest = 0
    finished, maps, attended = _feature_maps(model, image_spec)
    for _, (_, height, width) in reversed(maps):
        if len(chosen) == levels or (chosen and height * width > _MOST_FINER**2 * finest):
            break
        if min(height, width) > 1 and height * width > finest:
            finest = height * width
            same = [
                (name.count("."), -place, name)
                for place, (name, shape) in enumerate(maps)
                if shape[1:] == (height, width)
            ]
            chosen.append(min(same)[2])
    early = len(finished) // 8  # a map from there, or from before the last attention, is of patches, not of features
    if not chosen or finished.index(chosen[0]) < max(early, attended):
        raise ModelError(
            "the model has no feature maps of shape (N, C, h, w) past its first layers, as transformers have none; "
            "name a layer with --layer"
        )
    return tuple(chosen)


def _feature_maps(model: nn.Module, image_spec: ImageSpec) -> tuple[list[str], list[tuple[str, FeatureShape]], int]:
    """Every module in the order in which they finish, those of them that give a feature map, with its shape, and how
    many had finished at the last attention.

    A module that runs twice is left out, since a hook cannot tell its outputs apart; so are outputs whose axes are in
    another order, which shows in a shape that is not the image's.
    """
    maps: list[tuple[str, FeatureShape]] = []
    finished: list[str] = []
    attended = 0
    tap = AttentionTap()
    image_height, image_width = image_spec.size

    def note(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            nonlocal attended
            if len(tap.matrices):
                attended = len(finished)
                tap.matrices.clear()
            finished.append(name)
            if isinstance(output, Tensor) and output.ndim == 4:
                _, channels, height, width = (int(length) for length in output.shape)
                if abs(height * image_width - width * image_height) <= max(image_height, image_width):
                    maps.append((name, (channels, height, width)))

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad(), tap:
            model(noise_images(model, image_spec, 1))
    finally:
        for handle in handles:
            handle.remove()
    calls = Counter(finished)
    return finished, [(name, shape) for name, shape in maps if calls[name] == 1], attended


def feature_shapes(model: nn.Module, layers: Sequence[str], image_spec: ImageSpec) -> list[FeatureShape]:
    """Channels, height and width of the layers' feature maps, in the order of the layers."""
    with torch.no_grad(), capture(model, layers) as maps:
        model(noise_images(model, image_spec, 1))
    shapes = []
    for name in layers:
        output = maps.get(name)
        if not isinstance(output, Tensor) or output.ndim != 4:
            raise ModelError(
                f"the layer '{name}' does not give feature maps of shape (N, C, h, w); choose another with --layer"
            )
        shapes.append((int(output.shape[1]), int(output.shape[2]), int(output.shape[3])))
    return shapes


def device_of(model: nn.Module) -> torch.device:
    """Where a model's weights lie."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def best_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def noise_images(model: nn.Module, image_spec: ImageSpec, count: int) -> Tensor:
    """Normalised images of noise (N, 3, H, W), always the same, of the model's own dtype and where its weights lie."""
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    noise = torch.randn(count, 3, *image_spec.size, generator=torch.Generator().manual_seed(0))
    return noise.to(device_of(model), dtype)
