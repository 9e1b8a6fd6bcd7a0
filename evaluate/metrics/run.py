"""Run metrics over a stream of samples: every altered copy once, in large batches, nothing kept but the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...contracts import Uint8
from ...errors import UsageError
from .metric import Metric
from .probes import PREDICT, Probe
from .sample import Sample

__all__ = ["Explain", "Predict", "measure"]

Predict = Callable[[Uint8], NDArray[Any]]
"""From images uint8 (B, H, W, 3) to probabilities (B, K)."""

Explain = Callable[[Uint8, NDArray[np.int64]], NDArray[Any]]
"""From images uint8 (B, H, W, 3) and the classes to explain, int64 (B,), to masks (B, H, W)."""


def measure(
    metrics: Sequence[Metric],
    samples: Iterable[Sample],
    predict: Predict,
    *,
    explainers: Mapping[str, Explain] | None = None,
    batch_size: int = 64,
    on_done: Callable[[int], None] = lambda done: None,
) -> dict[str, NDArray[np.float64]]:
    """Rows of every metric over all samples.

    Copies of several images share a batch, and metrics that want the same copy share its forward. In memory are one
    batch of copies and the images that wait for it, however many samples there are; of each sample only the rows stay.

    Args:
        metrics: with different names.
        samples: images of one size with their masks; read once.
        predict: the classifier.
        explainers: who gives masks, by the name that probes ask for: ``"explain"`` for the sensitivity to noise,
            ``"randomised"`` for the sanity check.
        batch_size: copies per call.
        on_done: told the number of samples done.

    Returns:
        For each metric's name its rows (N, L), in the order of the samples.

    Raises:
        UsageError: no samples, images of different sizes, a metric without its ground truth or its explainer.
    """
    names = [metric.name for metric in metrics]
    if len(set(names)) < len(names):
        raise UsageError(f"two metrics have the same name: {', '.join(names)}; give one of them another `name`")
    oracles: dict[str, Explain] = {PREDICT: lambda images, target: predict(images), **(explainers or {})}
    queues: dict[str, _Queue] = {}
    rows: dict[str, list[NDArray[np.float64] | None]] = {metric.name: [] for metric in metrics}
    done = 0
    shape: tuple[int, ...] | None = None
    for index, sample in enumerate(samples):
        shape = shape or sample.image.shape
        if sample.image.shape != shape:
            raise UsageError(f"{sample.name}: {sample.image.shape[:2]} pixels, but the first image had another size")
        for metric in metrics:
            rows[metric.name].append(None)
        task = _Task(index, sample, list(metrics))
        for probe in task.wanted():
            if probe.asks not in oracles:
                raise UsageError(f"a metric asks for the explainer '{probe.asks}', which was not given")
            if probe.asks not in queues:
                queues[probe.asks] = _Queue(oracles[probe.asks], batch_size, shape)
            queues[probe.asks].add(task, probe)
        done += _collect([task], queues.values(), rows)
        on_done(done)
    for queue in queues.values():
        queue.flush()
    done += _collect([], queues.values(), rows)
    on_done(done)
    if not done:
        raise UsageError("there is no image to measure on")
    return {name: np.stack([row for row in found if row is not None]) for name, found in rows.items()}


@dataclass(eq=False)
class _Task:
    """A sample whose copies are on their way."""

    index: int
    sample: Sample
    metrics: list[Metric]
    answers: dict[Probe, Any] = field(default_factory=dict)
    waiting: int = 0

    def wanted(self) -> list[Probe]:
        """Each probe once."""
        for metric in self.metrics:
            if metric.needs_evidence and self.sample.evidence is None:
                raise UsageError(f"{self.sample.name}: the metric '{metric.name}' needs ground truth")
        unique = dict.fromkeys(probe for metric in self.metrics for probe in metric.probes(self.sample))
        self.waiting = len(unique)
        return list(unique)


@dataclass(eq=False)
class _Part:
    """Copies of one probe, and what is there of their answers."""

    task: _Task
    probe: Probe
    notes: NDArray[np.float64] | None
    count: int
    outputs: list[NDArray[Any]] = field(default_factory=list)


class _Queue:
    """Fills batches for one who answers."""

    def __init__(self, oracle: Explain, batch_size: int, shape: tuple[int, ...]) -> None:
        if batch_size < 1:
            raise UsageError(f"a batch has at least one image, not {batch_size}")
        self.oracle = oracle
        self.buffer = np.empty((batch_size, *shape), dtype=np.uint8)
        self.filled = 0
        self.spans: list[tuple[_Part, int, int]] = []
        self.finished: list[_Task] = []

    def add(self, task: _Task, probe: Probe) -> None:
        """Put the probe's copies into the batch, and ask whenever it is full."""
        copies, notes = probe.render(task.sample)
        part = _Part(task, probe, notes, len(copies))
        taken = 0
        while taken < len(copies):
            count = min(len(copies) - taken, len(self.buffer) - self.filled)
            self.buffer[self.filled : self.filled + count] = copies[taken : taken + count]
            self.spans.append((part, self.filled, self.filled + count))
            self.filled += count
            taken += count
            if self.filled == len(self.buffer):
                self.flush()

    def flush(self) -> None:
        """Ask about what is in the batch, and hand out the answers."""
        if not self.filled:
            return
        target = np.array([part.task.sample.target for part, start, stop in self.spans for _ in range(start, stop)])
        answers = np.array(self.oracle(self.buffer[: self.filled], target))  # a copy: it may be a view of the batch
        if answers.ndim < 1 or len(answers) != self.filled:
            raise UsageError(f"a batch of {self.filled} images got {len(answers) if answers.ndim else 1} answers")
        if not np.isfinite(answers).all():
            raise UsageError("the classifier or the explainer gave an answer that is not finite")
        for part, start, stop in self.spans:
            part.outputs.append(answers[start:stop])
            if sum(map(len, part.outputs)) == part.count:
                task = part.task
                task.answers[part.probe] = part.probe.digest(task.sample, np.concatenate(part.outputs), part.notes)
                task.waiting -= 1
                if task.waiting == 0:
                    self.finished.append(task)
        self.spans.clear()
        self.filled = 0


def _collect(
    fresh: Sequence[_Task], queues: Iterable[_Queue], rows: dict[str, list[NDArray[np.float64] | None]]
) -> int:
    """Turn the answers of finished tasks into rows; how many there were."""
    finished: Iterator[_Task] = (
        task for tasks in (fresh, *(queue.finished for queue in queues)) for task in tasks if not task.waiting
    )
    count = 0
    for task in dict.fromkeys(finished):
        for metric in task.metrics:
            rows[metric.name][task.index] = np.asarray(metric.row(task.sample, task.answers), dtype=np.float64)
        count += 1
    for queue in queues:
        queue.finished.clear()
    return count
