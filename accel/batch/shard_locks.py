"""Locks that tell runs apart which share a folder of results; they end with the process, however it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import OutputError, UsageError

if sys.platform != "win32":
    import fcntl

__all__ = ["ShardLocks"]

# Bytes of the file, which need not exist: one for each shard, one for all runs, one for who looks after the plan.
_RUN = 1 << 40
_PLAN = _RUN + 1


class ShardLocks:
    """Locks on single bytes of one file, also between machines where the file system has such locks.

    Args:
        file: made if it is not there.

    Raises:
        OutputError: the file system has no locks.
        UsageError: nor has the operating system.
    """

    def __init__(self, file: Path) -> None:
        if sys.platform == "win32":
            raise UsageError("saccade batch needs POSIX file locks, which Windows has not; run it in WSL")
        self._file = file
        try:
            self._handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise OutputError(f"cannot write '{file}': {error.strerror}") from None
        try:
            self._lock(_RUN, fcntl.LOCK_SH)
        except OSError as error:
            os.close(self._handle)
            raise OutputError(
                f"the file system of '{file}' has no locks ({error.strerror}), so runs would not know of one another; "
                "write to another, on several machines each its own part: --shard-index I --shard-count N"
            ) from None

    def take(self, number: int) -> bool:
        """Lock a shard; False where another run has it."""
        return self._try(number, fcntl.LOCK_EX)

    def release(self, number: int) -> None:
        """Unlock a shard."""
        self._lock(number, fcntl.LOCK_UN)

    def alone(self) -> bool:
        """No other run holds the file."""
        if not self._try(_RUN, fcntl.LOCK_EX):
            return False
        self._lock(_RUN, fcntl.LOCK_SH)
        return True

    @contextmanager
    def planning(self) -> Iterator[None]:
        """Wait until no other run looks after the plan, and be the only one."""
        self._lock(_PLAN, fcntl.LOCK_EX)
        try:
            yield
        finally:
            self._lock(_PLAN, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give all locks back."""
        os.close(self._handle)

    def _try(self, byte: int, kind: int) -> bool:
        try:
            self._lock(byte, kind | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # either says that another has it
            return False
        return True

    def _lock(self, byte: int, kind: int) -> None:
        fcntl.lockf(self._handle, kind, 1, byte)
