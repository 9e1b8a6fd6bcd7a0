"""Several classes in one image, and which of them to explain: what an explainer for any class is trained on."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["choose_targets", "generator_of", "paste_neighbours"]

_SIDE = (0.4, 0.65)  # of a pasted piece, of the image's
_LEAST = 0.05  # probability of a class that counts as present


def generator_of(seed: int, step: int) -> torch.Generator:
    """Randomness of one step, the same after an interruption; on the CPU."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def paste_neighbours(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Every other image gets a piece of the next one, somewhere: so that images hold several classes, although those of
    a classifier mostly show one (as CutMix, Yun et al. 2019, but of its images alone).

    Args:
        pixels: (N, 3, H, W).
        generator: of sizes and places.

    Returns:
        The same shape.
    """
    result = pixels.clone()
    height, width = pixels.shape[2:]
    for index in range(0, len(pixels), 2):
        share = _SIDE[0] + (_SIDE[1] - _SIDE[0]) * float(torch.rand((), generator=generator))
        rows, columns = round(share * height), round(share * width)
        y, x, top, left = (
            int(torch.randint(room + 1, (), generator=generator))
            for room in (height - rows, width - columns, height - rows, width - columns)
        )
        piece = pixels[(index + 1) % len(pixels), :, y : y + rows, x : x + columns]
        result[index, :, top : top + rows, left : left + columns] = piece
    return result


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
