"""Training images, by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

from ...contracts import Uint8

__all__ = ["ImageStream", "NamedStream", "digest_of", "names_of", "prefetched"]

ImageStream = Callable[[int], Uint8]
"""From a step to that step's images, uint8 (B, H, W, 3) at the model's size. A pure function of the step, so that an
interrupted training goes on as if nothing had happened."""

_AHEAD = 3  # steps whose images are made before they are needed


@runtime_checkable
class NamedStream(Protocol):
    """A stream that also knows its images' names, and makes a part of a step's images without the others.

    Attributes:
        digest: the same for the same images in the same order; a training resumes with no others.
    """

    digest: str

    def __call__(self, step: int) -> Uint8:
        """The images of a step, uint8 (B, H, W, 3)."""

    def part(self, step: int, part: slice) -> Uint8:
        """Equal to ``self(step)[part]``."""

    def names(self, step: int) -> Sequence[str]:
        """One name per image of a step, for messages."""


def names_of(images: ImageStream, step: int, count: int) -> Sequence[str]:
    """Names of the images of a step; their places in the batch where the stream knows none."""
    return images.names(step) if isinstance(images, NamedStream) else [f"image {place}" for place in range(count)]


def digest_of(images: ImageStream) -> str:
    """The stream's digest, empty where it has none."""
    return images.digest if isinstance(images, NamedStream) else ""


def prefetched(images: ImageStream, first: int, steps: int, part: slice) -> Iterator[tuple[int, Uint8]]:
    """Steps with a part of their images, the next ones being made in a thread meanwhile."""

    def make(step: int) -> Uint8:
        return images.part(step, part) if isinstance(images, NamedStream) else images(step)[part]

    with ThreadPoolExecutor(1, thread_name_prefix="saccade-images") as pool:
        ahead = [pool.submit(make, step) for step in range(first, min(first + _AHEAD, steps))]
        try:
            for step in range(first, steps):
                done = ahead.pop(0)
                if step + _AHEAD < steps:
                    ahead.append(pool.submit(make, step + _AHEAD))
                yield step, done.result()
        finally:
            for waiting in ahead:
                waiting.cancel()
