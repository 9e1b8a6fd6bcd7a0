"""Images in, explanations out: threads load and resize the next images while the engine runs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from ..contracts import MaskQuery, Uint8
from ..errors import ImageError, UsageError
from .engine import Engine
from .image import MAX_PIXELS, ImageSource, load_image, resize_image, source_name
from .manifest import Manifest
from .results import Failure, ImageExplanation, together

__all__ = ["PipelineConfig", "explain_images"]


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
class _Loaded:
    source: str
    image: Uint8
    pixels: Uint8  # what the engine gets


def explain_images(
    engine: Engine, sources: Iterable[ImageSource], config: PipelineConfig = PipelineConfig()
) -> Iterator[ImageExplanation | Failure]:
    """Explain images of any number, in order, holding a few batches in memory at a time.

    An image that cannot be read becomes a `Failure` in its place; the others go on.
    """
    size = config.batch_size or engine.bundle.manifest.batch
    waiting: list[_Loaded] = []
    for item in _load_ahead(engine, sources, config, size):
        if isinstance(item, _Loaded) and (not waiting or item.pixels.shape == waiting[0].pixels.shape):
            waiting.append(item)
            if len(waiting) < size:
                continue
            yield from _explain_batch(engine, waiting, config)
            waiting = []
            continue
        if waiting:
            yield from _explain_batch(engine, waiting, config)
            waiting = []
        if isinstance(item, Failure):
            yield item
        else:
            waiting = [item]
    if waiting:
        yield from _explain_batch(engine, waiting, config)


def _explain_batch(engine: Engine, batch: list[_Loaded], config: PipelineConfig) -> Iterator[ImageExplanation]:
    manifest, targets = engine.bundle.manifest, config.targets
    began = time.perf_counter()
    images = np.stack([item.pixels for item in batch])
    one = len(targets) == 1
    asked = targets[0] if one else np.tile(np.array(targets, dtype=np.int64), (len(batch), 1))
    answer = engine.run(images, asked, config.query)
    milliseconds = (time.perf_counter() - began) * 1e3 / (len(batch) * len(targets))
    kinds = _kinds(manifest, config.query)
    masks = answer.mask.reshape(len(batch), len(targets), len(kinds), *answer.mask.shape[2:])
    for index, item in enumerate(batch):
        for place in range(len(targets)):
            here = (index,) if one else (index, place)
            name = "" if one else manifest.class_names[int(answer.target[here])]
            results = [
                ImageExplanation(
                    source=item.source,
                    image=item.image,
                    probabilities=answer.probabilities[index],
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
            yield from results
            if config.query and config.query.parts > 1:
                yield together(results, name)


def _kinds(manifest: Manifest, query: MaskQuery | None) -> list[tuple[str, dict[str, float]]]:
    """Name and numbers of each mask that is given for one class of one image."""
    if not manifest.areas:
        return [("", {})]
    areas = (query.areas if query else ()) or manifest.areas
    if query and query.parts:
        return [(f"mask {place + 1}", {"asked_area": areas[0]}) for place in range(query.parts)]
    return [(f"{area:.3g}", {"asked_area": area}) for area in areas]


def _load_ahead(
    engine: Engine, sources: Iterable[ImageSource], config: PipelineConfig, size: int
) -> Iterator[_Loaded | Failure]:
    spec = None if engine.bundle.manifest.any_size else engine.bundle.manifest.image

    def load(source: ImageSource) -> _Loaded | Failure:
        try:
            image = load_image(source, max_pixels=config.max_pixels)
        except ImageError as error:
            return Failure(source_name(source), str(error))
        return _Loaded(source_name(source), image, image if spec is None else resize_image(image, spec))

    remaining = iter(sources)
    pool = ThreadPoolExecutor(config.decode_threads, thread_name_prefix="saccade-load")
    try:
        ahead: deque[Future[_Loaded | Failure]] = deque(
            pool.submit(load, source) for source in islice(remaining, size + 2 * config.decode_threads)
        )
        while ahead:
            done = ahead.popleft().result()
            ahead.extend(pool.submit(load, source) for source in islice(remaining, 1))
            yield done
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
