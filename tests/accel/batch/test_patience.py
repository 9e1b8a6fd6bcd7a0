"""A source that is away for a while, or for good: no image becomes an error for that, and no result is lost."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
from batch_material import encoded, write_folder, write_parquet, write_tar

from saccade.accel.batch import patience
from saccade.accel.batch.explainer import BatchConfig
from saccade.accel.batch.job import BatchJob, JobConfig
from saccade.accel.batch.sources import find_source
from saccade.accel.batch.storage import Local
from saccade.accel.pipeline import PipelineConfig
from saccade.errors import ImageError

Make = Callable[..., JobConfig]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_PAUSES", (0.0, 0.0, 0.0))


@pytest.fixture
def make(folder: Path, tiny_bundle_kept: Path, tmp_path: Path) -> Make:
    """A job on 23 images in five shards that reads little ahead."""
    batch = BatchConfig(pipeline=PipelineConfig(batch_size=1), decode_threads=1)

    def made(**settings: Any) -> JobConfig:
        plain: dict[str, Any] = {"source": str(folder), "folder": tmp_path / "out", "bundle": tiny_bundle_kept}
        return JobConfig(**plain | {"shard_size": 5, "engine": {"threads": 1}, "batch": batch} | settings)

    return made


def run(config: JobConfig) -> int:
    """Run a job; how many images it did."""
    with BatchJob(config) as job:
        return sum(answered.images for answered in job.run())


def errors_in(out: Path) -> list[str]:
    return [error for error in pq.read_table(out)["error"].to_pylist() if error]


def break_reading(monkeypatch: pytest.MonkeyPatch, fails: dict[str, int]) -> None:
    """Some images cannot be read so many times; ``*`` stands for each that is not named."""
    real, left = Path.read_bytes, dict(fails)

    def read_bytes(path: Path) -> bytes:
        times = left.get(path.name, left.get("*", 0))
        if path.suffix == ".png" and times:
            left[path.name] = times - 1
            raise OSError(5, "Input/output error")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)


@pytest.mark.parametrize("emptied", [False, True], ids=["moved away", "no longer mounted"])
def test_a_source_that_goes_away_ends_the_run_and_no_image_fails(
    make: Make, folder: Path, tmp_path: Path, emptied: bool
) -> None:
    with BatchJob(make()) as job:
        running = job.run()
        next(running)
        folder.rename(tmp_path / "elsewhere")
        if emptied:
            folder.mkdir()
        with pytest.raises(patience.SourceLost, match=r"can no longer be read: .*what is finished stays, and once"):
            list(running)
        finished = job.summary()
    assert finished.finished < 5
    assert finished.failed == 0
    if emptied:
        folder.rmdir()
    (tmp_path / "elsewhere").rename(folder)
    assert run(make()) == 23 - finished.images
    assert errors_in(tmp_path / "out") == []


def test_an_image_that_is_removed_is_a_row_and_the_rest_is_explained(make: Make, folder: Path, tmp_path: Path) -> None:
    with BatchJob(make()) as job:
        (folder / "0022.png").unlink()
        assert sum(answered.images for answered in job.run()) == 23
    (error,) = errors_in(tmp_path / "out")
    assert "No such file" in error


def test_what_passes_is_waited_for_and_one_bad_file_is_a_row(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_reading(monkeypatch, {"0001.png": 3, "0002.png": 2, "0004.png": 99})
    assert run(make()) == 23
    (error,) = errors_in(tmp_path / "out")
    assert "0004.png' cannot be read: Input/output error" in error


def test_a_disk_that_reads_nothing_any_more_ends_the_run_and_costs_no_finished_shard(
    make: Make, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = (folder / "0007.png").read_bytes()
    (folder / "0007.png").write_bytes(b"x" * len(good))
    assert run(make()) == 23
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.parquet")}
    (folder / "0007.png").write_bytes(good)
    with monkeypatch.context() as broken:
        break_reading(broken, {"*": 99})
        broken.setattr(patience, "_MOST_IN_A_ROW", 3)
        with pytest.raises(patience.SourceLost, match="Input/output error"):
            run(make(retry_failed=True))
    assert {path: path.read_bytes() for path in (tmp_path / "out").glob("*.parquet")} == before
    with BatchJob(make(retry_failed=True)) as job:
        assert (job.before.images, job.before.failed, job.weight_before) == (18, 0, 18)
        assert sum(answered.images for answered in job.run()) == 5
        assert job.summary().images == 23
    assert errors_in(tmp_path / "out") == []


class Breaking(io.BytesIO):
    """A stream that breaks off after so many bytes, as often as it is told."""

    left = after = 0

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > Breaking.after and Breaking.left > 0:
            Breaking.left -= 1
            raise ConnectionResetError(104, "Connection reset by peer")
        return super().read(2048 if size == 1 << 20 else size)  # of a tar file


@pytest.mark.parametrize(("kind", "after"), [("tar", 3000), ("parquet", 0)])  # a footer is read from 0
def test_a_stream_that_breaks_off_is_read_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, after: int
) -> None:
    path = tmp_path / f"a.{kind}"
    (write_tar if kind == "tar" else write_parquet)(path, range(9))
    source = find_source(str(path), shard_size=100)
    monkeypatch.setattr(Local, "open", lambda self, name: Breaking(Path(name).read_bytes()))
    Breaking.after = after
    for breaks, whole in ((2, True), (99, False)):
        Breaking.left = breaks
        items = list(source.items(source.shards[0]))
        assert Breaking.left == 0 or not whole
        good = items if whole else items[: -1 if kind == "tar" else -9]
        assert [item.read() for item in good] == [encoded(number) for number in range(len(good))]
        assert len(good) == 9 or not whole
        if not whole:
            with pytest.raises(ImageError, match="Connection reset by peer"):
                items[-1].read()


def test_a_bucket_that_is_gone_ends_the_run(make: Make, tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    files.put(str(write_folder(tmp_path / "more", 23)), "/vanishing/photos", recursive=True)
    with BatchJob(make(source="memory://vanishing/photos")) as job:
        files.rm("/vanishing", recursive=True)
        with pytest.raises(patience.SourceLost):
            list(job.run())
        assert job.summary().finished == 0
