"""What ``saccade batch`` reads: tar files, Parquet files, and folders of results that an earlier run began."""

from __future__ import annotations

import bz2
import contextlib
import functools
import gzip
import io
import json
import lzma
import random
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from saccade.accel.batch.explainer import BatchConfig, BatchExplainer
from saccade.accel.batch.job import BatchJob, JobConfig
from saccade.accel.batch.sources import find_source

from .drawn import drawn, odd_texts, seeds
from .images import damaged, seed_images
from .place import case_folder, refuse_escapes, tiny_bundle
from .target import Target

__all__ = ["LEDGERS", "PARQUETS", "TARS"]

_OUTSIDE = Path(tempfile.gettempdir()) / "saccade-fuzz-escape.png"
_NAMES = (
    "a.jpg",
    "b.png",
    "../up.png",
    str(_OUTSIDE),
    "d/../../e.png",
    "./f.gif",
    "g.cls",
    "..png",
    "C:\\x.png",
)
_KINDS = (b"0", b"0", b"0", b"0", b"1", b"2", b"3", b"5", b"6", b"7", b"x", b"g", b"L", b"S")
_tar = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.one_of(st.sampled_from(_NAMES), odd_texts.map(lambda text: text + ".png")),
            "kind": st.sampled_from(range(len(_KINDS))),
            "size": st.sampled_from([None, None, None, 0, 1, 10**6, 2**33]),
            "image": st.integers(0, 100),
            "damage": st.booleans(),
        }
    ),
    max_size=4,
)
_PACK = (bytes, gzip.compress, bz2.compress, lzma.compress)


def _make_tar(given: dict[str, Any]) -> bytes:
    draw, seeds_, stream = random.Random(given["seed"]), seed_images(), io.BytesIO()
    with tarfile.open(
        fileobj=stream, mode="w", format=draw.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
    ) as archive:
        for one in given["members"]:
            content = seeds_[one["image"] % len(seeds_)]
            content = damaged(draw, content) if one["damage"] else content
            member = tarfile.TarInfo(one["name"].replace("\0", "_").encode("utf-8", "replace").decode() or "x.png")
            member.type, member.linkname = _KINDS[one["kind"]], draw.choice(("a.jpg", "/etc/passwd", ""))
            member.size = len(content)
            whole = stream.tell()
            archive.addfile(member, io.BytesIO(content))
            if one["size"] is not None:  # the header lies about what follows
                member.size = one["size"]
                header = member.tobuf(format=tarfile.GNU_FORMAT, errors="replace")
                end = stream.tell()
                stream.seek(whole)
                stream.write(header[:512])
                stream.seek(end)
    packed = _PACK[given["seed"] % 4](stream.getvalue())
    return damaged(draw, packed) if given["damaged"] else packed


def _tar_cases(seed: int) -> Iterator[bytes]:
    cases = drawn(st.fixed_dictionaries({"members": _tar, "seed": seeds, "damaged": st.booleans()}), seed)
    return (_make_tar(json.loads(case)) for case in cases)


@functools.cache
def _explainer(overlays: Path) -> BatchExplainer:
    with case_folder() as folder:
        from saccade.accel.bundle import open_bundle

        explainer = BatchExplainer(open_bundle(tiny_bundle(folder)), BatchConfig(overlays=overlays, decode_threads=1))
        explainer.engine.run(explainer.engine.bundle.golden.images[:1])  # its graph is read when it first runs
    return explainer


def _run_source(case: bytes, name: str) -> str:
    """List and read a source, and explain what it holds, with pictures under the images' names."""
    with case_folder() as folder:
        path = folder / name
        path.write_bytes(case)
        source = find_source(str(path))
        images = failed = 0
        explainer = _explainer(Path("pictures"))
        with contextlib.chdir(folder):
            items = (item for shard in source.shards for item in source.items(shard))
            for answered in explainer.stream(items, remote=False):
                images, failed = images + answered.images, failed + len(answered.failures)
                if any("\n" in reason or not reason for _, reason in answered.failures):
                    raise AssertionError(f"a reason of several lines: {answered.failures}")
        refuse_escapes(folder)
        if _OUTSIDE.exists():
            raise AssertionError("an absolute name was followed")
    return "answered" if not failed else "answered: some rows are errors"


