"""Load on a server: as many clients as are told, each waiting for its answer, or requests at a rate, whoever waits."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .connection import Connection, Reply
from .payload import Address, Payload

__all__ = ["LoadRow", "closed_loop", "expected_answers", "open_loop"]

_LEAD = 0.2  # of the time: answers that are not counted, while the server warms up
_REFUSED = (429, 503)


@dataclass(frozen=True)
class LoadRow:
    """One level of load.

    Attributes:
        loop: ``"closed"``, so many clients, or ``"open"``, so many requests per second.
        level: clients, or requests per second.
        seconds: that were measured.
        answered: requests with an answer.
        refused: requests that the server was too busy for.
        failed: requests with another error, or none.
        wrong: answers that are not those that the server gave when it was idle.
        unsent: requests that were due and not sent, because as many as allowed were under way.
        images_per_second: of the answered ones: in a closed loop those that arrived in the measured time, in an open
            loop those that were due in it.
        p50_ms, p95_ms, p99_ms: latency of the answered ones, in an open loop from when they were due; None where there
            were none.
        refusal_p99_ms, refusal_max_ms: latency of the refusals; None where there were none.
        reasons: of failures, with their number.
    """

    loop: str
    level: float
    seconds: float
    answered: int
    refused: int
    failed: int
    wrong: int
    unsent: int
    images_per_second: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    refusal_p99_ms: float | None
    refusal_max_ms: float | None
    reasons: dict[str, int] = field(default_factory=dict)


class _Tally:
    """Answers as they come."""

    def __init__(
        self, expected: Sequence[bytes], on_refusal: Callable[[float, float], None] = lambda due, now: None
    ) -> None:
        self.expected = expected
        self.on_refusal = on_refusal
        self.answered: list[float] = []
        self.refused: list[float] = []
        self.images = 0
        self.wrong = 0
        self.unsent = 0
        self.reasons: Counter[str] = Counter()

    def add(self, index: int, payload: Payload, reply: Reply, due: float, now: float, *, late: bool = False) -> None:
        """Count a reply; an answer that is late is only compared."""
        if reply.status == 200:
            self.wrong += bool(self.expected) and reply.tensors != self.expected[index]
            if not late:
                self.answered.append(now - due)
                self.images += payload.images
        elif reply.status in _REFUSED:
            self.refused.append(now - due)
            self.on_refusal(due, now)
        else:
            self.reasons[reply.reason or f"{reply.status}: {reply.tensors[:200].decode(errors='replace')}"] += 1

    def row(self, loop: str, level: float, seconds: float) -> LoadRow:
        """All of them."""
        p50, p95, p99 = (_percentile(self.answered, share) for share in (50, 95, 99))
        return LoadRow(
            loop=loop,
            level=level,
            seconds=round(seconds, 3),
            answered=len(self.answered),
            refused=len(self.refused),
            failed=sum(self.reasons.values()),
            wrong=self.wrong,
            unsent=self.unsent,
            images_per_second=self.images / seconds,
            p50_ms=p50,
            p95_ms=p95,
            p99_ms=p99,
            refusal_p99_ms=_percentile(self.refused, 99),
            refusal_max_ms=_percentile(self.refused, 100),
            reasons=dict(self.reasons),
        )


def _percentile(seconds: Sequence[float], share: float) -> float | None:
    return float(np.percentile(seconds, share) * 1e3) if seconds else None


async def expected_answers(address: Address, requests: Sequence[Payload], timeout: float) -> list[Reply]:
    """The answers of an idle server, one after the other."""
    connection = Connection(address, timeout)
    try:
        return [await connection.send(request) for request in requests]
    finally:
        await connection.close()


async def closed_loop(
    address: Address,
    requests: Sequence[Payload],
    expected: Sequence[bytes],
    *,
    clients: int,
    seconds: float,
    timeout: float,
    on_progress: Callable[[float], None] = lambda done: None,
) -> LoadRow:
    """So many clients, each of which sends its next request when it has its answer.

    An answer counts if it arrives in the time that is measured, whenever it was asked for: of those asked for in that
    time, as many as there are clients would come too late, and those computed at its start would be nobody's.

    Args:
        address: of the model.
        requests: taken in turn.
        expected: the tensors that each of them gets; empty for no comparison.
        clients: connections.
        seconds: of load; the first fifth is not counted.
        timeout: for one answer, seconds.
        on_progress: is told the fraction of the time that has passed.
    """
    start = time.perf_counter()
    begins, end = start + _LEAD * seconds, start + seconds
    tally, turns = _Tally(expected), itertools.count()

    async def client() -> None:
        connection = Connection(address, timeout)
        while (due := time.perf_counter()) < end:
            index = next(turns) % len(requests)
            reply = await connection.send(requests[index])
            if (now := time.perf_counter()) >= begins:
                tally.add(index, requests[index], reply, due, now, late=now > end)
            if reply.status in (0, *_REFUSED):
                await asyncio.sleep(0.01)  # a client that is refused does not come again at once
        await connection.close()

    await _with_progress([client() for _ in range(clients)], start, seconds, on_progress)
    return tally.row("closed", clients, end - begins)


async def open_loop(
    address: Address,
    requests: Sequence[Payload],
    expected: Sequence[bytes],
    *,
    rate: float,
    seconds: float,
    timeout: float,
    most: int = 256,
    seed: int = 0,
    on_progress: Callable[[float], None] = lambda done: None,
    on_refusal: Callable[[float, float], None] = lambda due, now: None,
) -> LoadRow:
    """Requests that arrive independently of one another, at a rate, as those of many users do (a Poisson process).

    Latency counts from when a request was due, so a server that stalls is not spared the requests of that time.

    Args:
        address: of the model.
        requests: taken in turn.
        expected: see `closed_loop`.
        rate: requests per second.
        seconds: see `closed_loop`.
        timeout: for one answer, seconds.
        most: requests under way at once; what is due beyond is not sent, and counted.
        seed: of the arrivals.
        on_progress: see `closed_loop`.
        on_refusal: is told when a request that was refused was due, and when it was, on the clock of
            `time.perf_counter`.
    """
    rng = np.random.default_rng(seed)
    start = time.perf_counter()
    begins, end = start + _LEAD * seconds, start + seconds
    tally = _Tally(expected, on_refusal)
    idle: list[Connection] = []
    under_way: set[asyncio.Task[None]] = set()

    async def one(index: int, due: float) -> None:
        connection = idle.pop() if idle else Connection(address, timeout)
        reply = await connection.send(requests[index])
        if due >= begins:
            tally.add(index, requests[index], reply, due, time.perf_counter())
        idle.append(connection)

    async def arrivals() -> None:
        due = start
        for turn in itertools.count():
            due += rng.exponential(1 / rate)
            if due >= end:
                break
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            elif turn % 16 == 0:
                await asyncio.sleep(0)  # behind: let answers in
            if len(under_way) >= most:
                tally.unsent += due >= begins
                continue
            task = asyncio.ensure_future(one(turn % len(requests), due))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        while under_way:
            await asyncio.wait(set(under_way))

    await _with_progress([arrivals()], start, seconds, on_progress)
    for connection in idle:
        await connection.close()
    return tally.row("open", rate, end - begins)


async def _with_progress(
    work: Sequence[object], start: float, seconds: float, on_progress: Callable[[float], None]
) -> None:
    async def tell() -> None:
        while True:
            on_progress(min(1.0, (time.perf_counter() - start) / seconds))
            await asyncio.sleep(0.1)

    telling = asyncio.ensure_future(tell())
    try:
        await asyncio.gather(*work)  # type: ignore[call-overload]
    finally:
        telling.cancel()
        on_progress(1.0)
