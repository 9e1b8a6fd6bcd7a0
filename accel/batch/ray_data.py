"""The same shards on Ray Data: actors read, explain and hand back whole shards, the driver writes them.

A shard travels to its actor as a number and comes back as one table, so the images themselves never go through Ray, any
kind of source works, and an actor that dies costs the shard it was at, which Ray gives to another. The driver keeps the
ledger, so results are as with the loop on one machine: exactly once, and a job that is killed as a whole goes on.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ...errors import EngineError, SaccadeError, require
from ..machine import core_count
from .explainer import Answered, BatchConfig, BatchExplainer
from .shards import Ledger, ShardWriter, Writing
from .sources import Shard, Source

if TYPE_CHECKING:
    from .job import JobConfig

__all__ = ["ShardExplainer", "run_on_ray", "shard_dataset"]


class ShardExplainer:
    """What an actor does: explain whole shards of a source.

    Args:
        source: the source, already listed.
        bundle: the bundle's folder, which the actor's machine can read.
        config: what is asked.
        settings: of `open_engine`.
    """

    def __init__(self, source: Source, bundle: str, config: BatchConfig, settings: Mapping[str, Any]) -> None:
        self._source = source
        self._explainer = BatchExplainer(bundle, config, **settings)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The tables of shards.

        Args:
            batch: ``shard``: places among the source's shards.

        Returns:
            A row for each: ``shard``, ``table`` (Arrow IPC), ``images``, ``failed``.
        """
        found: dict[str, list[Any]] = {"shard": [], "table": [], "images": [], "failed": []}
        for number in batch["shard"]:
            shard = self._source.shards[int(number)]
            answers = list(self._explainer.stream(self._source.items(shard), remote=self._source.remote))
            table = pa.Table.from_batches([answered.rows for answered in answers], self._explainer.schema)
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as stream:
                stream.write_table(table)
            found["shard"].append(int(number))
            found["table"].append(sink.getvalue().to_pybytes())
            found["images"].append(sum(answered.images for answered in answers))
            found["failed"].append(sum(len(answered.failures) for answered in answers))
        return {name: np.array(values, dtype=object if name == "table" else np.int64) for name, values in found.items()}
