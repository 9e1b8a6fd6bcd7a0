"""Parquet files with encoded images in a column, as bytes or as a struct that holds them in ``bytes``."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import ImageError, UsageError
from .patience import PatientFiles
from .sources import Container, Failing, Fingerprint, InMemory, Item, Shard, as_text, numbered_shards
from .storage import Settled

__all__ = ["ParquetFiles"]

_ROWS = 64  # read at once


class ParquetFiles:
    """Rows of Parquet files, numbered through all of them; an image is called by its file and row.

    Args:
        storage: where they lie.
        containers: the files.
        shard_size: images of a shard, which may span files.
        limit: the first so many rows only.
        image_column: the column of images; None finds it.
        id_column: the column with the images' own names, or None.

    Raises:
        ImageError: a file that cannot be read.
        UsageError: a column that is not there, or none that holds images.
    """

    kind = "parquet"

    def __init__(
        self,
        storage: PatientFiles,
        containers: Sequence[Container],
        shard_size: int,
        limit: int | None,
        image_column: str | None,
        id_column: str | None,
    ) -> None:
        self.remote = storage.remote
        self._storage, self._containers, self._id = storage, list(containers), id_column
        found, counts = Fingerprint(self.kind), []
        self._image = ""
        for one in self._containers:
            found.add(one.name, one.size)
            with self._open(one) as file:
                schema = file.schema_arrow
                self._image = _image_column(schema, self._image or image_column, one.path)
                for column in filter(None, (self._image, id_column)):
                    if column not in schema.names:
                        raise UsageError(f"'{one.path}' has no column '{column}', but {', '.join(schema.names)}")
                counts.append(file.metadata.num_rows)
        self._starts = [0, *accumulate(counts)]
        total = self._starts[-1] if limit is None else min(limit, self._starts[-1])
        if total == 0:
            raise ImageError(f"there are no rows in '{self._containers[0].path}'" + (" …" if len(counts) > 1 else ""))
        self.fingerprint = found.value
        self.shards = numbered_shards(total, shard_size)
        self.described = f"{total:,} rows of {len(counts):,} Parquet file{'s' if len(counts) != 1 else ''}"

    def items(self, shard: Shard) -> Iterator[Item]:
        """See `Source`."""
        row = shard.start
        while row < shard.stop:
            index = bisect_right(self._starts, row) - 1
            first, end = row - self._starts[index], min(shard.stop, self._starts[index + 1]) - self._starts[index]
            yield from self._rows(shard.number, self._containers[index], first, end)
            row = self._starts[index] + end

    def _rows(self, shard: int, container: Container, first: int, end: int) -> Iterator[Item]:
        name, row, tried = as_text(container.name), first, 0
        while row < end:
            try:
                with self._open(container) as file:
                    for images, ids in _read(file, self._image, self._id, row, end):
                        for content, own in zip(images, ids, strict=True):
                            missing = f"row {row} of '{container.path}' has no image"
                            read = InMemory(content) if content else Failing(missing)
                            yield Item(shard, f"{name}#{row}", None if own is None else str(own), read)
                            row += 1
                if row < end:
                    raise Settled(f"'{container.path}' has become shorter")
                self._storage.worked()
            except (ImageError, pa.ArrowException, OSError, ValueError) as error:
                if isinstance(error, ImageError) and self._storage.again(error, tried):
                    tried += 1
                    continue
                reason = str(error).splitlines()[0]
                while row < end:
                    yield Item(shard, f"{name}#{row}", None, Failing(f"row {row} of '{container.path}': {reason}"))
                    row += 1

    @contextmanager
    def _open(self, container: Container) -> Iterator[Any]:
        with self._storage.open(container.path) as stream:
            try:
                file = pq.ParquetFile(stream)
                _ = file.schema_arrow.names
            except (pa.ArrowException, OSError, ValueError) as error:  # the last of names that are not UTF-8
                reason = str(error).splitlines()[0]
                raise Settled(f"'{container.path}' is not a Parquet file that can be read: {reason}") from None
            with file:
                yield file


def _read(file: Any, image: str, own: str | None, first: int, end: int) -> Iterator[tuple[list[Any], list[Any]]]:
    """Encoded images and names of some rows; row groups before them are not read."""
    columns = [image, *([own] if own and own != image else [])]
    before, groups, skip = 0, list[int](), 0
    for group in range(file.metadata.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if before + count > first and before < end:
            if not groups:
                skip = first - before
            groups.append(group)
        before += count
    wanted = end - first
    for batch in file.iter_batches(batch_size=_ROWS, row_groups=groups, columns=columns):
        taken = batch.slice(skip, wanted)
        skip -= min(skip, batch.num_rows)
        if not taken.num_rows:
            continue
        wanted -= taken.num_rows
        column = taken.column(image)
        if pa.types.is_struct(column.type):
            column = column.field("bytes")
        names = taken.column(own).to_pylist() if own else [None] * taken.num_rows
        yield column.to_pylist(), names
        if not wanted:
            return


def _image_column(schema: pa.Schema, asked: str | None, path: str) -> str:
    """The column that holds encoded images."""
    fitting = [field.name for field in schema if _holds_bytes(field.type)]
    if asked is not None:
        if asked in schema.names and asked not in fitting:
            kind = schema.field(asked).type
            raise UsageError(f"the column '{asked}' of '{path}' holds {kind}, not encoded images as bytes")
        return asked
    if not fitting:
        raise UsageError(f"'{path}' has no column of bytes, but {', '.join(schema.names)}; images are stored encoded")
    if len(fitting) > 1 and "image" not in fitting:
        raise UsageError(
            f"'{path}' has several columns of bytes ({', '.join(fitting)}); name the images' with --image-column"
        )
    return "image" if "image" in fitting else fitting[0]


def _holds_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))
