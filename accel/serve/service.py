"""What HTTP and gRPC have in common: a request goes in, an answer or the reason for none comes out."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ...errors import OutOfMemory, UsageError
from ..engine import Engine
from ..machine import core_count
from .config import ServeConfig
from .dispatcher import Dispatcher, Finished, Job
from .errors import BadRequest, ClientGone, DeadlineExceeded, Forbidden, Overloaded, RequestError
from .http_body import Bodies
from .metrics import Metrics
from .model import VERSION, ServedModel
from .registry import ModelRegistry, manifest_digest
from .repeated import repeated_work
from .request import InferenceRequest
from .tensors import Tensor
from .work import Work, make_work

__all__ = ["EXTENSIONS", "Service", "classification"]

_LOG = logging.getLogger("saccade.serve")
EXTENSIONS = ("binary_tensor_data", "classification", "model_repository", "model_configuration", "statistics")
_DECODERS = 8  # threads beside a GPU


class Service:
    """The models, the queue, and what is counted.

    Args:
        folders: of the bundles, by name.
        open_engine: opens a bundle's engine.
        config: of the server.
    """

    def __init__(self, folders: dict[str, Path], open_engine: Callable[[Path], Engine], config: ServeConfig) -> None:
        self.config = config
        self.metrics = Metrics(lambda: self.dispatcher.waiting)
        self.bodies = Bodies(config.limits)
        self.drains = asyncio.Event()

        def open_model(name: str, folder: Path) -> ServedModel:
            digest = manifest_digest(folder)
            engine = open_engine(folder)
            preferred = 1 if engine.concurrent else engine.bundle.manifest.batch
            model = ServedModel(name, engine, digest, batch=config.batch or preferred, limits=config.limits)
            self.metrics.loaded(model)
            return model

        self.models = ModelRegistry(folders, open_model)
        for name in folders:
            self.models.load(name)
        alone = all(model.batch == 1 for model in self.models)
        self.workers = config.workers or (core_count() if alone else max(_DECODERS, core_count()))
        self.dispatcher = Dispatcher(self.workers, config.queue, config.batch_delay, nice=config.nice)
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="saccade-serve-models")

    @property
    def draining(self) -> bool:
        """Whether the server has been told to stop."""
        return self.drains.is_set()

    @property
    def ready(self) -> bool:
        """Whether requests for every model would be taken."""
        return self.models.ready and not self.draining

    def check_room(self) -> None:
        """Refuse a request before its body is read.

        Raises:
            Overloaded: the queue is full.
        """
        if self.dispatcher.full:
            raise Overloaded(f"the server is at its limit: {self.config.queue} requests wait; try again later")

    def allowed(self, shown: str | None) -> bool:
        """Whether a client shows the key, if there is one."""
        if self.config.api_key is None:
            return True
        return shown is not None and hmac.compare_digest(shown.encode(), self.config.api_key.encode())

    async def load(self, name: str) -> None:
        """Load a model again for a client.

        Raises:
            Forbidden: clients may not.
            SaccadeError: it cannot be loaded; what was there goes on.
        """
        self._check_control()
        await asyncio.get_running_loop().run_in_executor(self._loader, self.models.load, name)

    def unload(self, name: str) -> None:
        """Take a model out for a client.

        Raises:
            Forbidden: clients may not.
            UnknownModel: there is none of this name.
        """
        self._check_control()
        self.models.unload(name)

    def _check_control(self) -> None:
        if not self.config.model_control:
            raise Forbidden(
                "this server's models are not exchanged by clients; start it with --model-control, or with --watch, or "
                "send it SIGHUP"
            )

    async def infer(
        self,
        name: str,
        version: str | None,
        protocol: str,
        began: float,
        read: Callable[[], Awaitable[InferenceRequest]],
        lost: list[Callable[[], None]] | None = None,
        remaining: float | None = None,
    ) -> tuple[ServedModel, Work, Finished]:
        """Answer one request.

        Args:
            name: of the model.
            version: of the model; None or empty for the one there is.
            protocol: for the metrics.
            began: when the request arrived, `time.perf_counter`.
            read: reads and parses the request; is called once it is known that there is room for it.
            lost: what is called when the client leaves.
            remaining: seconds that the client gives it.

        Raises:
            RequestError: why there is no answer.
        """
        outcome, label = "failed", name if name in self.models.folders else ""
        try:
            model = self.models.get(name, version)
            self.check_room()
            request = await read()
            work = repeated_work(model, request, lambda: make_work(request, model.manifest, model.outputs, self.config))
            if remaining is not None:
                work = work.within(remaining)
            finished = await self._result(Job(model, work), lost)
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except RequestError as error:
            outcome = error.outcome
            raise
        except OutOfMemory as error:
            outcome = "refused"
            raise Overloaded(str(error)) from None
        except UsageError as error:
            outcome = "invalid"
            raise BadRequest(str(error)) from None
        else:
            outcome = "answered"
            seconds = time.perf_counter() - began
            asyncio.get_running_loop().call_soon(self._account, model, work, finished, protocol, seconds)  # once sent
            return model, work, finished
        finally:
            if outcome != "answered":
                self.metrics.refused(label, protocol, outcome)

    async def _result(self, job: Job, lost: list[Callable[[], None]] | None) -> Finished:
        """The answer to a job. When its client leaves or its time is over it leaves the queue at once."""
        loop, left = asyncio.get_running_loop(), False
        waiting = loop.create_future()

        def wake() -> None:
            if not waiting.done():
                waiting.set_result(None)

        def wake_from_thread(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(wake)

        def on_lost() -> None:
            nonlocal left
            left = True
            wake()

        answer = self.dispatcher.submit(job)
        answer.add_done_callback(wake_from_thread)
        timer = loop.call_later(job.work.timeout, wake)
        if lost is not None:
            lost.append(on_lost)
        try:
            await waiting
            if not answer.done() and not left:
                if self.dispatcher.forget(job):
                    raise DeadlineExceeded(f"the request waited for {job.work.timeout:g} s, which is all it may")
                waiting = loop.create_future()  # it has begun
                if answer.done():
                    wake()
                await waiting
            if not answer.done():
                raise ClientGone("the client left before its answer was there")
            return answer.result()
        finally:
            timer.cancel()
            if lost is not None:
                lost.remove(on_lost)
            if not answer.done():
                self.dispatcher.forget(job)

    def _account(self, model: ServedModel, work: Work, finished: Finished, protocol: str, seconds: float) -> None:
        """Count an answer, and log it where that is wanted."""
        self.metrics.answered(model.name, protocol, finished, seconds)
        if not self.config.log_requests:
            return
        fields = {
            "model": model.name,
            "protocol": protocol,
            "id": work.id,
            "images": finished.images,
            "explained": finished.explained,
            "batch": finished.batch,
            "queue_ms": round(finished.queue_seconds * 1e3, 3),
            "compute_ms": round(finished.compute_seconds * 1e3, 3),
            "total_ms": round(seconds * 1e3, 3),
        }
        _LOG.info("request", extra=fields)

    def server_metadata(self) -> dict[str, Any]:
        """The protocol's description of the server."""
        return {"name": "saccade", "version": __version__, "extensions": list(EXTENSIONS)}

    def model_config(self, model: ServedModel) -> dict[str, Any]:
        """A model's configuration as far as clients ask for it: batches and tensors."""
        metadata = model.metadata()

        def described(tensors: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [
                {
                    "name": tensor["name"],
                    "data_type": _config_type(tensor["datatype"]),
                    "dims": tensor["shape"],
                }
                for tensor in tensors
            ]

        kind = "KIND_CPU" if model.engine.concurrent else "KIND_GPU"
        return {
            "name": model.name,
            "platform": model.platform,
            "backend": "saccade",
            "max_batch_size": 0,
            "input": [tensor | {"optional": tensor["name"] != "image"} for tensor in described(metadata["inputs"])],
            "output": described(metadata["outputs"]),
            "instance_group": [{"name": model.name, "kind": kind, "count": self.workers}],
        }

    def statistics(self, model: ServedModel) -> dict[str, Any]:
        """A model's statistics, as the protocol's extension has them."""
        totals = self.metrics.totals(model.name)
        none = {"count": 0, "ns": 0}
        times = {name: {"count": count, "ns": ns} for name, (count, ns) in totals.times.items()}
        return {
            "name": model.name,
            "version": VERSION,
            "inference_count": totals.images,
            "execution_count": totals.executions,
            "inference_stats": {
                "fail": none | {"count": totals.failures},
                "compute_input": none,
                "compute_output": none,
                **times,
            },
        }


def _config_type(datatype: str) -> str:
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def classification(probabilities: Tensor, count: int, names: tuple[str, ...]) -> Tensor:
    """The most probable classes as BYTES ``probability:index:name``, (N, count)."""
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
    found = np.empty(best.shape, dtype=np.object_)
    for row, indices in enumerate(best):
        for place, index in enumerate(indices):
            found[row, place] = f"{probabilities[row, index]:f}:{index}:{names[index]}".encode()
    return found
