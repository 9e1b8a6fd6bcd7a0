"""Images in, explanations out: threads load and resize the next images while the engine runs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from ..contracts import Uint8
from ..errors import ImageError, UsageError
from .engine import Engine
from .image import MAX_PIXELS, ImageSource, load_image, resize_image, source_name
from .results import Failure, ImageExplanation

__all__ = ["PipelineConfig", "explain_images"]


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """How images are fed to the engine.

    Attributes:
        batch_size: images that go through the engine together; None takes the bundle's own.
        target: class index to explain for every image; -1 for the predicted class.
        decode_threads: threads that load images.
        max_pixels: an image with more is refused.
    """

    batch_size: int | None = None
    target: int = -1
    decode_threads: int = 2
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
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
            yield from _explain_batch(engine, waiting, config.target)
            waiting = []
            continue
        if waiting:
            yield from _explain_batch(engine, waiting, config.target)
            waiting = []
        if isinstance(item, Failure):
            yield item
        else:
            waiting = [item]
    if waiting:
        yield from _explain_batch(engine, waiting, config.target)


def _explain_batch(engine: Engine, batch: list[_Loaded], target: int) -> Iterator[ImageExplanation]:
    manifest = engine.bundle.manifest
    began = time.perf_counter()
    answer = engine.run(np.stack([item.pixels for item in batch]), target)
    milliseconds = (time.perf_counter() - began) * 1e3 / len(batch)
    for index, item in enumerate(batch):
        yield ImageExplanation(
            source=item.source,
            image=item.image,
            probabilities=answer.probabilities[index],
            target=int(answer.target[index]),
            class_names=manifest.class_names,
            mask=answer.mask[index, 0],
            spec=manifest.image,
            class_specific=manifest.class_specific,
            milliseconds=milliseconds,
            diagnostics={name: float(values[index]) for name, values in answer.diagnostics.items()},
        )


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
