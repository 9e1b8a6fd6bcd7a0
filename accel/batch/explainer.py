"""Encoded images in, rows of the table out: what the loop on one machine and Ray both call."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ...contracts import Explanation, Uint8
from ...errors import ImageError, OutputError, UsageError
from ..bundle import Bundle, open_bundle, write_whole
from ..engine import Engine
from ..engines import open_engine
from ..image import load_resized
from ..machine import core_count
from ..manifest import Manifest
from ..pipeline import Loaded, PipelineConfig, answer_batch, in_groups, load_ahead, load_for, results_of
from ..results import Failure, ImageExplanation
from .sources import InMemory, Item, as_text
from .table import MASK_ENCODINGS, MaskEncoding, Row, encode_mask, record_batch, table_schema

__all__ = ["Answered", "BatchConfig", "BatchExplainer"]

_BATCHES_AHEAD = 4  # of images loaded and waiting for the engine, and of answers waiting to be encoded
_REMOTE_THREADS = 16
_STREAMS = 4  # batches at most in the engine at once; each holds the memory of one
_LONGEST_NAME = 200  # bytes; file systems allow 255


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """What is asked of every image, and how the machine is used.

    Attributes:
        pipeline: batch size, classes, masks and limits, see `PipelineConfig`; not its threads.
        mask: how masks are stored: ``"png"``, 8-bit greyscale; ``"uint8"`` or ``"float16"``, row after row as they are;
            ``"none"``: they are not computed.
        top: so many of the most probable classes.
        overlays: folder for pictures of the explanations; None draws none.
        decode_threads: threads that read and decode images; None takes one per core and at least 2, and 16 where images
            come through a network.
    """

    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    mask: MaskEncoding = "png"
    top: int = 5
    overlays: Path | None = None
    decode_threads: int | None = None

    def __post_init__(self) -> None:
        if self.mask not in MASK_ENCODINGS:
            raise UsageError(f"unknown encoding of masks '{self.mask}'; there are: {', '.join(MASK_ENCODINGS)}")
        if self.decode_threads is not None and self.decode_threads < 1:
            raise UsageError("there is at least one thread that reads images")
        if self.top < 1:
            raise UsageError("at least one class is stored with its probability")
        if self.pipeline.query is not None and self.pipeline.query.parts > 1:
            raise UsageError("the table holds one mask a row; several at once come from: saccade explain --several")
        if self.mask == "none" and (self.overlays or self.pipeline.query):
            raise UsageError("overlays, areas and sizes need masks; take another --mask than none")


@dataclass(frozen=True)
class Answered:
    """Rows of some images of one shard.

    Attributes:
        shard: its number.
        rows: the rows.
        images: how many images they are about.
        failures: key and reason of those that could not be explained.
        weight: what they count in progress.
    """

    shard: int
    rows: pa.RecordBatch
    images: int
    failures: Sequence[tuple[str, str]]
    weight: int


@dataclass(frozen=True)
class _Entry:
    """An image on its way, and what is known of it."""

    item: Item
    loaded: Loaded | Failure
    sha256: str | None = None
    size: tuple[int, int] | None = None


class BatchExplainer:
    """Explains encoded images with a bundle.

    As a callable it takes a batch as Ray Data and others hand it on, so that it fits ``Dataset.map_batches``; `stream`
    takes images as they come and keeps the engine busy meanwhile.

    Args:
        bundle: the bundle, its folder, or an engine that is open.
        config: what is asked.
        settings: of `open_engine`, which an open engine does not need.
    """

    def __init__(
        self, bundle: str | os.PathLike[str] | Bundle | Engine, config: BatchConfig = BatchConfig(), **settings: Any
    ) -> None:
        if isinstance(bundle, (str, os.PathLike)):
            bundle = open_bundle(Path(bundle))
        if isinstance(bundle, Bundle):
            large = bundle.manifest.any_size or bundle.manifest.splits  # of those one fills the memory
            bundle = open_engine(bundle, **{"streams": 1 if large else _STREAMS} | settings)
        self.engine: Engine = bundle
        self.config = config
        manifest = self.manifest
        query = config.pipeline.query
        self.schema = table_schema(
            self.engine.bundle,
            config.mask,
            (query and query.size) or manifest.mask_size,
            precision=self.engine.precision,
        )

    @property
    def manifest(self) -> Manifest:
        """Of the bundle."""
        return self.engine.bundle.manifest

    def __call__(self, batch: pa.Table | Mapping[str, Any]) -> pa.Table:
        """Rows for encoded images.

        Args:
            batch: columns ``bytes``, and ``key`` or ``path``; others are not looked at.

        Raises:
            UsageError: without these columns.
        """
        names = batch.column_names if isinstance(batch, pa.Table) else list(batch)
        keys = "key" if "key" in names else "path"
        if "bytes" not in names or keys not in names:
            raise UsageError(f"a batch has the columns 'bytes' and 'key' or 'path', not: {', '.join(names)}")
        contents, called = (_listed(batch[name]) for name in ("bytes", keys))
        items = (
            Item(0, as_text(str(key)), as_text(str(key)), InMemory(bytes(content or b"")))
            for key, content in zip(called, contents, strict=True)
        )
        return pa.Table.from_batches([answered.rows for answered in self.stream(items)], self.schema)

    def stream(self, items: Iterable[Item], *, remote: bool = False) -> Generator[Answered, None, None]:
        """Rows for images, in order and a batch at a time, loading, explaining and encoding side by side.

        Args:
            items: the images; those of one shard lie together.
            remote: reading one goes through a network.
        """
        pipeline, manifest = self.config.pipeline, self.manifest
        size = pipeline.batch_size or manifest.batch
        threads = self.config.decode_threads or (_REMOTE_THREADS if remote else max(2, core_count()))
        streams = self.engine.streams
        batches = 1 if manifest.any_size else _BATCHES_AHEAD  # such images wait at their own size
        loading = load_ahead(items, self._load, threads=threads, ahead=batches * size + 2 * threads)
        engine = ThreadPoolExecutor(streams, thread_name_prefix="saccade-engine")
        encoders = ThreadPoolExecutor(max(2, core_count()), thread_name_prefix="saccade-encode")

        def explained(group: list[_Entry]) -> Future[list[Answered]]:
            answer = self._answer(group)
            return encoders.submit(self._encode, group, answer)

        running: deque[Future[Future[list[Answered]]]] = deque()
        try:
            with closing(loading):
                for group in in_groups(loading, _shape, size):
                    running.append(engine.submit(explained, group))
                    while len(running) >= batches + streams or (
                        running and running[0].done() and running[0].result().done()
                    ):
                        yield from running.popleft().result().result()
                while running:
                    yield from running.popleft().result().result()
        finally:
            engine.shutdown(wait=False, cancel_futures=True)
            encoders.shutdown(wait=False, cancel_futures=True)

    def _load(self, item: Item) -> _Entry:
        try:
            content = item.read()
        except ImageError as error:
            return _Entry(item, Failure(item.key, str(error)))
        digest, limit = hashlib.sha256(content).hexdigest(), self.config.pipeline.max_pixels
        if self.config.overlays or self.manifest.any_size:
            loaded = load_for(self.manifest, content, item.key, limit)
            return _Entry(item, loaded, digest, None if isinstance(loaded, Failure) else loaded.image.shape[:2])
        try:
            pixels, size = load_resized(content, self.manifest.image, max_pixels=limit, name=item.key)
        except ImageError as error:
            return _Entry(item, Failure(item.key, str(error)), digest)
        return _Entry(item, Loaded(item.key, pixels, pixels), digest, size)

    def _answer(self, group: Sequence[_Entry]) -> Explanation | None:
        """The engine's answer for those of a group that could be loaded."""
        batch = [entry.loaded for entry in group if isinstance(entry.loaded, Loaded)]
        if not batch:
            return None
        if self.config.mask == "none":
            return self._predicted(np.stack([one.pixels for one in batch]))
        answer, _ = answer_batch(self.engine, batch, self.config.pipeline)
        return answer

    def _predicted(self, images: Uint8) -> Explanation:
        """Probabilities alone, as an explanation whose masks are not there."""
        targets = np.array(self.config.pipeline.targets)
        probabilities = self.engine.probabilities(images)
        predicted = probabilities.argmax(1)
        chosen = np.where(targets < 0, predicted[:, None], targets).astype(np.int64)
        areas = max(1, len(self.manifest.areas))
        empty = np.zeros((len(images), len(targets) * areas, 1, 1), np.float32)
        return Explanation(probabilities, chosen if len(targets) > 1 else chosen[:, 0], empty)

    def _encode(self, group: Sequence[_Entry], answer: Explanation | None) -> list[Answered]:
        """The rows of a group, by shard."""
        results: Iterator[list[ImageExplanation]] = iter(())
        if answer is not None:
            batch = [entry.loaded for entry in group if isinstance(entry.loaded, Loaded)]
            results = results_of(self.manifest, batch, answer, self.config.pipeline, None)
        found = []
        for shard, entries in groupby(group, lambda entry: entry.item.shard):
            rows: list[Row] = []
            failures: list[tuple[str, str]] = []
            images = weight = 0
            for entry in entries:
                images, weight = images + 1, weight + entry.item.weight
                if isinstance(entry.loaded, Failure):
                    rows.append(_row(entry, error=entry.loaded.reason))
                    failures.append((entry.item.key, entry.loaded.reason))
                    continue
                answers = next(results)
                if self.config.mask == "none":
                    answers = answers[:: max(1, len(self.manifest.areas))]
                endings = _endings([result.variant for result in answers])
                for result, ending in zip(answers, endings, strict=True):
                    rows.append(_row(entry, result=result, mask=encode_mask(result.mask, self.config.mask)))
                    self._draw(entry.item.key, result, ending)
            batch_rows = record_batch(rows, self.schema, self.config.top)
            found.append(Answered(shard, batch_rows, images, failures, weight))
        return found

    def _draw(self, key: str, result: ImageExplanation, ending: str) -> None:
        """Write the picture of an explanation, under its image's key."""
        if self.config.overlays is None:
            return
        stream = io.BytesIO()
        result.overlay().save(stream, "PNG", compress_level=1)
        path = self.config.overlays / _picture_name(key, ending)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, stream.getvalue())
        except OSError as error:
            raise OutputError(f"cannot write '{path}': {error.strerror or error}") from None


