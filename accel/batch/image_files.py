"""Images that are files of their own."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator

import pyarrow as pa

from .patience import PatientFiles
from .sources import Fingerprint, Item, Shard, as_text, numbered_shards

__all__ = ["ImageFiles"]

_BLOCK = 65536


class ImageFiles:
    """Image files, listed in order and held as one Arrow array of names.

    Args:
        storage: where they lie.
        root: what their paths begin with.
        files: the rest of each path, and the size.
        shard_size: images of a shard.
        limit: the first so many only.
    """

    kind = "images"

    def __init__(
        self, storage: PatientFiles, root: str, files: Iterable[tuple[str, int]], shard_size: int, limit: int | None
    ) -> None:
        self.remote = storage.remote
        self._storage, self._root = storage, root
        found, blocks, block, count = Fingerprint(self.kind), [], list[bytes](), 0
        for name, size in files:
            if count == limit:
                break
            count += 1
            found.add(name, size)
            block.append(os.fsencode(name))
            if len(block) == _BLOCK:
                blocks.append(pa.array(block, pa.large_binary()))
                block = []
        self._names = pa.chunked_array([*blocks, pa.array(block, pa.large_binary())])
        self.fingerprint, self.described = found.value, f"{count:,} images"
        self.shards = numbered_shards(count, shard_size)

    def items(self, shard: Shard) -> Iterator[Item]:
        """See `Source`."""
        for name in self._names.slice(shard.start, shard.stop - shard.start).to_pylist():
            path = os.fsdecode(name)
            key = as_text(path)
            yield Item(shard.number, key, key, functools.partial(self._storage.read, self._root + path))
