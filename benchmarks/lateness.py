"""How late a machine wakes whoever sleeps: what a server cannot answer sooner than, whatever it does."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe

__all__ = ["Lateness", "watched_lateness"]

_SLEEP = 0.001  # seconds


@dataclass
class Lateness:
    """Milliseconds beyond what was slept, at most; once the block has ended."""

    max_ms: float = 0.0


@contextlib.contextmanager
def watched_lateness() -> Iterator[Lateness]:
    """While the block runs, a process of usual priority sleeps a millisecond a time."""
    found = Lateness()
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_sleep, args=(there,), daemon=True)
    process.start()
    here.recv()
    try:
        yield found
    finally:
        here.send(True)
        found.max_ms = here.recv()
        process.join()


def _sleep(pipe: Pipe) -> None:
    most = 0.0
    pipe.send("ready")
    while not pipe.poll():
        began = time.perf_counter()
        time.sleep(_SLEEP)
        most = max(most, time.perf_counter() - began - _SLEEP)
    pipe.send(most * 1e3)
