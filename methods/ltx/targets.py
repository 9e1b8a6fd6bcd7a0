"""Several classes in one image, and which of them to explain: what an explainer for any class is trained on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["choose_targets", "generator_of", "mix_neighbours"]

_SIDE = (0.4, 0.65)  # of a pasted piece, of the image's
_TRIES = 4  # places that are tried for each image
_LEAST = 0.02  # probability of a class that counts as present


def generator_of(seed: int, step: int) -> torch.Generator:
    """Randomness of one step, the same after an interruption; on the CPU."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


@torch.no_grad()
def mix_neighbours(pixels: Tensor, predict: Callable[[Tensor], Tensor], generator: torch.Generator) -> Tensor:
    """Images that hold several classes, although those of a classifier mostly show one: each gets a piece of another
    (as in CutMix, Yun et al. 2019), and of a few tries that is kept in which the classifier sees a second class best.

    Args:
        pixels: (N, 3, H, W) in [0, 1].
        predict: from such images to logits (N, K).
        generator: of pieces and places.

    Returns:
        The same shape.
    """
    best, most = pixels, pixels.new_full((len(pixels),), -1.0)
    for _ in range(_TRIES):
        mixed = _paste(pixels, generator)
        second = predict(mixed).softmax(1).topk(2, dim=1).values[:, 1]
        better = second > most
        best = torch.where(better[:, None, None, None], mixed, best)
        most = torch.where(better, second, most)
    return best


def choose_targets(logits: Tensor, generator: torch.Generator) -> Tensor:
    """The class to explain of each image: the predicted one, or in half of the images that show another one the second.

    Args:
        logits: (N, K), of the classifier.
        generator: of the choice.

    Returns:
        int64 (N,).
    """
    probabilities, order = logits.softmax(1).topk(min(2, logits.shape[1]), dim=1)
    other = torch.rand(len(logits), generator=generator).to(logits.device) < 0.5
    other &= probabilities[:, -1] >= _LEAST
    return torch.where(other, order[:, -1], order[:, 0])


def _paste(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Into each image a piece of another one, from somewhere, to somewhere."""
    result = pixels.clone()
    count, _, height, width = pixels.shape
    away = 1 + int(torch.randint(max(1, count - 1), (), generator=generator))
    for index in range(count):
        share = _SIDE[0] + (_SIDE[1] - _SIDE[0]) * float(torch.rand((), generator=generator))
        rows, columns = round(share * height), round(share * width)
        y, x, top, left = (
            int(torch.randint(room + 1, (), generator=generator))
            for room in (height - rows, width - columns, height - rows, width - columns)
        )
        piece = pixels[(index + away) % count, :, y : y + rows, x : x + columns]
        result[index, :, top : top + rows, left : left + columns] = piece
    return result
