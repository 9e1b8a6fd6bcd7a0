"""Reading a source that may be away for a while: what passes is waited for, and what does not ends the run."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from ...errors import ImageError, SaccadeError
from .storage import Settled, Storage

__all__ = ["PatientFiles", "SourceLost"]

_PAUSES = (0.2, 1.0, 3.0)  # seconds, before a file is tried again
_MOST_IN_A_ROW = 8


class SourceLost(SaccadeError):
    """The source as a whole can no longer be read; no row says so, since its images are as good as they were."""


class PatientFiles:
    """Files below one root.

    That one file is missing, or may not be read, is its own fault while the root is there. Any other error is tried
    again after a pause, and ends the run where the root is gone, or several files in a row cannot be read.

    Args:
        storage: where they lie.
        root: a path that was listed, and holds them.
    """

    def __init__(self, storage: Storage, root: str) -> None:
        self.remote = storage.remote
        self._storage, self._root = storage, root
        self._was_there = storage.there(root)  # which not every web server can say of a folder
        self._in_a_row = 0

    def read(self, path: str) -> bytes:
        """The content of a file, as soon as it can be read.

        Raises:
            ImageError: it cannot.
            SourceLost: nor can others.
        """
        tried = 0
        while True:
            try:
                content = self._storage.read(path)
            except ImageError as error:
                if not self.again(error, tried):
                    raise
                tried += 1
            else:
                self.worked()
                return content

    def open(self, path: str) -> Stream:
        """A binary stream of a file, whose errors are `ImageError`; who reads it asks `again` what to do about them."""
        return Stream(self._storage, path)

    def worked(self) -> None:
        """A file was read to its end."""
        self._in_a_row = 0

    def again(self, error: ImageError, tried: int) -> bool:
        """Whether to try a file again, after a pause that has passed then.

        Args:
            error: why it could not be read.
            tried: so many times again already.

        Raises:
            SourceLost: the run is to end.
        """
        if isinstance(error, Settled) and not self._gone():
            return False
        if tried < len(_PAUSES):
            time.sleep(_PAUSES[tried])
            return True
        self._in_a_row += 1
        if self._in_a_row < _MOST_IN_A_ROW and not self._gone():
            return False
        raise SourceLost(
            f"the source can no longer be read: {error}; what is finished stays, and once the source is there again "
            "the same command goes on"
        )

    def _gone(self) -> bool:
        return self._was_there and not self._storage.there(self._root)


class Stream:
    """A binary stream whose errors are `ImageError`, whatever the file system calls them."""

    def __init__(self, storage: Storage, path: str) -> None:
        self._storage, self._path = storage, path
        self._opened = storage.open(path)

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        try:
            content: bytes = self._opened.read(size)
        except Exception as error:  # each file system has errors of its own
            raise self._storage.unreadable(self._path, error) from None
        return content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened, name)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()
