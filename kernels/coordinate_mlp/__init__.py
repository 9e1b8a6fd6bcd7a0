"""Coordinate networks: from the places of an image to masks of any areas, in one kernel; see README.md."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ...errors import UsageError
from ..arguments import about, require_device, require_floating
from ..dispatch import as_asked, kernel_op
from .reference import coordinate_mlp_backward_reference, coordinate_mlp_reference

__all__ = ["Activation", "coordinate_mlp"]

Activation = Literal["silu", "relu"]

_WIDEST, _MOST_FREQUENCIES = 128, 64  # that a program's tiles hold


def _fits(frequencies: Tensor, first: Tensor, *others: Any) -> bool:
    height, width = others[6:8]
    values = first.shape[2]
    addressed = height * width * values < 2**31  # of one image
    return values <= _WIDEST and len(frequencies) <= _MOST_FREQUENCIES and addressed


_forward = kernel_op("coordinate_mlp", coordinate_mlp_reference, _fits)
_backward = kernel_op(
    "coordinate_mlp_backward", coordinate_mlp_backward_reference, lambda gradient, *others: _fits(*others)
)


def coordinate_mlp(
    size: tuple[int, int],
    frequencies: Tensor,
    first: Tensor,
    shift: Tensor,
    area: Tensor,
    weights: Tensor,
    last: Tensor,
    offset: Tensor,
    features: Tensor | None = None,
    *,
    area_at: int = 0,
    activation: Activation = "silu",
    squash: bool = True,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The masks that coordinate networks give at the centres of a grid's cells.

    What follows has N rows, one for each image's own network, or one row for all images; gradients go to all of them.
    Modulation of an image (FiLM) is a shift of its own; its scale belongs into the columns of `first` and `weights`.

    Args:
        size: (H, W) of the grid.
        frequencies: B, (F, 2), in cycles per half the image, of x and y.
        first: (N, 2F, D), to the first hidden layer from sin 2πBp and, below them, cos 2πBp.
        shift: what is added to each layer before its activation, (N, L, D).
        area: what is added for each area, (N, A, D).
        weights: from one hidden layer to the next, (N, L − 1, D, D).
        last: (N, D), to the mask's logit.
        offset: of the logit for each area, (N, A).
        features: of the images, (N, h, w, D): added to the first layer, bilinearly sampled at the place.
        area_at: the layer to which `area` is added, from 0; all below is the same for all areas.
        activation: of the hidden layers.
        squash: logits to masks in [0, 1].
        dtype: of the result; that of `first` by default.

    Returns:
        (N, A, H, W).

    Raises:
        UsageError: an argument of another shape, dtype or device.
    """
    if activation not in ("silu", "relu"):
        raise UsageError(f"activation is 'silu' or 'relu', not '{activation}'")
    require_floating(dtype)
    if first.ndim != 3 or not first.is_floating_point():
        raise UsageError(f"first is floating point (N, 2F, D), not {about(first)}")
    _check(size, frequencies, first, shift, area, weights, last, offset, features, area_at)
    tensors = (frequencies, first, shift, area, weights, last, offset, features)
    settings = (*size, area_at, activation == "silu", squash, dtype or first.dtype)
    if first.device.type == "cpu":  # there it is faster to keep the layers' states for the derivative
        with as_asked(first.device):
            return coordinate_mlp_reference(*tensors, *settings)
    result: Tensor = _forward(*tensors, *settings)
    return result


def _check(
    size: tuple[int, int],
    frequencies: Tensor,
    first: Tensor,
    shift: Tensor,
    area: Tensor,
    weights: Tensor,
    last: Tensor,
    offset: Tensor,
    features: Tensor | None,
    area_at: int,
) -> None:
    if min(size) < 1:
        raise UsageError(f"the grid has at least one row and one column, not {size}")
    turns, values = first.shape[1] // 2, first.shape[2]
    layers = shift.shape[1] if shift.ndim == 3 else 0
    areas = area.shape[1] if area.ndim == 3 else 0
    tensors = {"first": first, "shift": shift, "area": area, "weights": weights, "last": last, "offset": offset}
    given = [value for value in (*tensors.values(), features) if value is not None and value.ndim]
    images = max(len(value) for value in given)
    shapes: dict[str, tuple[tuple[int, ...], str]] = {
        "first": ((2 * turns, values), "2F, D"),
        "shift": ((layers, values), "L, D"),
        "area": ((areas, values), "A, D"),
        "weights": ((layers - 1, values, values), "L − 1, D, D"),
        "last": ((values,), "D"),
        "offset": ((areas,), "A"),
    }
    for name, value in tensors.items():
        shape, letters = shapes[name]
        if value.ndim != len(shape) + 1 or value.shape[1:] != shape or len(value) not in (1, images):
            numbers = ", ".join(str(number) for number in shape)
            raise UsageError(
                f"{name} is (N, {letters}), here ({images} or 1, {numbers}) as first, shift and area say, "
                f"not {about(value)}"
            )
        if value.dtype != first.dtype:
            raise UsageError(f"{name} is floating point as first ({first.dtype}), not {about(value)}")
    if min(turns, layers, areas) < 1 or not 0 <= area_at < layers:
        raise UsageError(
            f"there is at least one frequency, layer and area, and area_at is one of the layers; not {turns}, "
            f"{layers}, {areas} and {area_at}"
        )
    if frequencies.shape != (turns, 2) or not frequencies.is_floating_point():
        raise UsageError(f"frequencies are floating point ({turns}, 2) as first has them, not {about(frequencies)}")
    others = {name: value for name, value in tensors.items() if name != "first"}
    require_device(first, "first", frequencies=frequencies, **others)
    if features is None:
        return
    if features.ndim != 4 or not features.numel() or features.shape[3] != values or len(features) not in (1, images):
        raise UsageError(f"features are (N, h, w, D), here ({images} or 1, h, w, {values}), not {about(features)}")
    if not features.is_floating_point():
        raise UsageError(f"features are floating point, not {about(features)}")
    require_device(first, "first", features=features)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:8])
    ctx.settings = inputs[8:13]


def _to_inputs(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    found: Any = _backward(gradient, *ctx.saved_tensors, *ctx.settings)
    return (*found[:7], None if ctx.saved_tensors[7] is None else found[7], *[None] * 6)


_forward.register_autograd(_to_inputs, setup_context=_keep_inputs)
