"""What one client waits for beyond the engine.

A process keeps for its life what its memory happens to be: of two that compute the same, one may take a fiftieth
longer, which is more than a server adds. So the engine that is called alone is the very one of the server, called in
the server's process while no request is under way: the two take short turns, in several servers. What the server says
of its computation divides what it adds into what passes outside of it, and how much longer it computes for a client.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import numpy as np

from saccade.accel.engine import Engine
from saccade.accel.engines import open_engine
from saccade.accel.event_loop import run
from saccade.accel.serve.config import ServeConfig
from saccade.accel.serve.server import Server, run_server
from saccade.accel.serve.service import Service
from saccade.accel.traffic.connection import Connection
from saccade.accel.traffic.payload import Address, Payload
from saccade.contracts import Floats

__all__ = ["latency"]

TURNS, SECONDS = 64, 0.3  # as short as they may be, since a machine is slower for seconds
SETTLE = 0.25  # of a turn, not counted
TIMEOUT = 60.0
Turn = Callable[[], list[float]]


def latency(bundle: Path, requests_for: Callable[[Address], list[Payload]], servers: int) -> dict[str, Any]:
    """Milliseconds of one client, over those of one call of the server's engine after the other: of neighbouring turns,
    medians over all turns of all servers.

    Args:
        bundle: folder.
        requests_for: makes requests for a served model.
        servers: how many are started, one after the other.
    """
    found = []
    for _ in range(servers):
        with server_process(bundle) as (address, alone):
            requests = requests_for(address)
            served, computed, bare = [], [], []
            for turn in range(2 * TURNS):
                if turn % 4 in (0, 3):
                    bare.append(statistics.median(alone()))
                else:
                    answers = run(_client(address, requests))
                    served.append(statistics.median(took for took, _ in answers))
                    computed.append(statistics.median(compute for _, compute in answers))
        found.append(np.array([bare, served, computed]))
    turns = np.stack(found, 1)
    bare, served, computed = turns
    return {
        "engine_ms": _middle(bare),
        "served_ms": _middle(served),
        "added_ms": _middle(served - bare),
        "added_ms_quartiles": [round(float(value), 3) for value in np.percentile(served - bare, [25, 75])],
        "outside_computation_ms": _middle(served - computed),
        "computation_over_engine_ms": _middle(computed - bare),
        "added_ms_of_servers": [_middle(row) for row in served - bare],
    }


def _middle(values: Floats) -> float:
    return round(float(np.median(values)), 3)


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
def server_process(bundle: Path) -> Iterator[tuple[Address, Turn]]:
    """What `saccade serve` starts, in a process of its own: its address, and what lets its engine take a turn alone,
    and gives milliseconds.
    """
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(bundle, there), daemon=True)
    process.start()
    there.close()

    def turn() -> list[float]:
        here.send(True)
        found: list[float] = here.recv()
        return found

    try:
        yield Address("127.0.0.1", here.recv(), "model"), turn
    finally:
        here.close()
        process.join(60)


def _serve(bundle: Path, pipe: Pipe) -> None:
    engines: list[Engine] = []

    def opened(folder: Path) -> Engine:
        engines.append(open_engine(folder, threads=1))
        return engines[-1]

    def tell(server: Server) -> None:
        threading.Thread(target=_turns, args=(engines[0], pipe), daemon=True).start()
        pipe.send(server.port)

    run_server(Service({"model": bundle}, opened, ServeConfig(port=0, grpc_port=None)), tell)


def _turns(engine: Engine, pipe: Pipe) -> None:
    """The engine alone, whenever the pipe asks for it; the process ends with the pipe."""
    size = engine.bundle.manifest.image.size
    images = np.random.default_rng(0).integers(0, 256, (4, 1, *size, 3), dtype=np.uint8)
    with contextlib.suppress(EOFError):
        while pipe.recv():
            found = []
            start = time.perf_counter()
            while (began := time.perf_counter()) < start + SECONDS:
                engine.run(images[len(found) % len(images)])
                found.append((began - start, (time.perf_counter() - began) * 1e3))
            pipe.send([took for since, took in found if since > SETTLE * SECONDS])
    os.kill(os.getpid(), signal.SIGTERM)
