"""What ``SRC`` may be, and its division into shards: image files, tar files in the WebDataset convention, Parquet files
with encoded images in a column; each in a folder, behind a pattern, or at an address that fsspec opens.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from ...errors import ImageError, UsageError
from ..image import SUFFIXES
from .patience import PatientFiles
from .storage import Storage, expand_braces, has_wildcards, storage_of

__all__ = [
    "KINDS",
    "Container",
    "Failing",
    "Fingerprint",
    "InMemory",
    "Item",
    "Shard",
    "Source",
    "as_text",
    "find_source",
    "numbered_shards",
]

KINDS = ("images", "tar", "parquet")
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_ESCAPE = re.compile(rb"\\x[0-9a-f]{2}")
_PARQUETS = (".parquet", ".parq")


@dataclass(frozen=True)
class Item:
    """One image of a source.

    Attributes:
        shard: number of the shard that it belongs to.
        key: what it is called in the table; no other image of the source is called so.
        id: what the source calls it: a file's name below the folder, WebDataset's key, a value of a Parquet file's
            column. Several may be called so.
        read: gives its encoded bytes.
        weight: its part of the shard's weight.

    Raises:
        ImageError: by `read`, if it cannot be read.
    """

    shard: int
    key: str
    id: str | None
    read: Callable[[], bytes]
    weight: int = 1


@dataclass(frozen=True)
class Shard:
    """A part of a source, done as a whole or not at all.

    Attributes:
        number: place among the shards.
        start: its first image, or file of images.
        stop: one behind its last.
        images: how many it has; None where that is found out by reading it.
        weight: what it counts in progress: images, or bytes.
    """

    number: int
    start: int
    stop: int
    images: int | None
    weight: int


class Source(Protocol):
    """Images that are listed, divided into shards, and read shard by shard.

    Attributes:
        kind: one of `KINDS`.
        remote: reading goes through a network.
        fingerprint: changes when the list of files, or the size of one, does.
        shards: the parts, in order.
        described: how much it is, for people.
    """

    kind: str
    remote: bool
    fingerprint: str
    shards: list[Shard]
    described: str

    def items(self, shard: Shard) -> Iterator[Item]:
        """The images of a shard, in order; an image that cannot be read is an item all the same."""
        ...


@dataclass(frozen=True, slots=True)
class Container:
    """A file of images: its path, its name in keys, its bytes."""

    path: str
    name: str
    size: int


def find_source(
    spec: str,
    *,
    shard_size: int = 2000,
    limit: int | None = None,
    kind: str | None = None,
    image_column: str | None = None,
    id_column: str | None = None,
) -> Source:
    """Find and list what a spec names.

    Args:
        spec: a file, a folder, a pattern with wildcards or braces, or an address.
        shard_size: images of a shard; a tar file is one shard, whatever it holds.
        limit: take the first images only.
        kind: one of `KINDS`; None tells it from the files: images, or where there is none, tar or Parquet files.
        image_column: of Parquet files, the column of encoded images; None finds it.
        id_column: of Parquet files, the column with the images' own names.

    Raises:
        ImageError: there is nothing, or it cannot be read.
        UsageError: files of several kinds, or columns that are not there.
    """
    from .image_files import ImageFiles
    from .parquet_files import ParquetFiles
    from .tar_files import TarFiles

    storage = storage_of(spec)
    if storage.kind(spec) == "folder":
        return _in_folder(storage, spec, shard_size, limit, kind, image_column, id_column)
    root, containers = _matching(storage, spec)
    kinds = {kind or _kind_of(one.path) or "images" for one in containers}
    if len(kinds) > 1:
        raise UsageError(f"'{spec}' names files of several kinds ({', '.join(sorted(kinds))}); narrow it down to one")
    found, files = kinds.pop(), PatientFiles(storage, root)
    if found == "tar":
        return TarFiles(files, containers, limit)
    if found == "parquet":
        return ParquetFiles(files, containers, shard_size, limit, image_column, id_column)
    return ImageFiles(files, root, ((one.name, one.size) for one in containers), shard_size, limit)


def _in_folder(
    storage: Storage,
    folder: str,
    shard_size: int,
    limit: int | None,
    kind: str | None,
    image_column: str | None,
    id_column: str | None,
) -> Source:
    from .image_files import ImageFiles
    from .parquet_files import ParquetFiles
    from .tar_files import TarFiles

    root = folder.rstrip("/") + "/"
    others: dict[str, list[Container]] = {"tar": [], "parquet": []}

    def images() -> Iterator[tuple[str, int]]:
        for name, size in storage.walk(root):
            found = _kind_of(name)
            if found == "images" and kind in (None, "images"):
                yield name, size
            elif found in others:
                others[found].append(Container(root + name, name, size))

    files = PatientFiles(storage, root)
    source = ImageFiles(files, root, images(), shard_size, limit)
    if source.shards:
        return source
    tars, parquets = others["tar"], others["parquet"]
    if kind == "images" or (not tars and not parquets):
        raise ImageError(
            f"'{folder}' has no images{'' if kind else ', and no tar or Parquet files of images'}; looked for "
            f"{', '.join(sorted(SUFFIXES))}{'' if kind else ', .tar and .parquet'}"
        )
    if kind is None and tars and parquets:
        raise UsageError(f"'{folder}' has tar files and Parquet files; choose with --kind tar or --kind parquet")
    chosen = kind or ("tar" if tars else "parquet")
    if not others[chosen]:
        raise ImageError(f"'{folder}' has no {chosen} files")
    if chosen == "tar":
        return TarFiles(files, tars, limit)
    return ParquetFiles(files, parquets, shard_size, limit, image_column, id_column)


def _matching(storage: Storage, spec: str) -> tuple[str, list[Container]]:
    """The files behind a spec that is not a folder: what all paths begin with, and the files by the rest."""
    if storage.kind(spec) == "file":
        name = spec.rpartition("/")[2]
        return spec[: len(spec) - len(name)], [Container(spec, name, storage.size(spec))]
    paths: list[str] = []
    for pattern in expand_braces(spec):
        if has_wildcards(pattern):
            paths += storage.matches(pattern)
        elif storage.kind(pattern) == "file":
            paths.append(pattern)
        else:
            raise ImageError(f"there is no file or folder '{pattern}'")
    if not paths:
        raise ImageError(f"no file matches '{spec}'")
    fixed = re.split(r"[*?\[{]", spec, maxsplit=1)[0]
    root = fixed[: fixed.rfind("/") + 1]
    return root, [Container(path, path[len(root) :], storage.size(path)) for path in dict.fromkeys(paths)]


def _kind_of(name: str) -> str | None:
    lower = name.lower()
    if lower.endswith(_TARS):
        return "tar"
    if lower.endswith(_PARQUETS):
        return "parquet"
    return "images" if os.path.splitext(lower)[1] in SUFFIXES else None


class InMemory:
    """Reads what is there already."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __call__(self) -> bytes:
        """The bytes."""
        return self._content


