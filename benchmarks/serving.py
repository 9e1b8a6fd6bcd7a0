"""`saccade serve` beside the bare engine and the real Triton server, on the same cores as the client.

    python benchmarks/serving.py                                  throughput, latency and overload, ResNet-50 and scenes
    python benchmarks/serving.py --only overload --seconds 60

Throughput: images/s at saturation over HTTP with binary tensors, one image a request, prediction and mask; the bare
engine is called by as many threads as there are cores, one thread an operator. Servers and engine take turns.
Latency: one client, beside one call of the server's engine after the other, of several servers
(`serving_latency.py`). Overload: five times the throughput, as a Poisson process, for as many minutes as are told, each
reported, with the slowest refusal as it was and without the time in which a core of the machine stood still meanwhile
(`stops.py`). Writes benchmarks/results/serving.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import triton_server
from brief_training import briefly_trained, bundle_of
from cost import MODELS
from rich.console import Console
from rich.table import Table
from serving_latency import latency
from stops import Stops, watched_stops

from saccade.accel.bundle import Bundle, open_bundle
from saccade.accel.engines import open_engine
from saccade.accel.event_loop import run
from saccade.accel.machine import core_count, machine
from saccade.accel.serve.server import set_aside
from saccade.accel.traffic.load import LoadRow, closed_loop, open_loop
from saccade.accel.traffic.payload import Address, Payload, payloads
from saccade.evaluate.weights_folder import WEIGHTS
from saccade.export.triton_server.repository import deploy
from saccade.export.triton_server.settings import TritonSettings
from saccade.export.write_bundle import export_trained
from saccade.methods.checkpoint import load_checkpoint

RESULTS = Path(__file__).parent / "results" / "serving.json"
CLIENTS = 8
TIMEOUT = 60.0
OVERLOAD = 5


def scenes_bundle(folder: Path) -> Bundle:
    from saccade.cli.data import sample_images

    explainer, record = load_checkpoint(WEIGHTS / "scenes_resnet_ltx_shared")
    return export_trained(explainer, record, sample_images("scenes", record.image_spec), folder)


def resnet_bundle(folder: Path) -> Bundle:
    return bundle_of(briefly_trained(next(title for title in MODELS if title.startswith("ResNet-50,"))), folder)


BUNDLES: dict[str, Callable[[Path], Bundle]] = {"ResNet-50": resnet_bundle, "scenes": scenes_bundle}


@contextlib.contextmanager
def saccade_server(bundle: Path, log: Path) -> Iterator[tuple[Address, int]]:
    """The command in a process of its own: address and process id."""
    program = "from saccade.cli.main import main; main()"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", program, "serve", f"model={bundle}", "--port", "0", "--no-grpc", "--json-logs"],
            stderr=stream,
        )
    try:
        port = None
        while port is None:
            assert process.poll() is None, log.read_text()
            lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
            port = next((line["http"].rsplit(":", 1)[1] for line in lines if "http" in line), None)
            time.sleep(0.1)
        yield Address("127.0.0.1", int(port), "model"), process.pid
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def real_triton(bundle: Path, folder: Path) -> Iterator[Address | None]:
    """The real server with the repository that `saccade deploy triton` writes; None where it is not installed."""
    if not triton_server.installed():
        yield None
        return
    deploy([open_bundle(bundle)], folder / "repository", TritonSettings(name="model"))
    with triton_server.running_server(folder / "repository", folder / "triton.log") as server:
        yield Address("127.0.0.1", int(server.url.rsplit(":", 1)[1]), "model")


class Bare:
    """The engine alone, called by threads."""

    def __init__(self, bundle: Bundle) -> None:
        self.engine = open_engine(bundle, threads=1)
        self.images = np.random.default_rng(0).integers(0, 256, (4, 1, *bundle.manifest.image.size, 3), dtype=np.uint8)
        self.engine.run(self.images[0])

    def run(self, threads: int, seconds: float) -> tuple[float, list[float]]:
        """Images/s of so many threads, an image each, and the seconds of each call; counted as of the servers: what
        ends after the first fifth of the time, and before its end.
        """
        times: list[float] = []
        start = time.perf_counter()
        begins, end = start + seconds / 5, start + seconds

        def call() -> None:
            turn = 0
            while (began := time.perf_counter()) < end:
                self.engine.run(self.images[turn % 4])
                if begins <= (now := time.perf_counter()) <= end:
                    times.append(now - began)
                turn += 1

        workers = [threading.Thread(target=call) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return len(times) / (end - begins), times

    def answers(self, requests: list[Payload]) -> list[bytes]:
        """What a server has to answer: prediction and mask of the pixels in each request, one thread as there."""
        found = []
        for request in requests:
            length = int(request.head.split(b"Inference-Header-Content-Length: ")[1].split(b"\r\n")[0])
            pixels = np.frombuffer(request.body[length : length + self.images[0].nbytes], np.uint8)
            answer = self.engine.run(pixels.reshape(self.images[0].shape))
            found.append(answer.probabilities.tobytes() + answer.mask.tobytes())
        return found


OUTPUTS = ("probabilities", "mask")


def requests_for(address: Address) -> list[Payload]:
    with address.client as client:
        return payloads(address, client.metadata(address.model), outputs=OUTPUTS)


def loaded(address: Address, engine: Bare, clients: int, seconds: float) -> LoadRow:
    requests = requests_for(address)
    expected = engine.answers(requests)
    return _run(closed_loop(address, requests, expected, clients=clients, seconds=seconds, timeout=TIMEOUT))


def overloaded(
    address: Address, engine: Bare, rate: float, seconds: float, on_refusal: Callable[[float, float], None]
) -> LoadRow:
    requests = requests_for(address)
    expected = engine.answers(requests)
    set_aside()  # or the clients' own collections of garbage are taken for the server's slowness
    load = open_loop(
        address, requests, expected, rate=rate, seconds=seconds, timeout=TIMEOUT, most=500, on_refusal=on_refusal
    )
    return _run(load)


def _run(work: Any) -> LoadRow:
    row: LoadRow = run(work)
    return row


def memory_mib(process: int) -> float:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def throughput(engine: Bare, served: Address, rival: Address | None, rounds: int, seconds: float) -> dict[str, Any]:
    """Images/s, round by round."""
    found: dict[str, list[float]] = {"engine": [], "saccade": [], "triton": []}
    wrong = {"saccade": 0, "triton": 0}
    for turn in range(rounds):
        for name in ("engine", "saccade", "triton") if turn % 2 == 0 else ("triton", "saccade", "engine"):
            if name == "engine":
                found[name].append(engine.run(core_count(), seconds)[0])
            elif (address := served if name == "saccade" else rival) is not None:
                row = loaded(address, engine, CLIENTS, seconds)
                found[name].append(row.images_per_second)
                wrong[name] += row.wrong + row.failed + row.refused
    of_engine = [own / bare for own, bare in zip(found["saccade"], found["engine"], strict=True)]
    of_triton = [own / other for own, other in zip(found["saccade"], found["triton"], strict=False)]
    return {
        "images_per_second": {name: round(statistics.median(values), 1) for name, values in found.items() if values},
        "of_engine": round(statistics.median(of_engine), 3),
        "of_triton": round(statistics.median(of_triton), 3) if of_triton else None,
        "triton": "2.51, ONNX Runtime through its Python backend" if of_triton else None,
        "rounds": {name: [round(value, 1) for value in values] for name, values in found.items()},
        "wrong_failed_or_refused": wrong,
    }


def overload(engine: Bare, served: Address, process: int, capacity: float, seconds: float) -> dict[str, Any]:
    """What a server does with five times what it can carry."""
    memory: list[float] = []
    refusals: list[tuple[float, float]] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            memory.append(memory_mib(process))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with watched_stops() as stops:
        row = overloaded(served, engine, OVERLOAD * capacity, seconds, lambda due, now: refusals.append((due, now)))
    done.set()
    watcher.join()
    after = loaded(served, engine, CLIENTS, 3)
    fifth = len(memory) // 5
    return {
        **vars(row),
        "p99_over_p50": None if row.p99_ms is None or row.p50_ms is None else round(row.p99_ms / row.p50_ms, 2),
        "refusal_max_ms_without_stops_of_any_core": _ms_without(stops, refusals, 1),
        "refusal_max_ms_without_stops_of_all_cores": _ms_without(stops, refusals, len(stops.times)),
        "stop_max_ms": round(stops.max_ms, 1),
        "memory_mib_after_a_fifth": round(max(memory[: fifth + 1]), 1),
        "memory_mib_at_the_end": round(max(memory[-fifth:]), 1),
        "images_per_second_afterwards": round(after.images_per_second, 1),
    }


def _ms_without(stops: Stops, refusals: list[tuple[float, float]], cores: int) -> float | None:
    """The slowest refusal, but for the time in which so many cores stood: of any, at least; of all of them, at most."""
    if not refusals or not stops.realtime:
        return None
    return round(max(now - due - stops.within(due, now, cores=cores) for due, now in refusals) * 1e3, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=list(BUNDLES), default=list(BUNDLES))
    parser.add_argument("--only", nargs="*", choices=["throughput", "latency", "overload"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6, help="of each turn")
    parser.add_argument("--servers", type=int, default=6, help="new ones, for the latency")
    parser.add_argument("--overload-seconds", type=float, default=60)
    parser.add_argument("--minutes", type=int, default=1, help="how many times those of overload")
    parser.add_argument("--bundles", type=Path, help="where bundles are kept for the next run of the same code")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    parts = arguments.only or ["throughput", "latency", "overload"]
    rows: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            kept = (arguments.bundles or folder) / model
            bundle = open_bundle(kept) if kept.exists() else BUNDLES[model](kept)
            engine = Bare(bundle)
            row = rows.setdefault(model, {})
            with saccade_server(bundle.path, folder / "serve.log") as (served, process):
                if "throughput" in parts:
                    with real_triton(bundle.path, folder) as rival:
                        row["throughput"] = throughput(engine, served, rival, arguments.rounds, arguments.seconds)
                if "overload" in parts:
                    capacity = loaded(served, engine, CLIENTS, arguments.seconds).images_per_second
                    row["overload"] = [
                        overload(engine, served, process, capacity, arguments.overload_seconds)
                        for _ in range(arguments.minutes)
                    ]
            if "latency" in parts:
                row["latency"] = latency(bundle.path, requests_for, arguments.servers)
            row["machine"] = machine()
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n")
    table = Table("model", "measured", "value", box=None)
    for model, row in rows.items():
        for part in ("throughput", "latency", "overload"):
            found = row.get(part, [])
            for values in found if isinstance(found, list) else [found]:
                for name, value in values.items():
                    table.add_row(model, f"{part}: {name}", json.dumps(value))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
