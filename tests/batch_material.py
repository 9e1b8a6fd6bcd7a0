"""Encoded images by number, and sources of every kind that hold them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def encoded(number: int) -> bytes:
    """A PNG that differs from the others, of a size of its own."""
    shape = (20 + number % 7, 30 - number % 5, 3)
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write_folder(folder: Path, count: int) -> Path:
    (folder / "deeper").mkdir(parents=True)
    for number in range(count):
        (folder / ("deeper" if number % 3 == 0 else ".") / f"{number:04d}.png").write_bytes(encoded(number))
    (folder / "notes.txt").write_text("no image")
    return folder


def write_tar(path: Path, numbers: range, *, compression: str = "") -> Path:
    with tarfile.open(path, f"w:{compression}") as archive:  # type: ignore[call-overload]
        for number in numbers:
            for ending, content in ((".png", encoded(number)), (".cls", b"3")):
                member = tarfile.TarInfo(f"{number:04d}{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def write_parquet(path: Path, numbers: range, *, as_struct: bool = False, row_group: int = 7) -> Path:
    contents = [encoded(number) for number in numbers]
    images = [{"bytes": one, "path": None} for one in contents] if as_struct else contents
    columns = {"image": images, "url": [f"http://x/{number}" for number in numbers], "label": list(numbers)}
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()}) if as_struct else pa.binary()
    table = pa.table({name: pa.array(v, kind if name == "image" else None) for name, v in columns.items()})
    pq.write_table(table, path, row_group_size=row_group)
    return path
