"""Several classes in one image, and which of them to explain: what an explainer for any class is trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import UsageError
from ..perturb import perturb

__all__ = ["Mixed", "generator_of", "mix_with_targets"]

_SIDE = (0.4, 0.65)  # of a pasted piece, of the image's
_TRIES = 5  # pieces that are tried for each image
_PART = 0.5  # of a mask's value, from where a pixel belongs to an object
_MOVED = 0.3  # of the image's side, that an object is moved by at most
_LEAST = 0.005  # probability of a class that counts as present where an object of it was pasted
_SURE = 0.98  # probability of a class of which a part of the image alone is shown, that counts as seen there


class Mixed(NamedTuple):
    """Images with two classes, and one of them to explain.

    Attributes:
        pixels: (N, 3, H, W).
        target: the class to explain, int64 (N,).
        elsewhere: 1 where a pixel belongs to the other class, (N, 1, H, W): nothing there is evidence of the target; 0
            everywhere in an image that shows one class.
    """

    pixels: Tensor
    target: Tensor
    elsewhere: Tensor


def generator_of(seed: int, step: int) -> torch.Generator:
    """Randomness of one step, the same after an interruption; on the CPU."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


@torch.no_grad()
def mix_with_targets(
    pixels: Tensor,
    predict: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    objects: Tensor | None = None,
    backgrounds: Sequence[Tensor] = (),
) -> Mixed:
    """Images that show two classes, although those of a classifier mostly show one, and one of the two to explain.

    An image of which a part alone is of another class, whatever lies around it, stays as it is. Each of the others gets
    a piece of another image, of another class (as in CutMix, Yun et al. 2019). Of a few tries that one is kept in which
    the classifier still sees both classes best; where it does not, the image stays as it is. An image in which one
    thing looks like two classes is no such image: the second class is the one of the piece's own image.

    Args:
        pixels: (N, 3, H, W) in [0, 1].
        predict: from such images to logits (N, K).
        generator: of pieces, places and choice.
        objects: where the evidence of each image's own class is, as far as it is known, (N, 1, H, W) in [0, 1]. Every
            second image then gets such an object without its surroundings (as in copy and paste, Ghiasi et al. 2021),
            since a rectangle's edges tell where another image begins.
        backgrounds: what is shown around a part of an image, one after the other, each of a shape that broadcasts to
            the pixels'; without any no parts are looked at. On planted scenes with two digits a transformer puts the
            second below 1 in 30,000, but with three backgrounds the right one is found in 40 % of them, a wrong one in
            2 %, and one in 4 % of the scenes that have no second digit.
    """
    if len(pixels) < 2:
        raise UsageError(
            "an explainer for any class pastes pieces of one image into another, so it takes at least two images in "
            "each step and process; raise --batch-size, or give more images"
        )
    own = predict(pixels).argmax(1)
    best, most, other = pixels, pixels.new_full((len(pixels),), _LEAST), own
    piece = torch.zeros_like(pixels[:, :1])
    if backgrounds:
        sure, seen_there, part = _part_of_another_class(pixels, predict, own, backgrounds, generator)
        natural = sure >= _SURE
        most = torch.where(natural, torch.inf, most)
        other = torch.where(natural, seen_there, other)
        piece = torch.where(natural[:, None, None, None], part, piece)
    for _ in range(_TRIES):
        mixed, source, pasted = _paste(pixels, generator)
        if objects is not None:
            cut, pasted[1::2] = _paste_objects(pixels, objects, source, generator)
            mixed[1::2] = cut
        probabilities = predict(mixed).softmax(1)
        pair = torch.stack([own, own[source]], 1)
        seen = probabilities.gather(1, pair).amin(1)
        better = (seen > most) & (pair[:, 0] != pair[:, 1])
        best = torch.where(better[:, None, None, None], mixed, best)
        piece = torch.where(better[:, None, None, None], pasted, piece)
        other = torch.where(better, pair[:, 1], other)
        most = torch.where(better, seen, most)
    second = torch.rand(len(pixels), generator=generator).to(pixels.device) < 0.5
    outside = (other != own)[:, None, None, None] * (1 - piece)
    return Mixed(best, torch.where(second, other, own), torch.where(second[:, None, None, None], outside, piece))


