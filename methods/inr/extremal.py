"""Extremal perturbations (Fong, Patrick & Vedaldi 2019): the lattice masks that coordinate networks are held against.

As in the authors' own TorchRay: a lattice of values whose smooth maximum is the mask, a growing weight of the area
term, plain gradient descent with momentum; here for many images and areas at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import UsageError
from ..explainee import Explainee, guest
from ..features import device_of
from ..perturb import checked_replacement, make_baseline, one_each
from ..representation import classes_to_explain
from .config import checked_areas
from .objective import area_loss, sorted_reference

__all__ = ["ExtremalConfig", "SmoothMaximum", "extremal_masks"]

_CELLS = 32  # of the lattice, along each side: 224 pixels in steps of 7
_SMOOTHING = 3  # lattice steps in the kernel's standard deviation: 21 pixels of 224
_REACH = 6  # lattice steps to each side that the maximum looks at: two standard deviations
_COLDNESS = 20.0
_AREA_WEIGHT, _GROWTH = 300.0, 1.0035
_MOMENTUM = 0.9  # and dampening
_PIXELS = 2**16  # of masks at once: what the smooth maximum works on stays in a processor's caches
_PIXELS_ON_GPU = 2**22


@dataclass(frozen=True, kw_only=True)
class ExtremalConfig:
    """How lattice masks are found.

    Attributes:
        areas: fractions of the image, in (0, 1).
        baseline: what replaces a removed pixel.
        steps: updates; 800 as published.
        learning_rate: of gradient descent.
    """

    areas: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3)
    baseline: str = "blur"
    steps: int = 800
    learning_rate: float = 0.01

    def __post_init__(self) -> None:
        checked_areas(self.areas)
        checked_replacement(self.baseline)
        if self.steps < 1 or not 0 < self.learning_rate < math.inf:
            raise UsageError("steps are at least 1, and the learning rate is positive and finite")


class _Pooled(torch.autograd.Function):
    """c Σ w e^{cw} / Σ e^{cw} over the neighbours of each cell, cw = kernel × neighbour, (M, offsets, cells).

    One neighbour after another, forwards and backwards: what is held at once does not grow with their number.
    """

    @staticmethod
    def forward(ctx: Any, around: Tensor, kernel: Tensor) -> Tensor:
        """Around each cell (M, neighbours, cells), with c times what each weighs in a pixel (offsets, neighbours)."""
        above = around.new_zeros(len(around), len(kernel), around.shape[2])
        below = torch.zeros_like(above)
        weighted, exponential = torch.empty_like(above), torch.empty_like(above)
        for place in range(kernel.shape[1]):
            torch.mul(kernel[:, place, None], around[:, place, None], out=weighted)
            torch.exp(weighted, out=exponential)
            above.addcmul_(weighted, exponential)
            below += exponential
        pooled = above.div_(below)
        ctx.save_for_backward(around, kernel, pooled, below)
        return pooled

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The derivative of a pixel by cw is e^{cw} (1 + cw − pixel) / Σ e^{cw}."""
        around, kernel, pooled, below = ctx.saved_tensors
        share = gradients[0] / below
        constant = share * (1 - pooled)
        towards = torch.empty_like(around)
        weighted, exponential = torch.empty_like(share), torch.empty_like(share)
        for place in range(kernel.shape[1]):
            torch.mul(kernel[:, place, None], around[:, place, None], out=weighted)
            torch.exp(weighted, out=exponential)
            torch.addcmul(constant, weighted, share, out=weighted)
            towards[:, place] = kernel[:, place] @ weighted.mul_(exponential)
        return towards, None


