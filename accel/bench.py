"""What an explanation costs: engines side by side, and each one's full graph against the classifier alone, cut out of
the same file; all interleaved in one run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..contracts import Explanation, Uint8
from ..errors import SaccadeError
from .engine import Engine
from .golden import golden_precision
from .gpu import free_bytes
from .memory import peak_mib, reset_peak, resident_mib

__all__ = ["BenchRow", "Candidate", "bench_engine", "bench_engines"]

_WARM_UP = 3  # calls: the first compiles, the second records graphs, the third is as all others


@dataclass(frozen=True)
class Candidate:
    """An engine that takes part.

    Attributes:
        name: what its rows are called.
        open: opens it, so that its memory can be told from what was there.
    """

    name: str
    open: Callable[[], Engine]


@dataclass(frozen=True)
class BenchRow:
    """One engine and batch size.

    Attributes:
        engine: name of the candidate.
        precision: of its graph.
        batch: images per call.
        targets: classes that each image is explained for.
        runs: timed pairs of calls.
        p50_ms: median latency of predict-and-explain, per call.
        p95_ms: its 95th percentile.
        p99_ms: its 99th percentile.
        predict_p50_ms: median latency of the classifier alone on the same engine, per call.
        images_per_second: from the median.
        forwards: cost of prediction and explanation in units of the plain prediction: the median over pairs, each
            pair run back to back, of their times' ratio.
        forwards_low: 25th percentile of that ratio.
        forwards_high: 75th percentile.
        memory_mib: what the engine added to the process at most, from before it was opened until this batch size was
            warm, MiB; None where the system does not tell.
        gpu_mib: the same of the GPU's memory; None without one.
        mask_max_abs: largest difference of a mask from PyTorch's on the golden samples.
        mask_cosine: smallest cosine with them.
    """

    engine: str
    precision: str
    batch: int
    targets: int
    runs: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    predict_p50_ms: float
    images_per_second: float
    forwards: float
    forwards_low: float
    forwards_high: float
    memory_mib: float | None
    gpu_mib: float | None
    mask_max_abs: float
    mask_cosine: float


def bench_engine(
    engine: Engine,
    batch_sizes: Sequence[int],
    *,
    seconds: float = 5.0,
    min_runs: int = 20,
    targets: int = 1,
    on_progress: Callable[[int, float], None] = lambda batch, fraction: None,
) -> list[BenchRow]:
    """Measure one engine that is open already; see `bench_engines`."""
    candidate = Candidate(engine.name, lambda: engine)
    return bench_engines(
        [candidate], batch_sizes, seconds=seconds, min_runs=min_runs, targets=targets, on_progress=on_progress
    )


def bench_engines(
    candidates: Sequence[Candidate],
    batch_sizes: Sequence[int],
    *,
    seconds: float = 5.0,
    min_runs: int = 20,
    targets: int = 1,
    on_progress: Callable[[int, float], None] = lambda batch, fraction: None,
    on_open: Callable[[], None] = lambda: None,
    on_failure: Callable[[str, SaccadeError], None] | None = None,
) -> list[BenchRow]:
    """Measure each batch size on each engine.

    The engines are called in turn, each with its full graph and its classifier alone, the one that goes first
    alternating from round to round, after a warm-up of all; so a machine whose speed drifts changes all alike.

    Args:
        candidates: the engines.
        batch_sizes: images per call, one row each and engine.
        seconds: timed seconds per batch size and engine.
        min_runs: at least so many rounds, however long they take.
        targets: classes that each image is explained for.
        on_progress: told batch size and fraction done.
        on_open: told that one more engine is warm, or has failed.
        on_failure: told the name of an engine that cannot run the bundle, and why; the others go on. None raises it.

    Returns:
        Rows by batch size, and then in the order of the candidates.
    """
    runners = []
    for candidate in candidates:
        try:
            runners.append(_Runner.opened(candidate, sorted(batch_sizes), targets))
        except SaccadeError as error:
            if on_failure is None:
                raise
            on_failure(candidate.name, error)
        on_open()
    rows: list[BenchRow] = []
    if not runners:
        return rows
    for batch in batch_sizes:
        began = time.perf_counter()
        rounds, limit = 0, seconds * len(runners)
        for runner in runners:
            runner.full.clear()
            runner.plain.clear()
        while (spent := time.perf_counter() - began) < limit or rounds < min_runs:
            on_progress(batch, min(1.0, spent / limit, rounds / min_runs))
            start = rounds % len(runners)
            for runner in runners[start:] + runners[:start]:
                runner.time(batch, explanation_first=rounds // len(runners) % 2 == 0)
            rounds += 1
        on_progress(batch, 1.0)
        rows += [runner.row(batch) for runner in runners]
    return rows


@dataclass
class _Runner:
    """One engine while it is measured."""

    name: str
    engine: Engine
    targets: int
    memory: dict[int, tuple[float | None, float | None]]
    parity: tuple[float, float]
    images: dict[int, Uint8]
    full: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)

    @classmethod
    def opened(cls, candidate: Candidate, batch_sizes: Sequence[int], targets: int) -> _Runner:
        """Open it and run every batch size until it is warm, noting the memory that this takes."""
        free, before = free_bytes(), resident_mib()  # in this order: the first takes memory for itself
        reset_peak()
        engine = candidate.open()
        golden = engine.bundle.golden.images
        images = {batch: np.ascontiguousarray(golden[np.arange(batch) % len(golden)]) for batch in batch_sizes}
        runner = cls(candidate.name, engine, targets, {}, (0.0, 0.0), images)
        for batch in batch_sizes:
            for _ in range(_WARM_UP):
                runner.explain(batch)
                engine.probabilities(images[batch])
            peak, now = peak_mib(), free_bytes()
            runner.memory[batch] = (
                None if peak is None or before is None else max(0.0, peak - before),
                None if free is None or now is None else (free - now) / 2**20,
            )
        found = golden_precision(engine)
        runner.parity = (found.mask_max_abs, found.mask_cosine)
        return runner

    def explain(self, batch: int) -> Explanation:
        classes = np.arange(self.targets, dtype=np.int64) % len(self.engine.bundle.manifest.class_names)
        asked = None if self.targets == 1 else np.tile(classes, (batch, 1))
        return self.engine.run(self.images[batch], asked)

    def time(self, batch: int, *, explanation_first: bool) -> None:
        calls = (
            (lambda: self.explain(batch), self.full),
            (lambda: self.engine.probabilities(self.images[batch]), self.plain),
        )
        for call, times in calls if explanation_first else calls[::-1]:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)

    def row(self, batch: int) -> BenchRow:
        ratios = np.asarray(self.full) / np.asarray(self.plain)
        p50 = float(np.median(self.full))
        memory, gpu = self.memory[batch]
        return BenchRow(
            engine=self.name,
            precision=self.engine.precision,
            batch=batch,
            targets=self.targets,
            runs=len(self.full),
            p50_ms=p50 * 1e3,
            p95_ms=float(np.percentile(self.full, 95)) * 1e3,
            p99_ms=float(np.percentile(self.full, 99)) * 1e3,
            predict_p50_ms=float(np.median(self.plain)) * 1e3,
            images_per_second=batch / p50,
            forwards=float(np.median(ratios)),
            forwards_low=float(np.percentile(ratios, 25)),
            forwards_high=float(np.percentile(ratios, 75)),
            memory_mib=memory,
            gpu_mib=gpu,
            mask_max_abs=self.parity[0],
            mask_cosine=self.parity[1],
        )