def _shape(entry: _Entry) -> tuple[int, ...] | None:
    return entry.loaded.pixels.shape if isinstance(entry.loaded, Loaded) else None


def _row(entry: _Entry, **answer: Any) -> Row:
    return Row(key=entry.item.key, id=entry.item.id, sha256=entry.sha256, size=entry.size, **answer)


def _listed(column: Any) -> list[Any]:
    """A column of Arrow, of numpy or of Python as a list."""
    if isinstance(column, (pa.Array, pa.ChunkedArray)):
        listed: list[Any] = column.to_pylist()
        return listed
    return list(column)


def _endings(variants: Sequence[str]) -> list[str]:
    """What tells the pictures of one image apart: class and area, and where these read alike their number."""
    words = ["." + re.sub(r"[^\w-]+", "-", variant) if variant else "" for variant in variants]
    return [word if words.count(word) == 1 else f"{word}.{number}" for number, word in enumerate(words, 1)]


def _picture_name(key: str, ending: str) -> Path:
    """The path of a picture below the folder of pictures: never outside of it, never longer than file systems allow.

    Where that takes a change of the key, a digest of it keeps its picture apart from others'.
    """
    parts = [part for part in re.split(r"[\\/]", key) if part not in ("", ".", "..")] or ["image"]
    suffix = ".overlay.png"
    name, room = parts[-1] + ending, _LONGEST_NAME - len(suffix)
    cut = [_shortened(part, _LONGEST_NAME) for part in parts[:-1]] + [_shortened(name, room)]
    if "/".join(cut) != key + ending:
        digest = hashlib.sha256(f"{key}\0{ending}".encode()).hexdigest()[:12]
        cut[-1] = f"{_shortened(name, room - 13)}-{digest}"
    cut[-1] += suffix
    return Path(*cut)


def _shortened(name: str, most: int) -> str:
    return name.replace("\0", "_").encode()[:most].decode(errors="ignore")
