"""Where a source's files lie: a local disk, or whatever fsspec opens."""

from __future__ import annotations

import errno
import fnmatch
import glob
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from ...errors import ImageError, SaccadeError, UsageError, require

__all__ = [
    "MOST_BYTES",
    "Fsspec",
    "Local",
    "Settled",
    "Storage",
    "expand_braces",
    "has_wildcards",
    "is_url",
    "storage_of",
]

MOST_BYTES = 1 << 30  # of an encoded image
_MOST_EXPANDED = 1_000_000
_SETTLED = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
_SETTLED_NUMBERS = (errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO)
_RELATIVE = re.compile(r"(?:[^*?\[/]*/)*")  # folders before the first wildcard
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


class Settled(ImageError):
    """One file cannot be read, and trying again would not help: it is missing, forbidden, or no file."""


class Storage(Protocol):
    """Files by path; what cannot be read is an `ImageError` that says why.

    Attributes:
        remote: reading a file takes a round trip through a network.
    """

    remote: bool

    def kind(self, path: str) -> str | None:
        """``"file"``, ``"folder"``, or None where there is nothing."""
        ...

    def walk(self, folder: str) -> Iterator[tuple[str, int]]:
        """Name below the folder and size of every file, in an order that depends on the names alone."""
        ...

    def matches(self, pattern: str) -> list[str]:
        """The paths of the files that a pattern with wildcards matches, sorted."""
        ...

    def size(self, path: str) -> int:
        """Bytes of a file."""
        ...

    def read(self, path: str) -> bytes:
        """The content of a file."""
        ...

    def open(self, path: str) -> Any:
        """A binary stream of a file."""
        ...

    def there(self, root: str) -> bool:
        """Something can be seen at the path of a folder."""
        ...

    def unreadable(self, path: str, error: Exception) -> ImageError:
        """What an error in reading a file means."""
        ...


class Local:
    """The local disk, and what is mounted there."""

    remote = False

    def kind(self, path: str) -> str | None:
        """See `Storage`."""
        if os.path.isdir(path):
            return "folder"
        if os.path.exists(path) and not os.path.isfile(path):
            raise ImageError(f"'{path}' is neither a file nor a folder")
        return "file" if os.path.isfile(path) else None

    def walk(self, folder: str) -> Iterator[tuple[str, int]]:
        """See `Storage`; links to folders are not followed, and what reading will refuse has size 0."""
        waiting = [b""]
        while waiting:  # and not by recursion: folders may be nested deeper than Python's stack
            below = waiting.pop()
            path = os.fsencode(folder) + below
            try:
                names = sorted(os.listdir(path))
            except OSError as error:
                raise _unreadable(path, error) from None
            folders = []
            for name in names:
                about = _about(path + name)
                if about is None or stat.S_ISREG(about.st_mode):
                    yield os.fsdecode(below + name), about.st_size if about else 0
                elif not stat.S_ISDIR(about.st_mode):
                    yield os.fsdecode(below + name), 0
                elif not os.path.islink(path + name):
                    folders.append(below + name + b"/")
            waiting += reversed(folders)

    def matches(self, pattern: str) -> list[str]:
        """See `Storage`."""
        return sorted((path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)), key=os.fsencode)

    def size(self, path: str) -> int:
        """See `Storage`."""
        try:
            return os.stat(path).st_size
        except OSError as error:
            raise _unreadable(path, error) from None

    def read(self, path: str) -> bytes:
        """See `Storage`."""
        try:
            about = os.stat(path)
            if not stat.S_ISREG(about.st_mode):
                raise Settled(f"'{path}' cannot be read: it is not a regular file")
            if about.st_size > MOST_BYTES:
                raise Settled(
                    f"'{path}' cannot be read: it has {about.st_size:,} bytes, and images at most {MOST_BYTES:,}"
                )
            return Path(path).read_bytes()
        except OSError as error:
            raise _unreadable(path, error) from None
        except MemoryError:
            raise Settled(f"'{path}' cannot be read: it does not fit into memory") from None

    def open(self, path: str) -> Any:
        """See `Storage`."""
        try:
            return Path(path).open("rb")
        except OSError as error:
            raise _unreadable(path, error) from None

    def there(self, root: str) -> bool:
        """See `Storage`; what was mounted at a folder and is no more leaves it empty."""
        try:
            with os.scandir(root or ".") as entries:
                return next(entries, None) is not None
        except OSError:
            return False

    def unreadable(self, path: str, error: Exception) -> ImageError:
        """See `Storage`."""
        return _unreadable(path, error)


