"""The same shards on Ray Data: actors read, explain and hand back whole shards, the driver writes them.

A shard travels to its actor as a number and comes back as one table, so the images themselves never go through Ray, any
kind of source works, and an actor that dies costs the shard it was at, which Ray gives to another. The driver keeps the
ledger, so results are as with the loop on one machine: exactly once, and a job that is killed as a whole goes on.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ...errors import EngineError, SaccadeError, require
from ..machine import core_count
from .explainer import Answered, BatchConfig, BatchExplainer
from .shards import Ledger, Writing
from .sources import Shard, Source

if TYPE_CHECKING:
    from .job import JobConfig

__all__ = ["ShardExplainer", "connected", "run_on_ray", "shard_dataset"]


_PATIENCE = 10.0  # seconds


class ShardExplainer:
    """What an actor does: explain whole shards of a source. The bundle is opened with the first.

    Args:
        source: the source, already listed.
        bundle: the bundle's folder, which the actor's machine can read.
        config: what is asked.
        settings: of `open_engine`.
    """

    def __init__(self, source: Source, bundle: str, config: BatchConfig, settings: Mapping[str, Any]) -> None:
        self._source = source
        self._asked = (bundle, config, settings)
        self._explainer: BatchExplainer | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The tables of shards.

        Args:
            batch: ``shard``: places among the source's shards.

        Returns:
            A row for each: ``shard``, ``table`` (Arrow IPC), ``images``, and ``problem``: why it cannot be done, which
            no other actor could do either.
        """
        found: dict[str, list[Any]] = {"shard": [], "table": [], "images": [], "problem": []}
        for place in batch["shard"]:
            table, images, problem = b"", 0, ""
            try:
                table, images = self._done(self._source.shards[int(place)])
            except SaccadeError as error:
                problem = str(error)
            for name, value in (("shard", int(place)), ("table", table), ("images", images), ("problem", problem)):
                found[name].append(value)
        kinds = {"shard": np.int64, "table": object, "images": np.int64, "problem": object}
        return {name: np.array(values, dtype=kinds[name]) for name, values in found.items()}

    def _done(self, shard: Shard) -> tuple[bytes, int]:
        """A shard's table and number of images."""
        if self._explainer is None:
            bundle, config, settings = self._asked
            self._explainer = BatchExplainer(bundle, config, **settings)
        images, sink = 0, pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self._explainer.schema) as stream:
            for answered in self._explainer.stream(self._source.items(shard), remote=self._source.remote):
                stream.write_batch(answered.rows)
                images += answered.images
        table: bytes = sink.getvalue().to_pybytes()
        return table, images


def run_on_ray(
    source: Source, shards: Sequence[Shard], ledger: Ledger, config: JobConfig
) -> Generator[Answered, None, None]:
    """Do all shards that are not finished on the cluster that is `connected`, and say what was done after every shard.

    Raises:
        EngineError: a shard cannot be done.
        OutputError: the folder of results cannot be written.
    """
    claimed = {shard.number: shard for shard in shards if ledger.claim(shard.number)}
    if not claimed:
        return
    try:
        places = {shard.number: place for place, shard in enumerate(source.shards)}
        dataset = shard_dataset(source, [places[number] for number in claimed], config)
        for row in _rows(dataset):
            if row["problem"]:
                raise EngineError(str(row["problem"]))
            shard = claimed[source.shards[int(row["shard"])].number]
            with pa.ipc.open_stream(row["table"]) as stream:
                table = stream.read_all().combine_chunks()
            bad = table.filter(pyarrow.compute.is_valid(table["error"])).select(["key", "error"]).to_pylist()
            failures = [(one["key"], one["error"]) for one in bad]
            images = int(row["images"])
            with Writing(ledger, table.schema) as writing:
                for place, batch in enumerate(table.to_batches()):  # several where it has more than 2 GiB
                    told = (images, failures, shard.weight) if place == 0 else (0, [], 0)
                    writing.add(shard, Answered(shard.number, batch, *told))
                writing.finish(shard)
            del claimed[shard.number]
            yield Answered(shard.number, table, images, failures, shard.weight)
    finally:
        for number in claimed:
            ledger.release(number)


def shard_dataset(source: Source, places: Sequence[int], config: JobConfig) -> Any:
    """The tables of shards as a Ray dataset, a row each, as `ShardExplainer` gives them.

    Args:
        source: the source.
        places: of the shards, in it.
        config: of the job.
    """
    ray = _ray()
    settings, resources = dict(config.engine), ray.cluster_resources()
    on_gpu = settings.get("engine") == "tensorrt" or any(
        name.lower().startswith(("cuda", "tensorrt")) for name in settings.get("providers") or ()
    )
    cores = max(1, int(resources.get("CPU", 1)))
    fitting = max(1, int(resources.get("GPU", 1))) if on_gpu else cores
    actors = min(config.actors or fitting, len(places))
    if not on_gpu and not settings.get("threads"):
        settings["threads"] = max(1, cores // actors)
    few = None if source.remote else 2  # each actor has a few, not one for each core
    batch = replace(config.batch, decode_threads=config.batch.decode_threads or few)
    folder = config.bundle if isinstance(config.bundle, Path) else config.bundle.path
    numbers = ray.data.from_items([{"shard": place} for place in places], override_num_blocks=len(places))
    return numbers.map_batches(
        ShardExplainer,
        fn_constructor_args=(source, str(folder.resolve()), batch, settings),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1 if on_gpu else settings["threads"],
        num_gpus=1 if on_gpu else 0,
    )


@contextmanager
def connected(address: str, *, actors: int = 1) -> Iterator[None]:
    """A connection to a cluster, or for ``"local"`` Ray on this machine with room for so many actors.

    Where this process is connected already, that is left as it is.

    Raises:
        EngineError: there is none.
        MissingDependencyError: Ray is not installed.
    """
    ray = _ray()
    if ray.is_initialized():
        yield
        return
    if found := re.fullmatch(r"(?:ray://)?([\w.-]+):(\d+)", address):
        try:  # Ray itself tries for minutes, and then ends the process
            socket.create_connection((found[1], int(found[2])), timeout=_PATIENCE).close()
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise EngineError(f"Ray cannot be reached at '{address}': {reason}") from None
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {"include_dashboard": False, "num_cpus": max(core_count(), actors), "_node_ip_address": "127.0.0.1"}
    try:
        ray.init(address=address, **options)
    except Exception as error:  # Ray raises what its layers raise
        raise EngineError(f"Ray cannot be reached at '{address}': {_first_line(error)}") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Ray sets options that it has deprecated
        context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        ray.shutdown()


def _rows(dataset: Any) -> Generator[Any, None, None]:
    try:
        yield from dataset.iter_rows()
    except Exception as error:  # as above
        raise EngineError(f"Ray gave up: {_first_line(error)}") from None


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    require("ray.data", extra="ray", purpose="--ray")
    return require("ray", extra="ray", purpose="--ray")


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0]
