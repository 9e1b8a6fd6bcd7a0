"""Images for commands that explain in PyTorch: one after the other; those that cannot be read are passed on as such."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ..accel.image import ImageSource, load_image, resize_image, source_name
from ..accel.results import Failure
from ..contracts import ImageSpec, Uint8
from ..errors import ImageError

__all__ = ["LoadedImage", "chunks", "loaded"]


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
