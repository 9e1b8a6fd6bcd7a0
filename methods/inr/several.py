"""Several masks of one image that do not overlap: what else the classifier would have seen it by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import UsageError
from ..explainee import Explainee, guest
from ..features import device_of
from ..perturb import make_baseline, one_each
from ..representation import classes_to_explain
from .config import INRConfig
from .fit import fit_masks

__all__ = ["ROOM", "SeveralConfig", "SeveralMasks", "several_masks"]

_LEADS = 2  # times the area, of the mask that is found beside each and leads it to the evidence
_SURE = 0.5  # share of what the image adds, that a mask holds on to which is not looked for again
ROOM = 0.01  # of probability that an image must have over what removes it, for a mask to hold a share of


@dataclass(frozen=True, kw_only=True)
class SeveralConfig:
    """How many masks, and when to stop.

    Attributes:
        most: masks of an image at most.
        area: of each.
        least: share that a mask must hold on to of what the whole image adds to the class's probability, over the image
            of which nothing is kept; a mask that does not is left out, and the image has no more.
        tries: how often a mask is looked for, each time from other first weights, where none so far holds on to half of
            what the image adds; the best one counts.
        margin: width of the border around each mask that later ones leave out too, as a fraction of the image's longer
            side: what lies next to a mask is most often the rest of the same object.
    """

    most: int = 3
    area: float = 0.1
    least: float = 0.1
    tries: int = 2
    margin: float = 0.05

    def __post_init__(self) -> None:
        if self.most < 1 or not 0 < self.area < 1 or not 0 <= self.least <= 1:
            raise UsageError("at least one mask, of an area inside (0, 1), that keeps a share in [0, 1]")
        if self.tries < 1:
            raise UsageError("a mask is looked for at least once")
        if not 0 <= self.margin < 0.5:
            raise UsageError(
                f"the margin around a mask is a fraction of the image's side in [0, 0.5), not {self.margin}"
            )
        if self.most * self.area >= 1:
            raise UsageError(
                f"{self.most} masks of {self.area:.0%} of the image each do not fit side by side; ask for fewer, or "
                "for smaller ones"
            )


@dataclass(frozen=True)
class SeveralMasks:
    """Masks without a common pixel.

    Attributes:
        masks: (N, J, H, W) of zeros and ones, in the order in which they were found; zeros where an image has fewer.
        found: how many each image has, int64 (N,).
        retention: probability of the class where only the mask is shown, over that of the whole image, (N, J); the
            least of several baselines.
        union: the same for all masks of an image together, (N,).
        room: probability of the class over that of the image of which nothing is kept, (N,): where it is next to
            nothing, there is no share of it for a mask to hold on to, and none is looked for.
        target: int64 (N,).
        logits: of the images, (N, K).
    """

    masks: Tensor
    found: Tensor
    retention: Tensor
    union: Tensor
    room: Tensor
    target: Tensor
    logits: Tensor


def several_masks(
    explainee: Explainee,
    pixels: Tensor,
    several: SeveralConfig,
    config: INRConfig,
    *,
    target: Tensor | None = None,
    on_step: Callable[[int, int], None] = lambda mask, step: None,
) -> SeveralMasks:
    """Find a mask, take its pixels away, find the next one in what is left, until the evidence is exhausted.

    Args:
        explainee: the classifier; left as found.
        pixels: (N, 3, H, W) in [0, 1].
        several: number, area and when to stop.
        config: of each optimisation; its areas are not used, and evidence counts in log probabilities: those of the
            leading mask rest when it is enough, and leave the network to the smaller one.
        target: int64 (N,), negative for the predicted class.
        on_step: told the mask, from 0, and its number of updates, which starts again with every try.

    Raises:
        ModelError: the optimisation of an image diverges.
        UsageError: the model has no such class.
    """
    device = device_of(explainee.model)
    pixels = pixels.to(device)
    count, _, height, width = pixels.shape
    areas = (several.area, min(_LEADS * several.area, (1 + several.area) / 2))
    masks = torch.zeros(count, several.most, height, width, device=device)
    retention = torch.zeros(count, several.most, device=device)
    free = torch.ones(count, 1, height, width, device=device)
    baselines = [one_each(make_baseline(pixels, kind, explainee.image_spec.mean), count) for kind in config.baselines]
    border = round(several.margin * max(height, width))
    with guest(explainee.model), torch.no_grad():
        logits = explainee.model(explainee.normalise(pixels))
    chosen = classes_to_explain(logits, target)
    whole = logits.softmax(1).gather(1, chosen[:, None])[:, 0]

    @torch.no_grad()
    def kept(which: Tensor, mask: Tensor) -> Tensor:
        found = []
        for baseline in baselines:
            shown = explainee.perturbed(pixels[which], mask, baseline[which])
            with guest(explainee.model):
                answers = explainee.model(shown).softmax(1)
            found.append(answers.gather(1, chosen[which, None])[:, 0])
        return torch.stack(found).amin(0)

    everything = torch.arange(count, device=device)
    nothing = kept(everything, torch.zeros_like(free))
    room = whole - nothing
    left = (room >= ROOM).nonzero().flatten()

    for place in range(several.most if len(left) else 0):
        mask = torch.zeros(len(left), 1, height, width, device=device)
        probability, held = torch.zeros(len(left), device=device), torch.full((len(left),), -torch.inf, device=device)
        for attempt in range(several.tries):
            again = (held < max(several.least, _SURE)).nonzero().flatten()
            if not len(again):
                break
            which = left[again]
            # with odds the leading mask would never rest; the gain changes nothing, since only the pixels' order counts
            fitted = fit_masks(
                explainee,
                pixels[which],
                replace(config, areas=areas, odds=False, seed=config.seed + attempt, gain=1.0),
                target=chosen[which],
                free=free[which],
                on_step=lambda step, _, place=place: on_step(place, step),  # type: ignore[misc]
            )
            new = _brightest(fitted.render(height, width, fitted.areas[:1]) * free[which], several.area)
            alone = kept(which, new)
            share = (alone - nothing[which]) / room[which]
            better = share > held[again]
            taken = again[better]
            mask[taken], probability[taken], held[taken] = new[better], alone[better], share[better]
        enough = held >= several.least
        left = left[enough]
        if not len(left):
            break
        masks[left, place] = mask[enough, 0]
        retention[left, place] = probability[enough] / whole[left]
        free[left] = free[left] * (1 - F.max_pool2d(mask[enough], 2 * border + 1, 1, border))
    number = (masks.flatten(2).amax(2) > 0).sum(1)
    union = kept(everything, masks.amax(1, keepdim=True)) / whole.clamp_min(torch.finfo(whole.dtype).tiny)
    return SeveralMasks(masks, number, retention, union, room, chosen, logits)


def _brightest(masks: Tensor, area: float) -> Tensor:
    """Ones at the brightest pixels of each mask (N, 1, H, W): so many that they are of the area, or all above zero."""
    flat = masks.flatten(1)
    order = flat.argsort(dim=1, descending=True, stable=True)[:, : max(1, round(area * flat.shape[1]))]
    chosen = torch.zeros_like(flat).scatter(1, order, 1.0)
    return (chosen * (flat > 0)).reshape(masks.shape)
