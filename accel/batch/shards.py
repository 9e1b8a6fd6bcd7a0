"""The ledger of a folder of results: a shard is finished when its file exists, and a file exists only when it is whole.

DST/shard-00000.parquet …      finished shards
DST/_saccade/plan.json         what was asked of which images with which bundle
DST/_saccade/locks             held by the runs at work, byte by byte: one for each shard
DST/_saccade/*.partial         shards that are being written, or that a killed run left
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from ...errors import OutputError, UsageError
from ..bundle import sync_folder, write_whole
from .explainer import Answered
from .plan import Plan, read_plan
from .shard_locks import ShardLocks
from .sources import Shard

__all__ = ["Ledger", "ShardWriter", "Tally", "Writing"]

_ASIDE = "_saccade"
_SHARD = re.compile(r"shard-(\d{5,})\.parquet")
_GROUP_ROWS = 512
_GROUP_BYTES = 32 << 20
_WAITING = 64  # batches that wait for the disk
_PLAIN = ("key", "id", "sha256", "mask", "error")  # columns whose values hardly repeat


@dataclass(frozen=True)
class Tally:
    """What finished shards hold.

    Attributes:
        shards: how many are finished.
        images: in them.
        failed: images that could not be explained.
        rows: lines of their tables.
    """

    shards: int = 0
    images: int = 0
    failed: int = 0
    rows: int = 0


class Ledger:
    """A folder of results that runs of one plan share.

    Args:
        folder: made if it is not there.
        plan: of this run.
        restart: remove what is there of another plan, or of the same.

    Raises:
        UsageError: the folder was begun with another plan, or belongs to something else.
        OutputError: it cannot be written, or another run is at work where `restart` would remove its results.
    """

    def __init__(self, folder: str | os.PathLike[str], plan: Plan, *, restart: bool = False) -> None:
        self.folder, self.plan = Path(folder), plan
        self._aside = self.folder / _ASIDE
        self._again: set[int] = set()
        with self._writing():
            self._aside.mkdir(parents=True, exist_ok=True)
        self._locks = ShardLocks(self._aside / "locks")
        file = self._aside / "plan.json"
        try:
            with self._writing(), self._locks.planning():
                others = (path for path in self.folder.glob("*.parquet") if not (file.exists() and _is_shard(path)))
                if other := next(others, None):
                    raise UsageError(f"'{folder}' holds '{other.name}' of something else; write into another folder")
                if restart:
                    self._remove_all()
                if file.exists() and not restart:
                    read_plan(file).refuse_other(plan, self.folder)
                else:
                    write_whole(file, plan.as_json(), sync=True)
        except BaseException:
            self._locks.close()
            raise

    def close(self) -> None:
        """Let other runs have what this one has claimed."""
        self._locks.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def path(self, number: int) -> Path:
        """Where a shard's table goes."""
        return self.folder / f"shard-{number:05d}.parquet"

    def finished(self, number: int) -> bool:
        """The shard's table is there."""
        return self.path(number).exists()

    def to_do(self, number: int) -> bool:
        """The shard is not finished, or to be done again."""
        return number in self._again or not self.finished(number)

    def claim(self, number: int) -> bool:
        """Take a shard that is to be done and that no other run has; what a killed run left of it is removed."""
        if not self.to_do(number) or not self._locks.take(number):
            return False
        if not self.to_do(number):  # since then
            self._locks.release(number)
            return False
        self._again.discard(number)
        with self._writing():
            for left in self._aside.glob(f"{self.path(number).name}.*.partial"):
                left.unlink(missing_ok=True)
        return True

    def release(self, number: int) -> None:
        """Leave a shard to others."""
        self._locks.release(number)

    def partial(self, number: int) -> Path:
        """Where a shard is written until it is whole."""
        return self._aside / f"{self.path(number).name}.{socket.gethostname()}-{os.getpid()}.partial"

    def tally(self, shards: list[Shard]) -> Tally:
        """Count what is finished of these."""
        count = images = failed = rows = 0
        for shard in shards:
            if not self.finished(shard.number):
                continue
            about = self._about(shard.number)
            count, rows = count + 1, rows + about.num_rows
            images += int(about.metadata[b"saccade.images"])
            failed += int(about.metadata[b"saccade.failed"])
        return Tally(count, images, failed, rows)

    def failures(self, shards: list[Shard]) -> Iterator[tuple[str, str]]:
        """Key and reason of every image in finished shards that could not be explained, in order."""
        for shard in shards:
            if not self.finished(shard.number) or not int(self._about(shard.number).metadata[b"saccade.failed"]):
                continue
            table = pq.read_table(self.path(shard.number), columns=["key", "error"], partitioning=None)
            for row in table.filter(pyarrow.compute.is_valid(table["error"])).to_pylist():
                yield row["key"], row["error"]

    def do_failed_again(self, shards: list[Shard]) -> None:
        """Finished shards with images that could not be explained are to be done; until they are, they stay."""
        for shard in shards:
            if self.finished(shard.number) and int(self._about(shard.number).metadata[b"saccade.failed"]):
                self._again.add(shard.number)

    def _about(self, number: int) -> Any:
        """The footer of a finished shard."""
        path = self.path(number)
        try:
            about = pq.read_metadata(path)
            if not {b"saccade.images", b"saccade.failed"} <= set(about.metadata or ()):
                raise ValueError("it is a table of something else")
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise OutputError(
                f"the finished shard '{path}' cannot be read: {reason}; remove it, and the next run makes it again"
            ) from None
        return about

    def _remove_all(self) -> None:
        """Remove all results; until another takes its place the plan stays, which says whose they are."""
        if not self._locks.alone():
            raise OutputError(f"another run is at work on '{self.folder}'; stop it before a --restart")
        for path in [*filter(_is_shard, self.folder.iterdir()), *self._aside.glob("*.partial")]:
            path.unlink()
        sync_folder(self.folder)

    def _writing(self) -> _Errors:
        return _Errors(self.folder)


