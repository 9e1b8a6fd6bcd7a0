"""When cores of the machine stood still, and nobody on them was answered.

A virtual machine shares its processors, and its host takes one away for milliseconds. On each core a process of
realtime priority, before which no other process comes, sleeps a millisecond a time: what it wakes late, the core stood,
or its kernel was at work.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe

__all__ = ["Stops", "watched_stops"]

_SLEEP = 0.001  # seconds
_LATE = 0.001  # seconds: from here on it is a stop; a core that runs wakes a sleeper in a tenth of this
_PRIORITY = 50  # of 99


@dataclass
class Stops:
    """When cores stood, once the block has ended.

    Attributes:
        realtime: whether the processes that watched had that priority. Without it they also waited for the load.
        times: begin and end of each stop, on the clock of `time.perf_counter`; a list for each core.
    """

    realtime: bool = True
    times: list[list[tuple[float, float]]] = field(default_factory=list)

    @property
    def max_ms(self) -> float:
        """The longest."""
        return max((end - begin for core in self.times for begin, end in core), default=0.0) * 1e3

    def within(self, begin: float, end: float, *, cores: int = 1) -> float:
        """Seconds of this time in which at least so many cores stood at once."""
        changes = [
            (min(max(at, begin), end), step)
            for core in self.times
            for stop in core
            if stop[0] < end and stop[1] > begin
            for at, step in zip(stop, (1, -1), strict=True)
        ]
        stood, standing, since = 0.0, 0, begin
        for at, step in sorted(changes):
            if standing >= cores:
                stood += at - since
            standing, since = standing + step, at
        return stood


@contextlib.contextmanager
def watched_stops() -> Iterator[Stops]:
    """Watch every core while the block runs."""
    found = Stops()
    spawn = multiprocessing.get_context("spawn")
    watching = []
    for core in sorted(os.sched_getaffinity(0)):
        here, there = spawn.Pipe()
        process = spawn.Process(target=_watch, args=(there, core), daemon=True)
        process.start()
        there.close()  # or nobody hears that it died
        found.realtime &= here.recv()
        watching.append((here, process))
    try:
        yield found
    finally:
        for here, process in watching:
            here.send(None)
            found.times.append(here.recv())
            process.join()


def _watch(pipe: Pipe, core: int) -> None:
    os.sched_setaffinity(0, {core})
    with contextlib.suppress(OSError):  # not allowed
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
    pipe.send(os.sched_getscheduler(0) == os.SCHED_FIFO)
    times: list[tuple[float, float]] = []
    while not pipe.poll():
        due = time.perf_counter() + _SLEEP
        time.sleep(_SLEEP)
        if (now := time.perf_counter()) > due + _LATE:
            times.append((due, now))
    pipe.send(times)