class Fsspec:
    """A file system of fsspec.

    Args:
        url: any address in it.

    Raises:
        UsageError: fsspec knows no such protocol, or the address is not one.
        MissingDependencyError: fsspec, or what it needs for this protocol, is not installed.
    """

    remote = True

    def __init__(self, url: str) -> None:
        fsspec = require("fsspec", extra="batch", purpose=f"reading '{url}'")
        try:
            self._files, _ = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UsageError(f"'{url}' cannot be opened: {_first_line(error)}") from None
        except Exception as error:  # each file system has errors of its own
            raise _unreadable(url, error) from None

    def kind(self, path: str) -> str | None:
        """See `Storage`."""
        try:
            if self._files.isfile(path):  # first: to ask a web server for a folder is to download the file
                return "file"
            return "folder" if self._files.isdir(path) else None
        except Exception as error:
            raise _unreadable(path, error) from None

    def walk(self, folder: str) -> Iterator[tuple[str, int]]:
        """See `Storage`."""
        root = self._files._strip_protocol(folder).rstrip("/")
        try:
            for path, folders, files in self._files.walk(root, detail=True, on_error="raise"):
                for name in sorted(folders):  # the order in which they are entered next
                    folders[name] = folders.pop(name)
                below = path.rstrip("/")[len(root) :].strip("/")
                for name in sorted(files):
                    if name:
                        yield f"{below}/{name}".lstrip("/"), int(files[name].get("size") or 0)
        except SaccadeError:
            raise
        except Exception as error:
            raise _unreadable(folder, error) from None

    def matches(self, pattern: str) -> list[str]:
        """See `Storage`."""
        try:
            found = self._files.glob(pattern, detail=True)
        except Exception as error:
            raise _unreadable(pattern, error) from None
        fixed = pattern[: re.search(r"[*?\[]|$", pattern).start()].rpartition("/")[0]  # type: ignore[union-attr]
        start = len(self._files._strip_protocol(fixed))
        names = (path[start:].lstrip("/") for path, about in found.items() if about.get("type") == "file")
        return [f"{fixed}/{name}" for name in sorted(names)]

    def size(self, path: str) -> int:
        """See `Storage`."""
        try:
            return int(self._files.size(path) or 0)
        except Exception as error:
            raise _unreadable(path, error) from None

    def read(self, path: str) -> bytes:
        """See `Storage`."""
        try:
            content: bytes = self._files.cat_file(path)
        except Exception as error:
            raise _unreadable(path, error) from None
        return content

    def open(self, path: str) -> Any:
        """See `Storage`."""
        try:
            return self._files.open(path, "rb")
        except Exception as error:
            raise _unreadable(path, error) from None

    def there(self, root: str) -> bool:
        """See `Storage`."""
        try:
            self._files.info(root)
        except Exception:  # each file system has errors of its own
            return False
        return True

    def unreadable(self, path: str, error: Exception) -> ImageError:
        """See `Storage`."""
        return _unreadable(path, error)


def storage_of(path: str) -> Storage:
    """The file system that a path or an address lies in."""
    return Fsspec(path) if is_url(path) else Local()


def is_url(path: str) -> bool:
    """``s3://bucket/folder`` and the like."""
    return re.match(r"[A-Za-z][\w+.-]*://", path) is not None


def has_wildcards(path: str) -> bool:
    """The path is a pattern."""
    return any(sign in path for sign in "*?[")


def expand_braces(pattern: str) -> list[str]:
    """The paths that ``shards-{000..099}.tar`` or ``{a,b}.tar`` stand for, in order; a path without braces as it is.

    Raises:
        UsageError: a range that runs backwards, or stands for a million paths.
    """
    found = re.search(r"\{([^{}]*(?:\.\.|,)[^{}]*)\}", pattern)
    if not found:
        return [pattern]
    before, inside, after = pattern[: found.start()], found[1], pattern[found.end() :]
    if numbers := _RANGE.fullmatch(inside):
        first, last = int(numbers[1]), int(numbers[2])
        if last < first or last - first >= _MOST_EXPANDED:
            raise UsageError(f"'{{{inside}}}' is not a range from a smaller to a larger number; write {{000..099}}")
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        parts = [f"{number:0{width}d}" for number in range(first, last + 1)]
    else:
        parts = inside.split(",")
    return [path for part in parts for path in expand_braces(before + part + after)]


def may_hold(spec: str, folder: Path, name: str) -> bool:
    """A spec on this machine would also take files of such a name that come to lie in a folder, or in folders below.

    Args:
        spec: a file, a folder or a pattern.
        folder: where they will lie.
        name: of one of them.
    """
    inside = folder.resolve()
    if is_url(spec):
        return False
    if os.path.isdir(spec):
        return inside.is_relative_to(Path(spec).resolve())
    for pattern in filter(has_wildcards, expand_braces(spec)):
        fixed = _RELATIVE.match(pattern)[0]  # type: ignore[index]
        root, rest = Path(fixed or ".").resolve(), pattern[len(fixed) :].split("/")
        if inside.is_relative_to(root):
            below = inside.relative_to(root).parts
            if any(_fits(rest, (*below, *["x"] * depth, name)) for depth in range(len(rest))):
                return True
    return False


def _fits(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    """Part by part; ``**`` stands for any number of them."""
    if not pattern or not parts:
        return not pattern and not parts
    if pattern[0] == "**":
        return any(_fits(pattern[1:], parts[start:]) for start in range(len(parts)))
    return fnmatch.fnmatch(parts[0], pattern[0]) and _fits(pattern[1:], parts[1:])


def _about(path: bytes) -> os.stat_result | None:
    """What a path or a link leads to, or None where it leads nowhere."""
    try:
        return os.stat(path)
    except OSError:
        return None


def _unreadable(path: Any, error: Exception) -> ImageError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else _first_line(error)
    kind = Settled if isinstance(error, _SETTLED) or getattr(error, "errno", None) in _SETTLED_NUMBERS else ImageError
    return kind(f"'{os.fsdecode(path)}' cannot be read: {reason}")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
