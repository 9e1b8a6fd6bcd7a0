"""Tar files in the WebDataset convention: members whose names are equal up to the first dot belong together, and the
image is the one with an image's suffix.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from ...errors import ImageError
from ..image import SUFFIXES
from .patience import PatientFiles
from .sources import Container, Failing, Fingerprint, InMemory, Item, Shard, as_text
from .storage import MOST_BYTES

__all__ = ["TarFiles"]

_BUFFER = 1 << 20
_DAMAGED = (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError)


class TarFiles:
    """Tar files, each of them a shard that is read as a stream.

    How many images one holds is found out by reading it; with a limit the first ones are read through before.
    """

    kind = "tar"

    def __init__(self, storage: PatientFiles, containers: Sequence[Container], limit: int | None) -> None:
        self.remote = storage.remote
        self._storage, self._containers = storage, list(containers)
        found = Fingerprint(self.kind)
        self.shards: list[Shard] = []
        for number, one in enumerate(self._containers):
            found.add(one.name, one.size)
            images = None
            if limit is not None:
                images = sum(1 for _ in islice(self._members(number), limit))
                limit -= images
            self.shards.append(
                Shard(number, number, number + 1, images, max(1, one.size) if images is None else images)
            )
            if limit == 0:
                break
        self.fingerprint = found.value
        count = len(self.shards)
        self.described = f"{count:,} tar file{'s' if count != 1 else ''}"

    def items(self, shard: Shard) -> Iterator[Item]:
        """See `Source`; where a tar file is damaged, an item says so in place of the rest."""
        for count, item in enumerate(self._members(shard.start)):
            if count == shard.images:
                return
            yield item if shard.images is None else Item(item.shard, item.key, item.id, item.read)

    def _members(self, number: int) -> Iterator[Item]:
        """The images of a file, which is read again from the front where reading broke off."""
        given = tried = 0
        while True:
            try:
                for item in islice(self._in_one_go(number), given, None):
                    given += 1
                    yield item
            except ImageError as error:
                if not self._storage.again(error, tried):
                    name = as_text(self._containers[number].name)
                    yield Item(number, name, None, Failing(f"{error}; {given} images of it are done"))
                    return
                tried += 1
            else:
                self._storage.worked()
                return

    def _in_one_go(self, number: int) -> Iterator[Item]:
        container = self._containers[number]
        name, times, count, past = as_text(container.name), dict[str, int](), 0, 0
        try:
            with self._storage.open(container.path) as opened:
                stream = _Counting(opened)
                with _Archive.open(fileobj=stream.decompressed(), mode="r|", bufsize=_BUFFER) as archive:
                    for member in archive:
                        vars(archive)["members"].clear()  # it keeps all that it has seen
                        if os.path.splitext(member.name.lower())[1] not in SUFFIXES:
                            continue
                        if not (member.isfile() or member.islnk() or member.issym()):
                            continue
                        problem = _problem(member)
                        inside = None if problem else archive.extractfile(member)
                        content = b"" if inside is None else inside.read()
                        past, weight = stream.taken, stream.taken - past
                        member_name = as_text(member.name.removeprefix("./"))
                        key = f"{name}/{member_name}"
                        while key in times:
                            times[key] += 1
                            key = f"{name}/{member_name}#{times[key]}"
                        times[key] = 1
                        count += 1
                        where = f"'{member_name}' in the tar file '{container.path}'"
                        read = Failing(f"{where} {problem}") if problem else InMemory(content)
                        yield Item(number, key, _sample(member_name), read, weight)
                    archive.refuse_damage()
        except _DAMAGED as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            text = f"the tar file '{container.path}' is damaged after {count} images: {reason}"
            yield Item(number, name, None, Failing(text))


class _Header(tarfile.TarInfo):
    """Keeps what ended the archive: `TarFile.next` takes a header that is damaged or cut off for a quiet end."""

    @classmethod
    def fromtarfile(cls, tarfile: Any) -> _Header:
        """See `tarfile.TarInfo`."""
        try:
            return super().fromtarfile(tarfile)
        except Exception as error:
            tarfile.ended_by = error
            raise


class _Archive(tarfile.TarFile):
    """Reads a stream and can tell a whole archive from one that breaks off."""

    tarinfo = _Header
    ended_by: Exception | None = None

    def refuse_damage(self) -> None:
        """Read what is left, so that checksums of compressed data are compared too.

        Raises:
            tarfile.ReadError: the archive has no end, or something behind it.
        """
        if not isinstance(self.ended_by, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(self.ended_by) or "it has no end")
        stream: Any = self.fileobj
        while rest := stream.read(_BUFFER):
            if rest.strip(b"\0"):
                raise tarfile.ReadError("something follows behind its end; tar files that were joined are not read on")


class _Counting:
    """A stream that is read once, from front to back, and knows how many bytes were taken from it."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._head, self.taken = stream, b"", 0

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        content: bytes
        if self._head:
            size = len(self._head) if size < 0 else size
            content, self._head = self._head[:size], self._head[size:]
        else:
            content = self._stream.read(size)
        self.taken += len(content)
        return content

    def decompressed(self) -> Any:
        """The stream, or what it decompresses to."""
        self._head = head = self._stream.read(6)
        stream: Any = self
        if head.startswith(b"\x1f\x8b"):
            return gzip.GzipFile(fileobj=stream)
        if head.startswith(b"BZh"):
            return bz2.BZ2File(stream)
        if head.startswith((b"\xfd7zXZ", b"]\0\0")):
            return lzma.LZMAFile(stream)
        return stream


def _problem(member: tarfile.TarInfo) -> str | None:
    """Why a member is not read."""
    if not member.isfile():
        return "is a link, which is not followed"
    if member.size > MOST_BYTES:
        return f"has {member.size:,} bytes, and images at most {MOST_BYTES:,}"
    return None


def _sample(name: str) -> str:
    """WebDataset's key of a member: its name up to the first dot behind the last slash."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]