def _part_of_another_class(
    pixels: Tensor,
    predict: Callable[[Tensor], Tensor],
    own: Tensor,
    backgrounds: Sequence[Tensor],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a few rectangles of each image the one that is, alone on the first background, most surely of another class:
    the least probability of that class over all backgrounds (N,), the class int64 (N,), the rectangle (N, 1, H, W).
    """

    def shown(part: Tensor, background: Tensor) -> Tensor:
        probabilities = predict(perturb(pixels, part, background)).softmax(1)
        return probabilities.scatter(1, own[:, None], 0)

    most, best, where = pixels.new_zeros(len(pixels)), own, torch.zeros_like(pixels[:, :1])
    for _ in range(_TRIES):
        part = torch.zeros_like(where)
        for index in range(len(pixels)):
            (top, left), (rows, columns) = _rectangle(pixels.shape[2:], generator)
            part[index, :, top : top + rows, left : left + columns] = 1
        value, label = shown(part, backgrounds[0]).max(1)
        better = value > most
        best, most = torch.where(better, label, best), torch.where(better, value, most)
        where = torch.where(better[:, None, None, None], part, where)
    for background in backgrounds[1:]:
        most = torch.minimum(most, shown(where, background).gather(1, best[:, None])[:, 0])
    return most, best, where


def _rectangle(size: Sequence[int], generator: torch.Generator) -> tuple[tuple[int, int], tuple[int, int]]:
    """(top, left) and (rows, columns) of a rectangle somewhere in an image of (height, width)."""
    height, width = size
    share = _SIDE[0] + (_SIDE[1] - _SIDE[0]) * float(torch.rand((), generator=generator))
    rows, columns = round(share * height), round(share * width)
    top, left = (int(torch.randint(room + 1, (), generator=generator)) for room in (height - rows, width - columns))
    return (top, left), (rows, columns)


def _paste(pixels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Into each image a piece of another one, from somewhere, to somewhere; which one that was, int64 (N,); and where
    the piece is, (N, 1, H, W).
    """
    result, pasted = pixels.clone(), torch.zeros_like(pixels[:, :1])
    count, _, height, width = pixels.shape
    away = 1 + int(torch.randint(max(1, count - 1), (), generator=generator))
    source = (torch.arange(count, device=pixels.device) + away) % count
    for index in range(count):
        (y, x), (rows, columns) = _rectangle((height, width), generator)
        top, left = (int(torch.randint(room + 1, (), generator=generator)) for room in (height - rows, width - columns))
        piece = pixels[(index + away) % count, :, y : y + rows, x : x + columns]
        result[index, :, top : top + rows, left : left + columns] = piece
        pasted[index, :, top : top + rows, left : left + columns] = 1
    return result, source, pasted


def _paste_objects(
    pixels: Tensor, objects: Tensor, source: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Into every second image the object of another one, moved; and where that is, (N // 2, 1, H, W) of zeros and
    ones.
    """
    height, width = pixels.shape[2:]
    reach = 2 * round(max(height, width) / 48) + 1  # the object with a little of what is around it, its edge soft
    grown = F.max_pool2d((objects > _PART).float(), reach, 1, reach // 2)
    soft = F.avg_pool2d(grown, reach, 1, reach // 2)
    results, places = [], []
    for index in range(1, len(pixels), 2):
        other = int(source[index])
        shift = [
            int(torch.randint(-limit, limit + 1, (), generator=generator))
            for limit in (round(_MOVED * height), round(_MOVED * width))
        ]
        opacity = torch.roll(soft[other], shift, (1, 2))
        piece = torch.roll(pixels[other], shift, (1, 2))
        results.append(opacity * piece + (1 - opacity) * pixels[index])
        places.append((opacity > 0).to(pixels.dtype))
    return torch.stack(results), torch.stack(places)
