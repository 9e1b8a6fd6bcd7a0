"""What one client waits for beyond the engine.

A process keeps for its life what its memory happens to be: of two that compute the same, one may take a fiftieth
longer. So each measurement has a server and an engine that are both new, which take short turns, and there are several.
What the server says of its computation divides what it adds into the two: what passes outside the computation, and how
much longer it computes than the engine beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import numpy as np

from saccade.accel.bundle import open_bundle
from saccade.accel.engines import open_engine
from saccade.accel.traffic.connection import Connection
from saccade.accel.traffic.payload import Address, Payload

__all__ = ["latency"]

TURNS, SECONDS = 6, 2.0
SETTLE = 0.2  # of a turn, not counted
TIMEOUT = 60.0


def latency(
    bundle: Path,
    serve: Callable[[], AbstractContextManager[tuple[Address, int]]],
    requests_for: Callable[[Address], list[Payload]],
    pairs: int,
) -> dict[str, Any]:
    """Milliseconds of one client, over those of one call of the engine after the other.

    Args:
        bundle: folder.
        serve: starts a server of it.
        requests_for: it.
        pairs: of new servers and engines.
    """
    rows = []
    for _ in range(pairs):
        with serve() as (address, _process), engine_process(bundle) as alone:
            requests = requests_for(address)
            served, computed, bare = [], [], []
            for turn in range(2 * TURNS):
                if turn % 4 in (0, 3):
                    bare.append(statistics.median(alone()))
                else:
                    answers = asyncio.run(_client(address, requests))
                    served.append(statistics.median(took for took, _ in answers))
                    computed.append(statistics.median(compute for _, compute in answers))
        rows.append([statistics.median(values) for values in (bare, served, computed)])
    return {
        "engine_ms": _middle([bare for bare, _, _ in rows]),
        "served_ms": _middle([served for _, served, _ in rows]),
        "added_ms": _middle([served - bare for bare, served, _ in rows]),
        "outside_computation_ms": _middle([served - computed for _, served, computed in rows]),
        "computation_over_engine_ms": _middle([computed - bare for bare, _, computed in rows]),
        "pairs": {
            "engine_ms, served_ms, computed_ms": [[round(value, 3) for value in row] for row in rows],
            "added_ms": [round(served - bare, 3) for bare, served, _ in rows],
        },
    }


def _middle(values: list[float]) -> float:
    return round(statistics.median(values), 3)


async def _client(address: Address, requests: list[Payload]) -> list[tuple[float, float]]:
    """One turn of the client: of each answer the milliseconds that it took, and that it says it was computed in."""
    connection, found = Connection(address, TIMEOUT), []
    start = time.perf_counter()
    while (began := time.perf_counter()) < start + SECONDS:
        reply = await connection.send(requests[len(found) % len(requests)])
        took = time.perf_counter() - began
        assert reply.status == 200, reply.reason
        found.append((began - start, took * 1e3, json.loads(reply.document)["parameters"]["compute_ms"]))
    await connection.close()
    return [(took, compute) for since, took, compute in found if since > SETTLE * SECONDS]


@contextlib.contextmanager
def engine_process(bundle: Path) -> Iterator[Callable[[], list[float]]]:
    """The engine in a process of its own; what it gives takes a turn, and gives milliseconds."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_engine, args=(bundle, there), daemon=True)
    process.start()

    def turn() -> list[float]:
        here.send(True)
        found: list[float] = here.recv()
        return found

    try:
        assert here.recv() == "ready"
        yield turn
    finally:
        here.close()
        process.join(60)


def _engine(bundle: Path, pipe: Pipe) -> None:
    opened = open_bundle(bundle)
    engine = open_engine(opened, threads=1)
    images = np.random.default_rng(0).integers(0, 256, (4, 1, *opened.manifest.image.size, 3), dtype=np.uint8)
    engine.run(images[0])
    pipe.send("ready")
    with contextlib.suppress(EOFError):
        while pipe.recv():
            found = []
            start = time.perf_counter()
            while (began := time.perf_counter()) < start + SECONDS:
                engine.run(images[len(found) % len(images)])
                found.append((began - start, (time.perf_counter() - began) * 1e3))
            pipe.send([took for since, took in found if since > SETTLE * SECONDS])