@functools.cache
def _parquets() -> tuple[bytes, ...]:
    images = list(seed_images()[:6])
    tables = [
        pa.table({"image": images, "url": [f"u{i}" for i in range(6)]}),
        pa.table({"image": [{"bytes": one, "path": "p"} for one in images]}),
        pa.table({"jpeg": pa.array([images[0], None, b"", b"x"], pa.large_binary()), "n": [1, 2, 3, 4]}),
        pa.table({"a": [b"x"], "b": [b"y"]}),
        pa.table({"words": ["x", "y"]}),
        pa.table({"image": pa.array([], pa.binary())}),
    ]
    found = []
    for table in tables:
        for compression in ("none", "zstd", "snappy"):
            stream = io.BytesIO()
            pq.write_table(table, stream, compression=compression, row_group_size=2)
            found.append(stream.getvalue())
    return tuple(found)


def _parquet_cases(seed: int) -> Iterator[bytes]:
    draw = random.Random(seed)
    while True:
        data = draw.choice(_parquets())
        if draw.random() < 0.5:  # the footer, where the structure is
            cut = max(0, len(data) - draw.randrange(8, 600))
            yield data[:cut] + damaged(draw, data[cut:])
        else:
            yield damaged(draw, data) if draw.random() < 0.98 else data


_ledger = st.lists(
    st.fixed_dictionaries(
        {
            "file": st.sampled_from(
                ["_saccade/plan.json", "_saccade/plan.json", "shard-00000.parquet", "_saccade/locks", "_saccade"]
            ),
            "do": st.sampled_from(["damage", "damage", "truncate", "delete", "json", "folder", "other"]),
            "seed": seeds,
        }
    ),
    min_size=1,
    max_size=2,
)


@functools.cache
def _finished() -> tuple[tuple[str, bytes], ...]:
    """A folder of results, file by file."""
    with case_folder() as folder:
        _job(folder)
        out = folder / "out"
        return tuple((str(path.relative_to(out)), path.read_bytes()) for path in out.rglob("*") if path.is_file())


def _job(folder: Path, **more: Any) -> None:
    if not (folder / "bundle").exists():
        tiny_bundle(folder)
        (folder / "photos").mkdir()
        for number, content in enumerate(seed_images()[:2]):
            (folder / "photos" / f"{number}.png").write_bytes(content)
    with (
        contextlib.chdir(folder),
        BatchJob(JobConfig(source="photos", folder=Path("out"), bundle=Path("bundle"), **more)) as job,
    ):
        for _ in job.run():
            pass
        job.summary()


def _run_ledger(case: bytes) -> str:
    given = json.loads(case)
    with case_folder() as folder:
        for name, content in _finished():
            (folder / "out" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "out" / name).write_bytes(content)
        for change in given["files"]:
            _spoil(folder / "out" / change["file"], change)
        _job(folder, restart=given["restart"], retry_failed=given["again"])
        refuse_escapes(folder)
    return "answered"


def _spoil(path: Path, change: dict[str, Any]) -> None:
    import shutil

    draw = random.Random(change["seed"])
    content = path.read_bytes() if path.is_file() else b""
    kind = change["do"]
    if kind in ("delete", "folder") or path.is_dir():
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if kind == "folder":
            path.mkdir(parents=True)
        return
    if not path.parent.is_dir():
        return
    if kind == "other":
        path.with_name("other.parquet").write_bytes(content)
    elif kind == "json":
        path.write_text(draw.choice(("{}", "[]", "null", '{"version": 9}', '"x"', '{"options": 3}', "[" * 10**5)))
    elif kind == "truncate":
        path.write_bytes(content[: draw.randrange(len(content) + 1)])
    else:
        path.write_bytes(damaged(draw, content or b"x"))


_ledger_case = st.fixed_dictionaries({"files": _ledger, "restart": st.booleans(), "again": st.booleans()})
TARS = Target("tars", _tar_cases, lambda case: _run_source(case, "case.tar"), ".tar")
PARQUETS = Target("parquets", _parquet_cases, lambda case: _run_source(case, "case.parquet"), ".parquet")
LEDGERS = Target("ledgers", lambda seed: drawn(_ledger_case, seed), _run_ledger, ".json")
