"""Counters and latencies, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .dispatcher import Finished
from .model import ServedModel

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """What is counted, in a registry of its own.

    Args:
        waiting: tells the number of requests that wait.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
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
        self._requests.labels(model, protocol, "answered").inc()
        self._images.labels(model).inc(finished.images)
        self._explained.labels(model).inc(finished.explained)
        self._queue.labels(model).observe(finished.queue_seconds)
        self._compute.labels(model).observe(finished.compute_seconds)
        self._request.labels(model).observe(seconds)
        self._batch.labels(model).observe(finished.batch)

    def refused(self, model: str, protocol: str, outcome: str) -> None:
        """A request got none."""
        self._requests.labels(model, protocol, outcome).inc()

    def totals(self, model: str) -> dict[str, tuple[int, int]]:
        """Number and nanoseconds of all requests of a model so far: those answered, their waiting, their computing."""
        found = {}
        for name, histogram in (("success", self._request), ("queue", self._queue), ("compute_infer", self._compute)):
            samples = {
                sample.name.rsplit("_", 1)[1]: sample.value
                for metric in histogram.collect()
                for sample in metric.samples
                if sample.labels.get("model") == model
            }
            found[name] = int(samples.get("count", 0)), int(samples.get("sum", 0.0) * 1e9)
        found["images"] = int(self._images.labels(model)._value.get()), 0
        return found

    def page(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)