class Failing:
    """Stands for what cannot be read."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __call__(self) -> bytes:
        """Say why."""
        raise ImageError(self._reason)


def numbered_shards(images: int, size: int) -> list[Shard]:
    """So many images, in shards of one size."""
    shards = []
    for number, start in enumerate(range(0, images, size)):
        count = min(size, images - start)
        shards.append(Shard(number, start, start + count, count, count))
    return shards


class Fingerprint:
    """Of a list of files of one kind, by name and size, as it is gone through."""

    def __init__(self, kind: str) -> None:
        self._digest = hashlib.sha256(kind.encode())

    def add(self, name: str, size: int) -> None:
        """The next file."""
        self._digest.update(os.fsencode(name) + b"\0" + str(size).encode() + b"\n")

    @property
    def value(self) -> str:
        """In hexadecimal."""
        return self._digest.hexdigest()


def as_text(name: str) -> str:
    r"""A file's name as text that can be stored, no two names as the same.

    Bytes of it that are not UTF-8 become ``\xff``; in a name with such bytes, or that looks as if it had them, a
    backslash becomes two.
    """
    try:
        encoded = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # other surrogates, which come from no file system
        encoded = name.encode("utf-8", "surrogatepass")
    if not _ESCAPE.search(encoded) and _is_utf8(encoded):
        return name
    return encoded.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def _is_utf8(encoded: bytes) -> bool:
    try:
        encoded.decode()
    except UnicodeDecodeError:
        return False
    return True
