"""Masks that are found for each image by optimisation, all areas and all images of a batch together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ModelError
from ..explainee import Explainee, guest
from ..features import device_of
from ..perturb import branches_of, by_branch, make_baseline, one_each
from ..representation import classes_to_explain
from ..upsample import BilinearUpsample, sample_maps
from .area import masks_of_area
from .config import INRConfig
from .network import CoordinateNetworks, grid_of_points
from .objective import area_loss, evidence_loss, sorted_reference

__all__ = ["Fitted", "fit_masks"]

_GAIN = 1e-3  # of the objective, that counts as better
_MEMORY = 0.9  # of the running mean of an objective
_WIDE = 0.5  # area with which every mask begins, if its own is smaller
_NARROWED = 0.4  # fraction of the steps after which it has its own
_AT_ONCE = 16  # masks of an image that go through the classifier together
_AT_ONCE_ON_GPU = 64  # of all images


@dataclass(frozen=True)
class Fitted:
    """The masks of a batch, as functions.

    Attributes:
        networks: one for each image.
        areas: (A,), those optimised for; others lie in between.
        target: the classes explained, int64 (N,).
        logits: of the images themselves, (N, K).
        kept: probability of the class where only what a mask keeps is shown, (N, A); the least of several baselines.
        steps: updates of each image, int64 (N,).
        forwards: of the classifier, images over all, for each image: (N,).
        grid: (height, width) of the points at which the networks are asked.
        gain: factor of their logits.
        free: how much of each point a mask may take, (N, 1, P) in [0, 1]; None for everything.
    """

    networks: CoordinateNetworks
    areas: Tensor
    target: Tensor
    logits: Tensor
    kept: Tensor
    steps: Tensor
    forwards: Tensor
    grid: tuple[int, int]
    gain: float
    free: Tensor | None

    @torch.no_grad()
    def render(self, height: int, width: int, areas: Tensor | None = None) -> Tensor:
        """The masks at any size and of any areas, (N, A, height, width) in [0, 1]: bilinear between the points of the
        grid, which is what the classifier was shown.
        """
        asked = self.areas if areas is None else areas.to(self.areas)
        masks = masks_of_area(self.gain * self.networks(self.grid, asked), asked, self.free)
        rows, columns = grid_of_points(height, 1)[:, 1], grid_of_points(1, width)[:, 0]
        maps = masks.reshape(len(masks), len(asked), *self.grid)
        return sample_maps(maps, rows.to(asked.device), columns.to(asked.device))


def fit_masks(
    explainee: Explainee,
    pixels: Tensor,
    config: INRConfig,
    *,
    target: Tensor | None = None,
    free: Tensor | None = None,
    on_step: Callable[[int, int], None] = lambda step, left: None,
) -> Fitted:
    """Optimise a mask of each area for each image (Byra & Skibbe 2025, after Fong et al. 2019).

    The published area penalty remains as what makes masks binary; that a mask has its area is no longer asked for but
    built in, see `masks_of_area`. Every mask begins with half of the image and narrows to its own area: a small one
    sees no evidence where it happens to begin, and would stay there.

    Args:
        explainee: the classifier; left as found.
        pixels: (N, 3, H, W) in [0, 1].
        config: settings.
        target: the class to explain of each image, int64 (N,), negative for the predicted one; None for the predicted
            ones.
        free: where a mask may lie, (N, 1, H, W) of zeros and ones; None for everywhere. Areas are of the whole image.
            Without a mask is without all that is not free as well.
        on_step: told the number of updates done and the number of images that are not finished.

    Raises:
        ModelError: the optimisation of an image diverges.
        UsageError: the model has no such class.
    """
    with guest(explainee.model):
        return _Run(explainee, pixels, config, target, free).go(on_step)


def _ends(pixels: Tensor, kind: str, mean: Sequence[float], opened: Tensor | None) -> tuple[Tensor, Tensor]:
    """What masks of one and of zero show of the images, see `perturb`: pixels that are not open (N, 1, H, W) are
    removed whatever the mask, which on the grid may partly take a point next to them.
    """
    baseline = one_each(make_baseline(pixels, kind, mean), len(pixels))
    if opened is None:
        return pixels, baseline
    if baseline.ndim > pixels.ndim:  # a pyramid
        return pixels, torch.where(opened[:, None], baseline, baseline[:, -1:])
    return torch.where(opened, pixels, baseline), baseline


class _Run:
    """One batch on its way; images that are finished leave it."""

    def __init__(
        self, explainee: Explainee, pixels: Tensor, config: INRConfig, target: Tensor | None, free: Tensor | None
    ) -> None:
        self.explainee, self.config = explainee, config
        device = device_of(explainee.model)
        self.pixels = pixels.to(device)
        opened = None if free is None else free.to(device) > 0
        self.all_ends = [_ends(self.pixels, kind, explainee.image_spec.mean, opened) for kind in config.baselines]
        self.ends = self.all_ends[0]  # of the step that is on its way
        self.size = (int(pixels.shape[2]), int(pixels.shape[3]))
        self.grid = config.grid_of(self.size)
        self.enlarge = BilinearUpsample(self.grid, self.size).to(device)
        self.areas = torch.tensor(config.areas, device=device)
        self.free = None if opened is None else F.adaptive_avg_pool2d(opened.float(), self.grid).flatten(2)
        with torch.no_grad():
            self.logits = explainee.model(explainee.normalise(self.pixels))
        self.target = classes_to_explain(self.logits, target)
        self.at_once = _AT_ONCE if device.type == "cpu" else _AT_ONCE_ON_GPU
        self.networks = CoordinateNetworks(len(pixels), config).to(device)
        self.done = CoordinateNetworks(len(pixels), config).to(device)
        self.left = torch.arange(len(pixels), device=device)  # which images the networks belong to
        self.steps = torch.zeros(len(pixels), dtype=torch.int64, device=device)

    def go(self, on_step: Callable[[int, int], None]) -> Fitted:
        config = self.config
        optimizer: torch.optim.Optimizer = torch.optim.Adam(self.networks.parameters(), lr=config.learning_rate)
        smooth = best = torch.full((len(self.pixels),), math.inf, device=self.areas.device)
        since = torch.zeros_like(self.steps)
        for step in range(config.steps):
            risen = min(1.0, (step + 1) / max(1.0, config.warmup * config.steps))
            fallen = max(0.0, (step / config.steps - config.warmup) / (1 - config.warmup))
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * risen * (1 + math.cos(math.pi * fallen)) / 2
            narrowed = min(1.0, (step + 1) / max(1.0, _NARROWED * config.steps))
            wide = torch.maximum(self.areas, torch.full_like(self.areas, _WIDE))
            areas = self.areas**narrowed * wide ** (1 - narrowed)
            value = self._update(optimizer, areas, config.area_weight * risen * 2**fallen, step)
            self.steps[self.left] = step + 1
            kept = _MEMORY * smooth + (1 - _MEMORY) * value
            smooth = torch.where(torch.isfinite(smooth), kept, value)
            better = smooth < best - _GAIN
            best = torch.where(better, smooth, best)
            since = torch.where(better, 0, since + 1)
            if min(risen, narrowed) < 1:  # wide masks are easy: what they reach is nothing to compare with
                smooth, best, since = (torch.full_like(smooth, math.inf),) * 2 + (torch.zeros_like(since),)
            going = (since < config.patience) if config.patience else torch.ones_like(since, dtype=torch.bool)
            on_step(step + 1, int(going.sum()) if step + 1 < config.steps else 0)
            if not bool(going.all()):
                self._finish(~going)
                index = going.nonzero().flatten()
                if not len(index):
                    break
                optimizer = self._keep(index, optimizer)
                smooth, best, since = smooth[index], best[index], since[index]
        else:
            self._finish(torch.ones(len(self.left), dtype=torch.bool, device=self.left.device))
        self.done.requires_grad_(False)
        return Fitted(
            self.done, self.areas, self.target, self.logits, *self._result(), self.grid, self.config.gain, self.free
        )

    def _update(self, optimizer: torch.optim.Optimizer, areas: Tensor, weight: float, step: int) -> Tensor:
        """One update of masks of some areas; the objective of each image, with the area's weight as configured.

        On a processor image by image: several at once are no faster, since what one needs stays in the caches, and
        libraries round differently in batches of other sizes, which a few hundred steps make into another mask.
        """
        self.ends = self.all_ends[step % len(self.all_ends)]
        optimizer.zero_grad(set_to_none=True)
        values = []
        at_once = max(1, self.at_once // len(areas)) if self.areas.is_cuda else 1
        for start in range(0, len(self.left), at_once):
            images = self.left[start : start + at_once]
            free = None if self.free is None else self.free[images]
            logits = self.networks(self.grid, areas, slice(start, start + at_once))
            masks = masks_of_area(logits, areas, free)
            leaf = masks.detach().requires_grad_(True)
            evidence = self._evidence(leaf, images)
            area = area_loss(masks, sorted_reference(areas, masks.shape[2]))
            assert leaf.grad is not None, "the evidence depends on the masks"
            total = (masks * leaf.grad).sum() + weight * area.mean(1).sum()
            total.backward()  # type: ignore[no-untyped-call]
            values.append(evidence.mean(1) + self.config.area_weight * area.detach().mean(1))
        value = torch.cat(values)
        self._require_finite(value, torch.full_like(self.left, step + 1), self.left)
        optimizer.step()
        return value

    def _require_finite(self, values: Tensor, steps: Tensor, images: Tensor | None = None) -> None:
        """Refuse numbers (N,) that are not finite, of images of the batch after so many steps."""
        broken = (~torch.isfinite(values)).nonzero().flatten()
        if len(broken):
            first = int(broken[0])
            index = first if images is None else int(images[first])
            which = f" of image {index} of the batch" if len(self.pixels) > 1 else ""
            raise ModelError(
                f"the mask{which} diverges at step {int(steps[first])}; lower the learning rate, or check the image "
                "and the model's weights"
            )

    def _evidence(self, leaf: Tensor, images: Tensor) -> Tensor:
        """The evidence loss (N, A), its gradient left in `leaf`; part by part, since nothing else takes gradients."""
        areas = len(self.areas)
        each = max(1, self.at_once // areas)
        found = []
        for start in range(0, len(images), each):
            image = images[start : start + each]
            losses = []
            for first in range(0, areas, self.at_once):
                part = leaf[start : start + each, first : first + self.at_once]
                kept, removed = self._answers(self._masks_of_images(part), image)
                target = self.target[image].repeat_interleave(part.shape[1])
                loss = evidence_loss(kept, removed, target, self.config.objective, odds=self.config.odds)
                (loss.sum() / areas).backward()  # type: ignore[no-untyped-call]
                losses.append(loss.detach().reshape(len(image), -1))
            found.append(torch.cat(losses, 1))
        return torch.cat(found)

    def _answers(self, masks: Tensor, image: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The classifier's logits of what masks (N, A, H, W) keep of the images and of what they leave."""
        pixels, baseline = self.ends
        branches = branches_of(self.config.objective != "delete", self.config.objective != "preserve")
        shown = self.explainee.perturbed(pixels[image], masks, baseline[image], branches)
        return by_branch(branches, self.explainee.model(shown))

    def _masks_of_images(self, masks: Tensor) -> Tensor:
        """Masks (N, A, P) on the grid, (N, A, H, W) of the images' size."""
        large: Tensor = self.enlarge(masks.reshape(-1, 1, *self.grid))
        return large.reshape(*masks.shape[:2], *self.size)

    @torch.no_grad()
    def _finish(self, which: Tensor) -> None:
        """The networks of some of the images that are left are as good as they get."""
        for ready, value in zip(self.done.parameters(), self.networks.parameters(), strict=True):
            ready[self.left[which]] = value[which]

    @torch.no_grad()
    def _keep(self, index: Tensor, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Go on with some of the images that are left."""
        networks = CoordinateNetworks(len(index), self.config).to(index.device)
        for new, old in zip(networks.parameters(), self.networks.parameters(), strict=True):
            new.copy_(old[index])
        follower = torch.optim.Adam(networks.parameters(), lr=self.config.learning_rate)
        for new, old in zip(networks.parameters(), self.networks.parameters(), strict=True):
            state = optimizer.state[old]
            follower.state[new] = {
                name: value[index] if value.shape == old.shape else value for name, value in state.items()
            }
        self.networks, self.left = networks, self.left[index]
        return follower

    @torch.no_grad()
    def _result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Kept probabilities (N, A), steps (N,) and forwards (N,)."""
        masks = masks_of_area(self.config.gain * self.done(self.grid, self.areas), self.areas, self.free)
        kept = []
        for place in range(len(self.areas)):
            mask = self._masks_of_images(masks[:, place : place + 1])
            with_each = []
            for pixels, baseline in self.all_ends:
                logits = self.explainee.model(self.explainee.perturbed(pixels, mask, baseline))
                with_each.append(logits.softmax(1).gather(1, self.target[:, None])[:, 0])
            kept.append(torch.stack(with_each).amin(0))
            self._require_finite(kept[-1], self.steps)
        views = 2 if self.config.objective == "dual" else 1
        forwards = 1 + len(self.areas) * (views * self.steps + len(self.all_ends))
        return torch.stack(kept, 1), self.steps, forwards
