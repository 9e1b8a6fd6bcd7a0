"""What an explanation costs: the full graph against the classifier alone, cut out of the same file, interleaved in
one run.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from ..contracts import Uint8
from .engine import Engine
from .memory import peak_mib, reset_peak

__all__ = ["BenchRow", "bench_engine", "machine"]


@dataclass(frozen=True)
class BenchRow:
    """One batch size.

    Attributes:
        batch: images per call.
        targets: classes that each image is explained for.
        runs: timed pairs of calls.
        p50_ms: median latency of predict-and-explain, per call.
        p95_ms: its 95th percentile.
        predict_p50_ms: median latency of the classifier alone, per call.
        images_per_second: from the median.
        forwards: cost of prediction and explanation in units of the plain prediction: the median over pairs, each
            pair run back to back, of their times' ratio.
        forwards_low: 25th percentile of that ratio.
        forwards_high: 75th percentile.
        peak_mib: largest resident memory of the process while this batch size ran, MiB; None where the system does
            not tell.
    """

    batch: int
    targets: int
    runs: int
    p50_ms: float
    p95_ms: float
    predict_p50_ms: float
    images_per_second: float
    forwards: float
    forwards_low: float
    forwards_high: float
    peak_mib: float | None


def bench_engine(
    engine: Engine,
    batch_sizes: Sequence[int],
    *,
    seconds: float = 5.0,
    min_runs: int = 20,
    targets: int = 1,
    on_progress: Callable[[int, float], None] = lambda batch, fraction: None,
) -> list[BenchRow]:
    """Measure each batch size.

    The two graphs are called in turn, the one that goes first alternating from pair to pair, after a warm-up of both;
    so a machine whose speed drifts changes both alike.

    Args:
        engine: an opened engine.
        batch_sizes: images per call, one row each.
        seconds: timed seconds per batch size.
        min_runs: at least so many pairs, however long they take.
        targets: classes that each image is explained for.
        on_progress: told batch size and fraction done.
    """
    return [_bench(engine, batch, seconds, min_runs, targets, on_progress) for batch in batch_sizes]


def machine() -> dict[str, str | int]:
    """What the numbers were measured on."""
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
    }


def _bench(
    engine: Engine,
    batch: int,
    seconds: float,
    min_runs: int,
    targets: int,
    on_progress: Callable[[int, float], None],
) -> BenchRow:
    images = _images(engine, batch)
    classes = np.arange(targets, dtype=np.int64) % len(engine.bundle.manifest.class_names)
    asked = None if targets == 1 else np.tile(classes, (batch, 1))

    def explain(images: Uint8) -> object:
        return engine.run(images, asked)

    reset_peak()
    for _ in range(3):
        explain(images)
        engine.probabilities(images)
    full: list[float] = []
    plain: list[float] = []
    began = time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds or len(full) < min_runs:
        on_progress(batch, min(1.0, spent / seconds, len(full) / min_runs))
        calls = ((explain, full), (engine.probabilities, plain))
        for call, times in calls if len(full) % 2 == 0 else calls[::-1]:
            start = time.perf_counter()
            call(images)
            times.append(time.perf_counter() - start)
    ratios = np.asarray(full) / np.asarray(plain)
    p50 = float(np.median(full))
    return BenchRow(
        batch=batch,
        targets=targets,
        runs=len(full),
        p50_ms=p50 * 1e3,
        p95_ms=float(np.percentile(full, 95)) * 1e3,
        predict_p50_ms=float(np.median(plain)) * 1e3,
        images_per_second=batch / p50,
        forwards=float(np.median(ratios)),
        forwards_low=float(np.percentile(ratios, 25)),
        forwards_high=float(np.percentile(ratios, 75)),
        peak_mib=peak_mib(),
    )


def _images(engine: Engine, batch: int) -> Uint8:
    """The bundle's golden images, repeated to the batch."""
    golden = engine.bundle.golden.images
    return np.ascontiguousarray(golden[np.arange(batch) % len(golden)])


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as stream:
            for line in stream:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
