"""Timing of many rows in one run: rounds of all rows, each next to the plain forward of its own engine.

A machine whose speed drifts changes a row and its forward alike, so that their ratio stands where milliseconds do not.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from saccade.accel.memory import reset_peak, resident_mib

__all__ = ["Row", "interleave", "seconds_of", "settled_mib", "summary"]

LEAST = 3  # rounds of a row
SLOW = 5.0  # seconds: such a row is measured once at least
_SHARES = 2.0  # of the time there is: a row that has had so many equal shares sits out


@dataclass
class Row:
    """Something that is timed.

    Attributes:
        name: of the row.
        engine: whose plain forward it is timed with.
        call: does the work, or a part of it, and returns how often it takes that part.
        plain: the plain forward of the same images; None where the row is a plain forward itself.
        forwards: plain forwards that the whole work takes beside that.
        seconds: of the whole work, a number per measurement.
        plain_seconds: of the plain forward next to it.
        rounds: in which these were measured.
    """

    name: str
    engine: str
    call: Callable[[], float]
    plain: Callable[[], object] | None = None
    forwards: float = 0
    seconds: list[float] = field(default_factory=list)
    plain_seconds: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    spent: float = 0.0

    def measure(self, which: int, plain_first: bool) -> None:
        """Time it once, in round `which`."""
        began = time.perf_counter()
        plain = seconds_of(self.plain) if self.plain and plain_first else 0.0
        start = time.perf_counter()
        times = self.call()
        own = (time.perf_counter() - start) * times
        if self.plain and not plain_first:
            plain = seconds_of(self.plain)
        plain = plain or own
        self.seconds.append(own + self.forwards * plain)
        self.plain_seconds.append(plain)
        self.rounds.append(which)
        self.spent += time.perf_counter() - began

    @property
    def wants(self) -> int:
        """Rounds that it must take part in."""
        return 1 if self.spent > SLOW * len(self.rounds) > 0 else LEAST


def seconds_of(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleave(
    rows: Sequence[Row],
    seconds: float,
    rounds: int | None = None,
    on_round: Callable[[int], None] = lambda done: None,
) -> None:
    """Measure rows in rounds, one after the other, in the other direction every second time.

    Rows that take longer than their share of the time sit out later rounds; plain forwards never do.

    Args:
        rows: what is measured; their measurements are added.
        seconds: that there are; every row is measured three times at least, or once where it takes over five seconds.
        rounds: so many in place of as many as fit.
        on_round: told after each round how many are done.
    """
    share = _SHARES * seconds / max(1, len(rows))
    began, done = time.perf_counter(), 0
    while True:
        for row in rows if done % 2 == 0 else rows[::-1]:
            if row.plain is None or len(row.rounds) < row.wants or row.spent < share:
                row.measure(done, plain_first=(done // 2) % 2 == 0)
        done += 1
        on_round(done)
        enough = all(len(row.rounds) >= row.wants for row in rows)
        over = done >= rounds if rounds else time.perf_counter() - began >= seconds
        if over and (enough or rounds):
            return


def settled_mib() -> float | None:
    """Resident memory after all that is free was given back, MiB; from here on a new peak is counted."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        pass  # another libc: what PyTorch has freed is then not seen to be taken again
    reset_peak()
    return resident_mib()


def summary(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Of each row that was measured: seconds, and cost in forwards of its engine and of the fastest engine.

    The fastest engine is the one whose plain forward has the smallest median; a row's measurement is held against the
    median of that engine's plain forwards of the same round.
    """
    plain: dict[str, list[float]] = {}
    for row in rows:
        plain.setdefault(row.engine, []).extend(row.plain_seconds)
    medians = {engine: float(np.median(times)) for engine, times in plain.items() if times}
    fastest = min(medians, key=lambda engine: medians[engine])
    of_round: dict[int, list[float]] = {}
    for row in rows:
        if row.engine == fastest:
            for which, seconds in zip(row.rounds, row.plain_seconds, strict=True):
                of_round.setdefault(which, []).append(seconds)
    found = {}
    for row in rows:
        if not row.rounds:
            continue
        own, next_to = np.asarray(row.seconds), np.asarray(row.plain_seconds)
        ratios = own / next_to
        of_fastest = own / [np.median(of_round.get(which, [medians[fastest]])) for which in row.rounds]
        found[row.name] = {
            "seconds": float(np.median(own)),
            "plain_seconds": float(np.median(next_to)),
            "forwards": float(np.median(ratios)),
            "forwards_low": float(np.percentile(ratios, 25)),
            "forwards_high": float(np.percentile(ratios, 75)),
            "forwards_of_fastest": float(np.median(of_fastest)),
            "measured": len(own),
        }
        found[row.name]["fastest"] = fastest  # type: ignore[assignment]
    return found
