"""Do bounded queues of Triton's dynamic batcher let requests wait while instances are idle? Bursts of requests, and how
long the last answer takes; configurations in turn.

    python benchmarks/triton_queues.py BUNDLE [--bursts 8] [--requests 96]
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import triton_server

from saccade.accel.bundle import open_bundle
from saccade.accel.oip_client import OipClient
from saccade.errors import EngineError
from saccade.export.triton_server.model_config import parse_config, write_config
from saccade.export.triton_server.repository import deploy
from saccade.export.triton_server.settings import TritonSettings

CONFIGURATIONS: dict[str, dict[str, Any] | None] = {
    "no batcher": None,
    "batcher, no bound": {},
    "batcher, queue of N": {"max_queue_size": 0},
    "batcher, queue of N, time-out of 20 s": {"max_queue_size": 0, "default_timeout_microseconds": 20_000_000},
    "batches of one, queue of N": {"max_queue_size": 0, "one": True},
}


def configure(folder: Path, policy: dict[str, Any] | None, requests: int) -> None:
    """Give a written model another queue."""
    config = parse_config((folder / "config.pbtxt").read_bytes())
    config.ClearField("dynamic_batching")
    if policy is not None:
        config.dynamic_batching.SetInParent()
        if policy.get("one"):
            config.dynamic_batching.preferred_batch_size.append(1)
        if "max_queue_size" in policy:
            queue = config.dynamic_batching.default_queue_policy
            queue.max_queue_size = requests
            queue.default_timeout_microseconds = policy.get("default_timeout_microseconds", 0)
    (folder / "config.pbtxt").write_bytes(write_config(config))


def burst(clients: list[OipClient], model: str, feeds: dict[str, Any]) -> tuple[float, int]:
    """Seconds until the last answer of requests that are sent together, and how many were refused."""
    together = threading.Barrier(len(clients) + 1)

    def ask(client: OipClient) -> bool:
        together.wait()
        try:
            client.infer(model, feeds, ["probabilities"])
        except EngineError:
            return False
        return True

    with ThreadPoolExecutor(len(clients)) as threads:
        waiting = [threads.submit(ask, client) for client in clients]
        together.wait()
        began = time.perf_counter()
        answered = sum(one.result() for one in waiting)
    return time.perf_counter() - began, len(clients) - answered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--bursts", type=int, default=8)
    parser.add_argument("--requests", type=int, default=96)
    chosen = parser.parse_args()
    bundle = open_bundle(chosen.bundle)
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        repository = Path(temporary) / "models"
        models = {}
        for instances in (1, 2):
            for number, (title, policy) in enumerate(CONFIGURATIONS.items()):
                name = f"m{number}_{instances}"
                deploy([bundle], repository, TritonSettings(instances=instances, images=False, name=name))
                shutil.rmtree(repository / f"{name}_classifier")
                configure(repository / name, policy, chosen.requests)
                models[name] = (title, instances)
        server = stack.enter_context(triton_server.running_server(repository, Path(temporary) / "log.txt"))
        clients = [stack.enter_context(contextlib.closing(OipClient(server.url))) for _ in range(chosen.requests)]
        feeds = {"image": bundle.golden.images[:1], "target": np.full((1, 1), -1)}
        measured: dict[str, list[tuple[float, int]]] = {name: [] for name in models}
        for _ in range(chosen.bursts):
            for name in models:
                measured[name].append(burst(clients, name, feeds))
        print(f"seconds per burst of {chosen.requests}, least, median and most of {chosen.bursts}")
        for name, (title, instances) in models.items():
            seconds = sorted(one for one, _ in measured[name])
            refused = sum(count for _, count in measured[name])
            print(
                f"{title:40} {instances} instance(s)  {seconds[0]:6.3f} {seconds[len(seconds) // 2]:6.3f} "
                f"{seconds[-1]:6.3f}   {refused} refused"
            )


if __name__ == "__main__":
    main()
