"""A batch job: a source, a bundle and a folder of results put together, on one machine or on Ray."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ..bundle import Bundle, open_bundle
from ..graph_engine import check_precision, check_query
from .explainer import Answered, BatchConfig, BatchExplainer
from .plan import plan_of
from .run import part_of, run_batch
from .shards import Ledger, Tally
from .sources import find_source
from .storage import is_url, may_hold

__all__ = ["BatchJob", "JobConfig", "Summary"]

_MOST_FAILURES = 1000  # that a summary lists


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """What a job is made of.

    Attributes:
        source: see `find_source`.
        folder: of the results.
        bundle: that explains.
        batch: what is asked of every image.
        engine: settings of `open_engine`.
        shard_size: images of a shard.
        limit: the first images only.
        kind: which files of a folder; see `find_source`.
        image_column: of Parquet files.
        id_column: of Parquet files.
        part: (index, count): do one of so many parts.
        restart: remove earlier results.
        retry_failed: do finished shards again that have failures.
        ray: address of a cluster, ``"local"`` for Ray on this machine, or None for none.
        actors: of Ray, at once; None takes one per core.
    """

    source: str
    folder: Path
    bundle: Path | Bundle
    batch: BatchConfig = field(default_factory=BatchConfig)
    engine: Mapping[str, Any] = field(default_factory=dict)
    shard_size: int = 2000
    limit: int | None = None
    kind: str | None = None
    image_column: str | None = None
    id_column: str | None = None
    part: tuple[int, int] = (0, 1)
    restart: bool = False
    retry_failed: bool = False
    ray: str | None = None
    actors: int | None = None

    def __post_init__(self) -> None:
        if is_url(str(self.folder)) or ":/" in str(self.folder):
            raise UsageError(f"results go into a folder of this machine, not to '{self.folder}'; copy them there after")
        for folder, name in ((self.folder, "shard-00000.parquet"), (self.batch.overlays, "x.overlay.png")):
            if folder is not None and may_hold(self.source, folder, name):
                raise UsageError(f"'{folder}' lies in the source '{self.source}'; results go into another folder")


@dataclass(frozen=True)
class Summary:
    """What the folder of results holds now.

    Attributes:
        images: in finished shards.
        failed: of them, those that could not be explained.
        rows: lines of the tables.
        finished: shards.
        shards: that there are to do.
        failures: key and reason of the first that failed.
    """

    images: int
    failed: int
    rows: int
    finished: int
    shards: int
    failures: list[tuple[str, str]]


class BatchJob:
    """A job that can be run, and run again until it is finished. Use it as a context.

    Attributes:
        described: how much the source is, for people.
        weight: of all shards of this part, in progress.
        before: what was finished when the job was opened.
        weight_before: of that.

    Raises:
        SaccadeError: the source, the bundle, the options or the folder cannot be used; the folder is then as it was.
    """

    def __init__(self, config: JobConfig) -> None:
        self.config = config
        bundle = config.bundle if isinstance(config.bundle, Bundle) else open_bundle(config.bundle)
        self._bundle = bundle
        precision = str(config.engine.get("precision", "fp32"))
        check_precision(bundle, precision)
        if config.batch.pipeline.query is not None:
            check_query(bundle.manifest, config.batch.pipeline.query)
        self._source = find_source(
            config.source,
            shard_size=config.shard_size,
            limit=config.limit,
            kind=config.kind,
            image_column=config.image_column,
            id_column=config.id_column,
        )
        self._shards = part_of(self._source.shards, *config.part)
        self.described = self._source.described
        plan = plan_of(
            config.source,
            self._source,
            bundle.manifest,
            config.batch,
            precision=precision,
            **{
                "engine": config.engine.get("engine", "onnx"),
                "shard-size": config.shard_size,
                "limit": config.limit,
                "image-column": config.image_column,
                "id-column": config.id_column,
            },
        )
        self._explainer, self._cluster = None, ExitStack()
        if config.ray is None:
            self._explainer = BatchExplainer(bundle, config.batch, **config.engine)
        else:
            from .ray_data import connected

            self._cluster.enter_context(connected(config.ray, actors=config.actors or 1))
        try:
            self._ledger = Ledger(config.folder, plan, restart=config.restart)
        except BaseException:
            self._cluster.close()
            raise
        try:
            if config.retry_failed:
                self._ledger.do_failed_again(self._shards)
            done = [shard for shard in self._shards if not self._ledger.to_do(shard.number)]
            self.before: Tally = self._ledger.tally(done)
        except BaseException:
            self._ledger.close()
            self._cluster.close()
            raise
        self.weight = sum(shard.weight for shard in self._shards)
        self.weight_before = sum(shard.weight for shard in done)

    def __enter__(self) -> BatchJob:
        return self

    def __exit__(self, *error: object) -> None:
        self._ledger.close()
        self._cluster.close()

    @property
    def images(self) -> int | None:
        """How many images there are, where that is known before they are read."""
        counts = [shard.images for shard in self._shards]
        return None if None in counts else sum(count or 0 for count in counts)

    def run(self) -> Generator[Answered, None, None]:
        """Do what is left, and say what was done after every batch; see `run_batch`."""
        if self._explainer is not None:
            return run_batch(self._source, self._shards, self._explainer, self._ledger)
        from .ray_data import run_on_ray

        return run_on_ray(self._source, self._shards, self._ledger, self.config)

    def summary(self) -> Summary:
        """Count what is finished."""
        tally = self._ledger.tally(self._shards)
        failures = list(islice(self._ledger.failures(self._shards), _MOST_FAILURES)) if tally.failed else []
        return Summary(tally.images, tally.failed, tally.rows, tally.shards, len(self._shards), failures)
