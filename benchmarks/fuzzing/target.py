"""What a fuzz target is, and how one case is run: its outcome is counted, anything else is a finding."""

from __future__ import annotations

import re
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from saccade.errors import SaccadeError

__all__ = ["Finding", "Reached", "Target", "Tried", "first_words", "run_case"]

SECONDS = 20
GROWTH_MIB = 768


class Reached(BaseException):
    """The work that a command was called for begins here, and is not done."""


class TookTooLong(BaseException):
    """A case hangs."""


@dataclass(frozen=True)
class Target:
    """One way in.

    Attributes:
        name: of its corpus's folder.
        cases: endless cases from a seed.
        run: runs a case, and says what came of it, such as ``"answered"``; a SaccadeError counts as refused.
        suffix: of a case as a file.
    """

    name: str
    cases: Callable[[int], Iterator[bytes]]
    run: Callable[[bytes], str]
    suffix: str = ".bin"


@dataclass(frozen=True)
class Finding:
    """A case after which something else happened than an answer or a clear refusal."""

    kind: str
    what: str
    case: bytes


@dataclass
class Tried:
    """What cases came to.

    Attributes:
        kinds: outcomes and how often.
        messages: of refusals, with numbers and names left out, each with an example.
        findings: the first of each kind and place.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    messages: dict[str, str] = field(default_factory=dict)
    findings: dict[str, Finding] = field(default_factory=dict)


def run_case(target: Target, case: bytes, tried: Tried) -> None:
    """Run one case within time and memory, and count what came of it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGALRM, _too_long)
    began, other = time.monotonic(), signal.setitimer(signal.ITIMER_REAL, SECONDS)  # pytest has a timer as well
    try:
        kind = target.run(case)
    except SaccadeError as error:
        kind = f"refused: {type(error).__name__}"
        said = str(error)
        tried.messages.setdefault(first_words(said), said)
        if "\n" in said or not said:
            _keep(tried, "message of several lines", repr(said), said[:40], case)
    except Reached:
        kind = "answered"
    except TookTooLong:
        kind = "hang"
        _keep(tried, kind, f"more than {SECONDS} s", _place(sys.exc_info()[2]), case)
    except Exception as error:
        kind = "crash"
        place = _place(error.__traceback__)
        _keep(tried, kind, traceback.format_exc(), f"{type(error).__name__} {place}", case)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if other[0]:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, other[0] - (time.monotonic() - began)), other[1])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if grown > GROWTH_MIB:
        _keep(tried, "memory", f"{grown:.0f} MiB more", target.name, case)
    tried.kinds[kind] += 1


def first_words(message: str) -> str:
    """A message without what differs from case to case: quoted names and numbers."""
    plain = re.sub(r"'[^']*'|\"[^\"]*\"", "'…'", message)
    return re.sub(r"[-+]?\d[\d.,eE+-]*", "N", plain)[:160]


def _keep(tried: Tried, kind: str, what: str, where: str, case: bytes) -> None:
    tried.findings.setdefault(f"{kind} {where}", Finding(kind, what, case))


def _place(trace: Any) -> str:
    """The last line of ours in a traceback."""
    frames = [frame for frame in traceback.extract_tb(trace) if "saccade" in frame.filename]
    ours = [frame for frame in frames if "/benchmarks/" not in frame.filename] or frames
    return f"{ours[-1].filename}:{ours[-1].lineno}" if ours else "?"


def _too_long(*_: object) -> None:
    raise TookTooLong