class SmoothMaximum:
    """From a lattice of values in [0, 1] to a mask whose edges are as soft as the kernel.

    Each pixel takes the smooth maximum Σ w e^{cw} / Σ e^{cw} of what the cells around it say, w = k(d) v, with
    k(d) = exp(−2 max(0, d/σ − ½)²) of the distance d. Past its edge the lattice goes on as at the edge: without that,
    fewer cells meet there, and the first masks of a given area are frames of the image.

    Args:
        size: (height, width) of the mask; divisible by 32.
        device: where masks are made.
    """

    def __init__(self, size: tuple[int, int], device: torch.device) -> None:
        if any(side % _CELLS for side in size):
            raise UsageError(f"extremal perturbations take images whose sides {size} are divisible by {_CELLS}")
        self.step = (size[0] // _CELLS, size[1] // _CELLS)
        near = torch.arange(-_REACH, _REACH + 1, dtype=torch.float32)
        squares = []
        for step in self.step:
            within = (torch.arange(step) + 0.5) / step - 0.5  # of a pixel's centre from its cell's, in cells
            squares.append((near[None] - within[:, None]).square())  # (offsets, neighbours)
        distance = (squares[0][:, None, :, None] + squares[1][None, :, None, :]).sqrt() / _SMOOTHING
        kernel = torch.exp(-2 * (distance - 0.5).clamp_min(0).square())
        self.kernel = kernel.flatten(2).flatten(0, 1).to(device)  # (offsets, neighbours)

    def __call__(self, lattice: Tensor) -> Tensor:
        """(M, 32, 32) to masks (M, H, W)."""
        around = F.unfold(
            F.pad(lattice[:, None], [_REACH] * 4, mode="replicate"), 2 * _REACH + 1
        )  # (M, neighbours, cells)
        pooled = _Pooled.apply(around, (_COLDNESS * self.kernel).to(lattice.dtype))  # type: ignore[no-untyped-call]
        rows = (pooled / _COLDNESS).reshape(-1, *self.step, _CELLS, _CELLS).permute(0, 3, 1, 4, 2)
        masks: Tensor = rows.reshape(-1, _CELLS * self.step[0], _CELLS * self.step[1])
        return masks.clamp(0, 1)


def extremal_masks(
    explainee: Explainee,
    pixels: Tensor,
    config: ExtremalConfig,
    *,
    target: Tensor | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> Tensor:
    """The masks of the images, (N, A, H, W) in [0, 1]; preservation of the class's logit, all areas at once.

    Args:
        explainee: the classifier; left as found.
        pixels: (N, 3, H, W) in [0, 1].
        config: settings.
        target: int64 (N,), negative for the predicted class.
        on_step: told the number of updates done.

    Raises:
        UsageError: the model has no such class, or the images' sides do not fit the lattice.
    """
    device = device_of(explainee.model)
    pixels = pixels.to(device)
    size = (int(pixels.shape[2]), int(pixels.shape[3]))
    enlarge = SmoothMaximum(size, device)
    baseline = one_each(make_baseline(pixels, config.baseline, explainee.image_spec.mean), len(pixels))
    areas = torch.tensor(config.areas, device=device)
    reference = sorted_reference(areas, size[0] * size[1])
    count, at_once = len(pixels), _PIXELS if device.type == "cpu" else _PIXELS_ON_GPU
    parts = -(-count * len(areas) // max(1, at_once // (size[0] * size[1])))
    lattice = torch.ones(count, len(areas), _CELLS, _CELLS, device=device, requires_grad=True)
    speed = torch.zeros_like(lattice)
    with guest(explainee.model):
        with torch.no_grad():
            chosen = classes_to_explain(explainee.model(explainee.normalise(pixels)), target)
        weight = _AREA_WEIGHT
        for step in range(config.steps):
            for which in torch.arange(count * len(areas), device=device).tensor_split(parts):
                image, area = which // len(areas), which % len(areas)
                masks = enlarge(lattice[image, area])
                shown = explainee.perturbed(pixels[image], masks[:, None], baseline[image])
                if step % 2:
                    shown = shown.flip(3)
                score = explainee.model(shown).gather(1, chosen[image, None])
                (weight * area_loss(masks.flatten(1)[:, None], reference[area, None]).sum() - score.sum()).backward()
            assert lattice.grad is not None, "the loss depends on the lattice"
            with torch.no_grad():
                speed.mul_(_MOMENTUM).add_(lattice.grad, alpha=1 - _MOMENTUM)
                lattice.sub_(config.learning_rate * speed).clamp_(0, 1)
            lattice.grad = None
            weight *= _GROWTH
            on_step(step + 1)
    with torch.no_grad():
        found = [enlarge(part) for part in lattice.flatten(0, 1).tensor_split(parts)]
        return torch.cat(found).reshape(count, len(areas), *size)
