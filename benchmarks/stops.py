"""When the machine stood still: what no server can answer in, whatever it does.

A virtual machine shares its processors, and its host takes one away for milliseconds. On each core a process of
realtime priority, before which nothing of this machine comes, sleeps a millisecond a time: what it wakes late, the core
stood.
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
    """When a core stood, once the block has ended.

    Attributes:
        realtime: whether the processes that watched had that priority. Without it they also waited for the load.
        times: begin and end of each stop of a core, on the clock of `time.perf_counter`.
    """

    realtime: bool = True
    times: list[tuple[float, float]] = field(default_factory=list)

    @property
    def max_ms(self) -> float:
        """The longest."""
        return max((end - begin for begin, end in self.times), default=0.0) * 1e3

    def within(self, begin: float, end: float) -> float:
        """Seconds of this time in which at least one core stood."""
        stood, until = 0.0, begin
        for first, last in sorted(self.times):
            first, last = max(first, until), min(last, end)
            if last > first:
                stood += last - first
                until = last
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
        found.realtime &= here.recv()
        watching.append((here, process))
    try:
        yield found
    finally:
        for here, process in watching:
            here.send(None)
            found.times += here.recv()
            process.join()


def _watch(pipe: Pipe, core: int) -> None:
    os.sched_setaffinity(0, {core})
    realtime = True
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
    except PermissionError:
        realtime = False
    pipe.send(realtime)
    times: list[tuple[float, float]] = []
    while not pipe.poll():
        due = time.perf_counter() + _SLEEP
        time.sleep(_SLEEP)
        if (now := time.perf_counter()) > due + _LATE:
            times.append((due, now))
    pipe.send(times)
