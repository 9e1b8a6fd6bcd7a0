"""Images for commands that explain in PyTorch: one after the other; those that cannot be read are passed on as such."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from ..accel.image import ImageSource, load_image, resize_image, source_name
from ..accel.results import Failure, ImageExplanation
from ..contracts import ImageSpec, Uint8
from ..errors import ImageError, ModelError, OutOfMemory

__all__ = ["Answers", "LoadedImage", "chunks", "explained", "loaded"]

Answers = list[ImageExplanation | Failure]
"""The explanations of one image."""


class LoadedImage(NamedTuple):
    """An image twice: as it is, and as the model takes it."""

    name: str
    whole: Uint8
    input: Uint8


def loaded(files: Sequence[ImageSource], spec: ImageSpec, max_pixels: int) -> Iterator[LoadedImage | Failure]:
    """The images of some files, in their order."""
    for file in files:
        try:
            image = load_image(file, max_pixels=max_pixels)
        except ImageError as error:
            yield Failure(source_name(file), str(error))
            continue
        yield LoadedImage(source_name(file), image, resize_image(image, spec))


def chunks(work: Iterable[LoadedImage | Failure], size: int) -> Iterator[list[LoadedImage | Failure]]:
    """So many at a time."""
    waiting = iter(work)
    while chunk := list(itertools.islice(waiting, size)):
        yield chunk


def explained(
    explain: Callable[[Sequence[LoadedImage]], list[Answers]], images: Sequence[LoadedImage], doing: str
) -> list[Answers]:
    """Each image's explanations; one whose optimisation breaks off alone does not stop the others.

    Args:
        explain: explains images together.
        images: any number.
        doing: in messages, as "fine-tuning".

    Raises:
        OutOfMemory: with the batch size to try.
    """
    if not images:
        return []
    try:
        return explain(images)
    except ModelError as error:
        if len(images) == 1:
            return [[Failure(images[0].name, f"{images[0].name}: {error}")]]
        return [found for image in images for found in explained(explain, [image], doing)]
    except RuntimeError as error:
        if "memory" not in str(error).lower():
            raise
        advice = f"try --batch-size {max(1, len(images) // 4)}" if len(images) > 1 else "use a smaller model"
        raise OutOfMemory(f"{doing} {len(images)} images at once does not fit into memory; {advice}") from None
