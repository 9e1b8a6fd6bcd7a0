"""Images in, explanations out: threads load and resize the next images while the engine runs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np

from ..contracts import Explanation, MaskQuery, Uint8
from ..errors import ImageError, UsageError
from .engine import Engine
from .image import MAX_PIXELS, ImageSource, load_image, resize_image, source_name
from .manifest import Manifest
from .results import Failure, ImageExplanation, together

__all__ = [
    "Loaded",
    "PipelineConfig",
    "answer_batch",
    "explain_images",
    "in_groups",
    "load_ahead",
    "load_for",
    "results_of",
]

T = TypeVar("T")
L = TypeVar("L")
_MOST_FAILURES = 64  # in one group, so that results do not wait for an image that can be read


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """How images are fed to the engine.

    Attributes:
        batch_size: images that go through the engine together; None takes the bundle's own.
        targets: class indices to explain for every image, each an answer of its own; -1 for the predicted class.
        query: which masks of a bundle that holds them as functions, each an answer of its own; None for its own areas.
        decode_threads: threads that load images.
        max_pixels: an image with more is refused.
    """

    batch_size: int | None = None
    targets: tuple[int, ...] = (-1,)
    query: MaskQuery | None = None
    decode_threads: int = 2
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if not self.targets:
            raise UsageError("there is at least one target class; -1 is the predicted one")
        if (self.batch_size is not None and self.batch_size < 1) or self.decode_threads < 1:
            raise UsageError("batch size and decode threads are at least 1")


@dataclass(frozen=True)
class Loaded:
    """An image on its way to the engine.

    Attributes:
        source: where it came from, as given.
        image: as loaded, (H, W, 3).
        pixels: what the engine gets.
    """

    source: str
    image: Uint8
    pixels: Uint8


def explain_images(
    engine: Engine, sources: Iterable[ImageSource], config: PipelineConfig = PipelineConfig()
) -> Iterator[ImageExplanation | Failure]:
    """Explain images of any number, in order, holding a few batches in memory at a time.

    An image that cannot be read becomes a `Failure` in its place; the others go on.

    Args:
        engine: runs the bundle.
        sources: paths, encoded bytes, PIL images or uint8 arrays (H, W, 3); read as they are needed.
        config: batch size, classes, masks, limits.

    Yields:
        For each image an answer, or so many as there are classes and areas; or one `Failure`.

    Raises:
        UsageError: a class or masks that the bundle does not have.
        OutOfMemory: a batch does not fit.
    """
    size = config.batch_size or engine.bundle.manifest.batch

    def load(source: ImageSource) -> Loaded | Failure:
        return load_for(engine.bundle.manifest, source, source_name(source), config.max_pixels)

    def shape(item: Loaded | Failure) -> tuple[int, ...] | None:
        return item.pixels.shape if isinstance(item, Loaded) else None

    loaded = load_ahead(sources, load, threads=config.decode_threads, ahead=size + 2 * config.decode_threads)
    with closing(loaded):
        for group in in_groups(loaded, shape, size):
            batch = [item for item in group if isinstance(item, Loaded)]
            answered: Iterator[list[ImageExplanation]] = iter(())
            if batch:
                answer, milliseconds = answer_batch(engine, batch, config)
                answered = results_of(engine.bundle.manifest, batch, answer, config, milliseconds)
            for item in group:
                if isinstance(item, Failure):
                    yield item
                else:
                    yield from next(answered)


def load_for(manifest: Manifest, source: ImageSource, name: str, max_pixels: int = MAX_PIXELS) -> Loaded | Failure:
    """Load an image as an explainer takes it, or say why that cannot be.

    Args:
        manifest: of the explainer's bundle.
        source: the image.
        name: what results call it.
        max_pixels: a larger image is refused.
    """
    try:
        image = load_image(source, max_pixels=max_pixels, name=name)
    except ImageError as error:
        return Failure(name, str(error))
    return Loaded(name, image, image if manifest.any_size else resize_image(image, manifest.image))


def load_ahead(items: Iterable[T], load: Callable[[T], L], *, threads: int, ahead: int) -> Generator[L, None, None]:
    """Load items in threads, at most so many ahead of the one that is asked for, and give them in order."""
    remaining = iter(items)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="saccade-load")
    try:
        waiting: deque[Future[L]] = deque(pool.submit(load, item) for item in islice(remaining, ahead))
        while waiting:
            done = waiting.popleft().result()
            waiting.extend(pool.submit(load, item) for item in islice(remaining, 1))
            yield done
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def in_groups(items: Iterable[L], shape: Callable[[L], Hashable | None], size: int) -> Iterator[list[L]]:
    """Consecutive items of one shape, so many in a group; those without a shape lie between them and do not count."""
    group: list[L] = []
    count, current = 0, None
    for item in items:
        found = shape(item)
        if group and ((found is not None and count and found != current) or len(group) - count > _MOST_FAILURES):
            yield group
            group, count = [], 0
        group.append(item)
        if found is not None:
            count, current = count + 1, found
        if count == size:
            yield group
            group, count = [], 0
    if group:
        yield group


def answer_batch(engine: Engine, batch: Sequence[Loaded], config: PipelineConfig) -> tuple[Explanation, float]:
    """The engine's answer for loaded images of one size, and the milliseconds for one class of one image."""
    began = time.perf_counter()
    images, targets = np.stack([item.pixels for item in batch]), config.targets
    one = len(targets) == 1
    asked = targets[0] if one else np.tile(np.array(targets, dtype=np.int64), (len(batch), 1))
    answer = engine.run(images, asked, config.query)
    return answer, (time.perf_counter() - began) * 1e3 / (len(batch) * len(targets))


