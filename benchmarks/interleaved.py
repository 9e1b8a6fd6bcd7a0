"""Timing of many rows in one run: rounds of all rows, each next to the plain forward of its own engine.

A machine whose speed drifts changes a row and its forward alike, so that their ratio stands where milliseconds do not.
"""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from saccade.accel.memory import reset_peak, resident_mib

__all__ = ["Row", "interleave", "seconds_of", "settled_mib", "summary"]

_LONG = 1.5  # seconds
_BESIDE = 5  # plain forwards next to a work that is so long
LEAST = ((60.0, 1), (_LONG, 2), (0.0, 3))  # seconds from which on a row is measured so often at least
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
        beside = [seconds_of(self.plain)] if self.plain and plain_first else []
        start = time.perf_counter()
        times = self.call()
        once = time.perf_counter() - start
        own = once * times
        if self.plain and not plain_first:
            beside.append(seconds_of(self.plain))
        if self.plain and once > _LONG:  # which no single forward stands for
            while len(beside) < _BESIDE:
                beside.append(seconds_of(self.plain))
        plain = float(np.median(beside)) if beside else own
        self.seconds.append(own + self.forwards * plain)
        self.plain_seconds.append(plain)
        self.rounds.append(which)
        self.spent += time.perf_counter() - began

    @property
    def wants(self) -> int:
        """Rounds that it must take part in."""
        each = self.spent / max(1, len(self.rounds))
        return next(least for seconds, least in LEAST if each >= seconds)

    def warmed(self) -> None:
        """Forget the first measurement, unless the work is so long that once is enough."""
        if len(self.rounds) < self.wants:
            self.seconds, self.plain_seconds, self.rounds, self.spent = [], [], [], 0.0


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
        seconds: that there are; every row is measured three times at least, twice where it takes over a second and a
            half, once where it takes over a minute.
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


def summary(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Of each row that was measured: seconds, and cost in forwards of its engine and of the fastest engine.

    The fastest engine is the one whose plain forward has the smallest median. How much slower another one is, is the
    median over the rounds of what its plain forwards take over those of the fastest.
    """
    plain: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        for which, seconds in zip(row.rounds, row.plain_seconds, strict=True):
            plain.setdefault(row.engine, {}).setdefault(which, []).append(seconds)
    of_round = {
        engine: {which: float(np.median(times)) for which, times in found.items()} for engine, found in plain.items()
    }
    medians = {engine: float(np.median(list(found.values()))) for engine, found in of_round.items()}
    if not medians:
        return {}
    fastest = min(medians, key=lambda engine: medians[engine])
    slower = {
        engine: float(np.median([found[which] / of_round[fastest][which] for which in common]))
        if (common := found.keys() & of_round[fastest].keys())
        else medians[engine] / medians[fastest]
        for engine, found in of_round.items()
    }
    answers = {}
    for row in rows:
        if not row.rounds:
            continue
        ratios = np.asarray(row.seconds) / np.asarray(row.plain_seconds)
        answers[row.name] = {
            "seconds": float(np.median(row.seconds)),
            "plain_seconds": float(np.median(row.plain_seconds)),
            "forwards": float(np.median(ratios)),
            "forwards_low": float(np.percentile(ratios, 25)),
            "forwards_high": float(np.percentile(ratios, 75)),
            "forwards_of_fastest": float(np.median(ratios)) * slower[row.engine],
            "fastest": fastest,
            "measured": len(ratios),
        }
    return answers
