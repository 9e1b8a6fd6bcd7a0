"""How much a machine explains, and what a billion images take: a model whose constants `scaling.py` measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Constants", "Need", "fitted", "need_of", "need_table"]

SHARD = 2000  # images, the default of `saccade batch`
LISTED_BYTES = 140  # of memory for each name in a folder's listing, docs/batch.md
MACHINE = 64  # cores of a machine, where machines are counted
TAR = 1000  # images of a tar file, where the source comes in such


@dataclass(frozen=True)
class Constants:
    """What is measured.

    Attributes:
        model: the classifier and the explainer.
        images_per_second: of a whole job, from JPEGs to Parquet files.
        cores: that it had.
        of_bare: its rate in units of the bare engine's.
        beside_ms: of a core, for each image, beside the engine: decoding, resizing, encoding, writing.
        memory_mib: of the engine whatever the batch, with its weights.
        memory_per_image_mib: for each image of the batch.
        read_bytes: of an encoded image.
        written_bytes: of a row with its mask.
    """

    model: str
    images_per_second: float
    cores: int
    of_bare: float
    beside_ms: float
    memory_mib: float
    memory_per_image_mib: float
    read_bytes: float
    written_bytes: float

    @property
    def rate(self) -> float:
        """Images a second and core."""
        return self.images_per_second / self.cores

    def memory(self, batch: int) -> float:
        """MiB of an engine that explains so many images at once."""
        return self.memory_mib + batch * self.memory_per_image_mib

    def with_gpus(self, images_per_second: float, gpus: int, cores: int) -> float:
        """Images a second of a machine with GPUs.

        Args:
            images_per_second: of one GPU's engine alone, by `saccade bench`; not measured here.
            gpus: of the machine.
            cores: that decode and encode beside them.
        """
        return min(gpus * images_per_second, cores * 1e3 / self.beside_ms)


@dataclass(frozen=True)
class Need:
    """What a number of images takes on a number of cores.

    Attributes:
        images: how many.
        cores: of the machines together.
        core_hours: of computing.
        hours: on these cores.
        cores_for_a_day: that finish within 24 hours.
        shards: Parquet files.
        shards_per_hour: on these cores.
        read_bytes: of all images.
        written_bytes: of all rows.
        listing_bytes: of memory for the names, where each image is a file.
        tar_files: where the images come in tar files of a thousand.
    """

    images: float
    cores: int
    core_hours: float
    hours: float
    cores_for_a_day: int
    shards: int
    shards_per_hour: float
    read_bytes: float
    written_bytes: float
    listing_bytes: float
    tar_files: int


def fitted(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """The line a + b·x of least squares, and the largest distance from it in units of y there."""
    along, values = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    (b, a) = np.polyfit(along, values, 1)
    return float(a), float(b), float(np.abs((a + b * along - values) / values).max())


def need_of(constants: Constants, images: float, cores: int, shard: int = SHARD) -> Need:
    """What so many images take; cores are taken to work independently, a process or an actor for each few of them."""
    seconds_of_a_core = images / constants.rate
    hours = seconds_of_a_core / cores / 3600
    shards = math.ceil(images / shard)
    return Need(
        images=images,
        cores=cores,
        core_hours=seconds_of_a_core / 3600,
        hours=hours,
        cores_for_a_day=math.ceil(seconds_of_a_core / 86_400),
        shards=shards,
        shards_per_hour=shards / hours,
        read_bytes=images * constants.read_bytes,
        written_bytes=images * constants.written_bytes,
        listing_bytes=images * LISTED_BYTES,
        tar_files=math.ceil(images / TAR),
    )


def need_table(needs: Sequence[Need]) -> str:
    """In Markdown, a column for each."""
    rows: list[tuple[str, list[str]]] = [
        ("cores", [f"{need.cores:,}" for need in needs]),
        ("core-hours", [short(need.core_hours) for need in needs]),
        ("time", [_duration(need.hours) for need in needs]),
        ("cores that finish within a day", [f"{need.cores_for_a_day:,}" for need in needs]),
        (f"machines of {MACHINE} cores that do", [f"{math.ceil(need.cores_for_a_day / MACHINE):,}" for need in needs]),
        ("images read", [size(need.read_bytes) for need in needs]),
        ("rows written", [size(need.written_bytes) for need in needs]),
        ("read and written per hour", [size((n.read_bytes + n.written_bytes) / max(1.0, n.hours)) for n in needs]),
        (f"shards of {SHARD:,} images", [f"{need.shards:,}" for need in needs]),
        ("shards per hour", [short(need.shards_per_hour) for need in needs]),
        ("memory of a folder's listing", [size(need.listing_bytes) for need in needs]),
        (f"or tar files of {TAR:,}", [f"{need.tar_files:,}" for need in needs]),
    ]
    lines = ["| images | " + " | ".join(f"{need.images:,.0f}" for need in needs) + " |", "|---|" + "---:|" * len(needs)]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows]
    return "\n".join(lines)


def short(value: float) -> str:
    """Three significant digits, with thousands apart."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def size(count: float) -> str:
    """Bytes, in units of a thousand."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"


def _duration(hours: float) -> str:
    if hours >= 48:
        return f"{short(hours / 24)} days"
    return f"{hours:.3g} hours" if hours >= 1 else f"{hours * 60:.3g} minutes"


def as_constants(found: dict[str, Any]) -> Constants:
    """From what `scaling.py` has stored."""
    return Constants(**{name: found[name] for name in Constants.__dataclass_fields__})