class _Errors:
    """What the disk says against writing, as an `OutputError`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            raise OutputError(
                f"cannot write into '{self._folder}': {error.strerror or error}; what is finished there stays, and the "
                "same command goes on"
            ) from None


def _is_shard(path: Path) -> bool:
    return _SHARD.fullmatch(path.name) is not None


class ShardWriter:
    """Writes the table of one shard, which appears as a whole or not at all."""

    def __init__(self, ledger: Ledger, shard: Shard, schema: pa.Schema) -> None:
        self._ledger, self._shard, self._schema = ledger, shard, schema
        self._batches: list[pa.RecordBatch] = []
        self._rows = self._bytes = self._images = self._failed = 0
        self._path = ledger.partial(shard.number)
        self._stream = self._path.open("wb")
        encoded = schema.metadata[b"saccade.mask_encoding"] == b"png"
        leaves = _leaves(schema)
        self._writer = pq.ParquetWriter(
            self._stream,
            schema,
            compression={name: "none" if name == "mask" and encoded else "zstd" for name in leaves},
            use_dictionary=[name for name in leaves if name not in _PLAIN],
            write_statistics=[name for name in leaves if name != "mask"],
        )

    def add(self, answered: Answered) -> None:
        """The next rows."""
        self._batches.append(answered.rows)
        self._images += answered.images
        self._failed += len(answered.failures)
        self._rows += answered.rows.num_rows
        self._bytes += answered.rows.nbytes
        if self._rows >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self._flush()

    def finish(self) -> None:
        """Put the table in place."""
        self._flush()
        expected = self._shard.images
        if expected is not None and expected != self._images:
            raise OutputError(
                f"shard {self._shard.number} has {self._images} images and should have {expected}: the source has "
                "changed since it was listed; run the same command again"
            )
        self._writer.add_key_value_metadata({"saccade.images": str(self._images), "saccade.failed": str(self._failed)})
        self._writer.close()
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        os.replace(self._path, self._ledger.path(self._shard.number))
        sync_folder(self._ledger.folder)

    def abandon(self) -> None:
        """Remove what is there of it."""
        for opened in (self._writer, self._stream):
            with suppress(OSError, pa.ArrowException):  # the disk may be full; the file goes
                opened.close()
        self._path.unlink(missing_ok=True)

    def _flush(self) -> None:
        if self._batches:
            self._writer.write_table(pa.Table.from_batches(self._batches, self._schema))
            self._batches, self._rows, self._bytes = [], 0, 0


def _leaves(schema: pa.Schema) -> list[str]:
    """Columns as Parquet counts them: a list by what it holds, a map by its keys and values."""
    found = []
    for one in schema:
        if pa.types.is_list(one.type):
            found.append(f"{one.name}.list.element")
        elif pa.types.is_map(one.type):
            found += [f"{one.name}.key_value.key", f"{one.name}.key_value.value"]
        else:
            found.append(one.name)
    return found


class Writing:
    """Writes shards one after the other in a thread of its own, so that no disk keeps the engine waiting.

    As a context: what is not finished at the end of an error is removed.
    """

    def __init__(self, ledger: Ledger, schema: pa.Schema) -> None:
        self._ledger, self._schema = ledger, schema
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="saccade-write")
        self._jobs: list[Future[None]] = []
        self._writers: dict[int, ShardWriter] = {}
        self._broken = False

    def add(self, shard: Shard, answered: Answered) -> None:
        """The next rows of a shard that is claimed."""
        self._submit(self._add, shard, answered)

    def finish(self, shard: Shard) -> None:
        """A shard that is claimed is complete."""
        self._submit(self._finish, shard)

    def __enter__(self) -> Writing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for job in self._jobs:
                    job.result()
        finally:
            self._pool.shutdown(wait=True)  # of what is complete, nothing is given up
            for number, writer in self._writers.items():
                writer.abandon()
                self._ledger.release(number)

    def _submit(self, call: Any, *arguments: Any) -> None:
        self._jobs.append(self._pool.submit(call, *arguments))
        while self._jobs and (self._jobs[0].done() or len(self._jobs) > _WAITING):
            self._jobs.pop(0).result()

    def _add(self, shard: Shard, answered: Answered) -> None:
        with self._until_broken() as writers:
            if shard.number not in writers:
                writers[shard.number] = ShardWriter(self._ledger, shard, self._schema)
            writers[shard.number].add(answered)

    def _finish(self, shard: Shard) -> None:
        with self._until_broken() as writers:
            writer = writers.get(shard.number) or ShardWriter(self._ledger, shard, self._schema)
            writers[shard.number] = writer
            writer.finish()
            del writers[shard.number]
            self._ledger.release(shard.number)

    @contextmanager
    def _until_broken(self) -> Iterator[dict[int, ShardWriter]]:
        """The writers; after an error nothing more is written."""
        if self._broken:
            raise CancelledError
        try:
            with _Errors(self._ledger.folder):
                yield self._writers
        except BaseException:
            self._broken = True
            raise
