"""How good masks are, in one batch and without labels: what fine-tuning chooses its best step by."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ..explainee import Explainee

__all__ = ["CRITERIA", "Criterion", "score_masks"]

Criterion = Literal["loss", "pos", "insertion-deletion"]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)

_LEVELS = 9  # 10 % … 90 % of the pixels, as published
_AT_ONCE = 64  # images through the classifier together


def score_masks(
    explainee: Explainee, pixels: Tensor, mask: Tensor, target: Tensor, baseline: Tensor, criterion: Criterion
) -> tuple[Tensor, int]:
    """Score each mask by what the classifier says while pixels are taken away or put in, most important first.

    ``"pos"``: the mean probability of the target while 10, 20 … 90 % of the pixels are removed (positive perturbation).
    ``"insertion-deletion"``: the same less the mean probability while as many are inserted into the baseline.

    Args:
        explainee: the classifier.
        pixels: (N, 3, H, W) in [0, 1].
        mask: (N, 1, H, W).
        target: the classes explained, int64 (N,).
        baseline: what replaces a removed pixel, of a shape that broadcasts to the pixels'.
        criterion: see above.

    Returns:
        The score of each image, (N,), smaller is better; and the number of forwards per image.
    """
    places = mask.shape[2] * mask.shape[3]
    order = mask.flatten(1).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(places, device=mask.device).expand_as(order))
    rank = rank.reshape(mask.shape)
    levels = [round(places * level / (_LEVELS + 1)) for level in range(1, _LEVELS + 1)]

    def mean_probability(remove: bool) -> Tensor:
        kept = torch.cat([(rank >= level if remove else rank < level).to(pixels.dtype) for level in levels], 1)
        images = explainee.perturbed(pixels, kept, baseline)
        with torch.no_grad():
            logits = torch.cat([explainee.model(part) for part in torch.split(images, _AT_ONCE)])
        found = logits.softmax(1).gather(1, target.repeat_interleave(len(levels))[:, None])
        return found.reshape(len(pixels), len(levels)).mean(1)

    removed = mean_probability(remove=True)
    if criterion == "pos":
        return removed, len(levels)
    return removed - mean_probability(remove=False), 2 * len(levels)
