"""How many points of a path fit into memory together, from shapes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...contracts import ImageSpec
from ...errors import UsageError
from ..features import noise_images

__all__ = ["batch_and_points", "largest_batch", "largest_output", "points_per_pass", "room_of", "saved_bytes"]

_PROGRAM = 0.4 * 2**30  # the interpreter and its libraries
_COPIES = 3  # of the weights: the file, its parsed form, and the runtime's own layout
_RUNTIME = 3.1  # what ONNX Runtime takes over what autograd keeps: measured with IIA of a ViT-B, batches 1 to 8


def saved_bytes(model: nn.Module, run: Callable[[], Tensor]) -> int:
    """Memory that autograd keeps for the backward pass of what `run` computes, without the model's own weights."""
    own = {parameter.untyped_storage().data_ptr() for parameter in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = run()  # holds what was saved, so that no address is used twice
    del result
    return sum(sizes.values())


def room_of(model: nn.Module, budget: float) -> float:
    """Bytes that are left for images, of a process that may take `budget` GiB and holds the weights."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return budget * 2**30 - _PROGRAM - _COPIES * weights


def points_per_pass(room: float, fixed: float, each: float, points: int, outer: int = 1) -> int:
    """The most points of a path that go through the model together.

    Args:
        room: bytes for one image.
        fixed: bytes that autograd keeps for one image, however many points there are.
        each: bytes that it keeps for every point.
        points: of the integral.
        outer: points of the integral around it, each of which takes `fixed`.

    Returns:
        At least 1; a multiple of `points` where more than one point of the outer integral fits.

    Raises:
        UsageError: not even one point fits.
    """
    fixed, each = _RUNTIME * fixed, _RUNTIME * each
    whole = fixed + points * each
    if room >= whole:
        return points * min(outer, int(room // whole))
    if room < fixed + each:
        raise UsageError(
            f"one point of one image takes {(fixed + each) / 2**20:.0f} MiB, and the memory budget leaves "
            f"{max(room, 0) / 2**20:.0f} MiB; raise --memory-budget"
        )
    return int((room - fixed) // each)


def batch_and_points(
    room: float, fixed: float, each: float, points: int, outer: int, asked: int, wanted: int
) -> tuple[int, int]:
    """How many images and points of a path go through the model together.

    Args:
        room: bytes for all images.
        fixed: bytes that autograd keeps for one image, however many points there are.
        each: bytes that it keeps for every point.
        points: of the integral.
        outer: points of the integral around it, each of which takes `fixed`.
        asked: the most images.
        wanted: points that are worth going without a larger batch.

    Returns:
        (images, points): of the batches that leave room for the points wanted the largest, else of all.

    Raises:
        UsageError: not even one point of one image fits.
    """
    found: list[tuple[int, int]] = []
    for batch in range(asked, 1, -1):
        try:
            found.append((batch, points_per_pass(room / batch, fixed, each, points, outer)))
        except UsageError:
            continue
        if found[-1][1] >= min(wanted, points):
            return found[-1]
    one = points_per_pass(room, fixed, each, points, outer)
    return (1, one) if one >= min(wanted, points) or not found else found[0]


def largest_batch(room: float, fixed: float, each: float, points: int, at_once: int) -> int:
    """Images that fit together into the room for one, with so many points per pass; arguments as `points_per_pass`."""
    return max(1, int(room // (_RUNTIME * (fixed * max(1, at_once // points) + at_once * each))))


def largest_output(model: nn.Module, image_spec: ImageSpec) -> int:
    """Bytes of the largest tensor that a module of the model gives for one image."""
    largest = 0

    def note(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.nbytes)

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.no_grad():
            model(noise_images(model, image_spec, 1))
    finally:
        for handle in handles:
            handle.remove()
    return largest
