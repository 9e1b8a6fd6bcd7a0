"""Tar files in the WebDataset convention: members whose names are equal up to the first dot belong together, and the
image is the one with an image's suffix.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from ...errors import ImageError
from ..image import SUFFIXES
from .sources import Container, Failing, Fingerprint, InMemory, Item, Shard, as_text
from .storage import Storage

__all__ = ["TarFiles"]

_MODE: Final = "r|*"  # as a stream, compressed or not: it is read once, from front to back
_BUFFER = 1 << 20


class TarFiles:
    """Tar files, each of them a shard that is read as a stream.

    How many images one holds is found out by reading it; with a limit the first ones are read through before.
    """

    kind = "tar"

    def __init__(self, storage: Storage, containers: Sequence[Container], limit: int | None) -> None:
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
        container = self._containers[number]
        name, used, past = as_text(container.name), set[str](), 0
        try:
            with self._storage.open(container.path) as stream:
                with tarfile.open(fileobj=stream, mode=_MODE, bufsize=_BUFFER) as archive:
                    for member in archive:
                        vars(archive)["members"].clear()  # it keeps all that it has seen
                        if not member.isfile() or os.path.splitext(member.name.lower())[1] not in SUFFIXES:
                            continue
                        inside = archive.extractfile(member)
                        content = b"" if inside is None else inside.read()
                        at = stream.tell()
                        past, weight = at, at - past
                        member_name = as_text(member.name.removeprefix("./"))
                        key = f"{name}/{member_name}"
                        for again in range(2, len(used) + 2):
                            if key not in used:
                                break
                            key = f"{name}/{member_name}#{again}"
                        used.add(key)
                        yield Item(number, key, _sample(member_name), InMemory(content), weight)
        except ImageError as error:
            yield Item(number, name, None, Failing(str(error)))
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            text = f"the tar file '{container.path}' is damaged after {len(used)} images: {reason}"
            yield Item(number, name, None, Failing(text))


def _sample(name: str) -> str:
    """WebDataset's key of a member: its name up to the first dot behind the last slash."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]
