"""Counters and latencies, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .dispatcher import Finished
from .model import ServedModel

__all__ = ["CONTENT_TYPE", "Metrics", "Totals"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Totals:
    """What there was of a model.

    Attributes:
        images: that were predicted.
        executions: calls of the engine.
        failures: requests without an answer.
        times: number and nanoseconds of what the answered requests took: ``"success"`` in all, ``"queue"`` and
            ``"compute_infer"``.
    """

    images: int
    executions: int
    failures: int
    times: dict[str, tuple[int, int]]


class Metrics:
    """What is counted, in a registry of its own.

    Args:
        waiting: tells the number of requests that wait.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self._children: dict[tuple[str, str], tuple[Any, ...]] = {}  # looked up once, since that costs as much as all
        by_model: dict[str, Any] = {"labelnames": ("model",), "registry": self.registry}
        self._requests = Counter(
            "saccade_requests",
            "Requests by outcome: answered, invalid, refused, expired, cancelled, failed.",
            ("model", "protocol", "outcome"),
            registry=self.registry,
        )
        self._images = Counter("saccade_images", "Images that were predicted.", **by_model)
        self._explained = Counter("saccade_explained_images", "Images that were explained as well.", **by_model)
        self._queue = Histogram(
            "saccade_queue_seconds", "From acceptance until the computation began.", buckets=_SECONDS, **by_model
        )
        self._compute = Histogram(
            "saccade_compute_seconds", "Of a request, decoding included.", buckets=_SECONDS, **by_model
        )
        self._request = Histogram(
            "saccade_request_seconds", "From the request's arrival until its answer.", buckets=_SECONDS, **by_model
        )
        self._batch = Histogram(
            "saccade_batch_images", "Images that went through the engine together.", buckets=_IMAGES, **by_model
        )
        self._forwards = Gauge(
            "saccade_forwards", "Cost of prediction and explanation in units of the plain prediction.", **by_model
        )
        Gauge("saccade_waiting_requests", "Requests in the queue.", registry=self.registry).set_function(waiting)

    def loaded(self, model: ServedModel) -> None:
        """A model is ready."""
        self._forwards.labels(model.name).set(model.forwards)

    def answered(self, model: str, protocol: str, finished: Finished, seconds: float) -> None:
        """A request got its answer."""
        if (children := self._children.get((model, protocol))) is None:
            one_per_model = (self._images, self._explained, self._queue, self._compute, self._request, self._batch)
            children = self._children[model, protocol] = (
                self._requests.labels(model, protocol, "answered"),
                *(metric.labels(model) for metric in one_per_model),
            )
        requests, images, explained, queue, compute, request, batch = children
        requests.inc()
        images.inc(finished.images)
        explained.inc(finished.explained)
        queue.observe(finished.queue_seconds)
        compute.observe(finished.compute_seconds)
        request.observe(seconds)
        if finished.first:
            batch.observe(finished.batch)

    def refused(self, model: str, protocol: str, outcome: str) -> None:
        """A request got none."""
        self._requests.labels(model, protocol, outcome).inc()

    def totals(self, model: str) -> Totals:
        """What there was of a model so far."""

        def sums(metric: Counter | Histogram) -> dict[str, float]:
            found: dict[str, float] = {}
            for sample in (sample for family in metric.collect() for sample in family.samples):
                kind = sample.name.rsplit("_", 1)[1]
                if sample.labels.get("model") == model and sample.labels.get("outcome") != "answered":
                    found[kind] = found.get(kind, 0.0) + sample.value
            return found

        named = (("success", self._request), ("queue", self._queue), ("compute_infer", self._compute))
        times = {name: sums(metric) for name, metric in named}
        return Totals(
            images=int(sums(self._images).get("total", 0)),
            executions=int(sums(self._batch).get("count", 0)),
            failures=int(sums(self._requests).get("total", 0)),
            times={
                name: (int(found.get("count", 0)), int(found.get("sum", 0.0) * 1e9)) for name, found in times.items()
            },
        )

    def page(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)