def results_of(
    manifest: Manifest,
    batch: Sequence[Loaded],
    answer: Explanation,
    config: PipelineConfig,
    milliseconds: float | None = None,
) -> Iterator[list[ImageExplanation]]:
    """An engine's answer image by image, each image's explanations by class and then by area.

    `milliseconds` is what one of them took, where that was measured.
    """
    targets = config.targets
    one, kinds = len(targets) == 1, _kinds(manifest, config.query)
    masks = answer.mask.reshape(len(batch), len(targets), len(kinds), *answer.mask.shape[2:])
    for index, item in enumerate(batch):
        found: list[ImageExplanation] = []
        probabilities = answer.probabilities[index]
        for place in range(len(targets)):
            here = (index,) if one else (index, place)
            name = "" if one else manifest.class_names[int(answer.target[here])]
            results = [
                ImageExplanation(
                    source=item.source,
                    image=item.image,
                    probabilities=probabilities,
                    target=int(answer.target[here]),
                    class_names=manifest.class_names,
                    mask=mask,
                    spec=manifest.image,
                    class_specific=manifest.class_specific,
                    milliseconds=milliseconds,
                    box=(config.query or MaskQuery()).box,
                    diagnostics={key: float(values[here]) for key, values in answer.diagnostics.items()} | numbers,
                    variant=".".join(part for part in (name, kind) if part),
                )
                for mask, (kind, numbers) in zip(masks[index, place], kinds, strict=True)
            ]
            found += results
            if config.query and config.query.parts > 1:
                found.append(together(results, name))
        yield found


def _kinds(manifest: Manifest, query: MaskQuery | None) -> list[tuple[str, dict[str, float]]]:
    """Name and numbers of each mask that is given for one class of one image."""
    if not manifest.areas:
        return [("", {})]
    areas = (query.areas if query else ()) or manifest.areas
    if query and query.parts:
        return [(f"mask {place + 1}", {"asked_area": areas[0]}) for place in range(query.parts)]
    return [(f"{area:.3g}", {"asked_area": area}) for area in areas]
