"""The ledger: nothing twice, nothing lost, nothing half-written, nothing of another plan."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from batch_material import encoded, write_folder, write_tar

from saccade.accel.batch import shards as shards_module
from saccade.accel.batch.explainer import BatchConfig, BatchExplainer
from saccade.accel.batch.job import BatchJob, JobConfig
from saccade.accel.bundle import open_bundle
from saccade.accel.pipeline import PipelineConfig
from saccade.errors import OutputError, SaccadeError, UsageError

Make = Callable[..., JobConfig]


@pytest.fixture
def make(folder: Path, tiny_bundle_kept: Path, tmp_path: Path) -> Make:
    """A job on 23 images in five shards, with other settings where they are given."""

    def made(**settings: Any) -> JobConfig:
        plain: dict[str, Any] = {"source": str(folder), "folder": tmp_path / "out", "bundle": tiny_bundle_kept}
        return JobConfig(**plain | {"shard_size": 5, "engine": {"threads": 1}} | settings)

    return made


def run(config: JobConfig) -> int:
    """Run a job; how many images it did."""
    with BatchJob(config) as job:
        return sum(answered.images for answered in job.run())


def keys_in(folder: Path) -> list[str]:
    return sorted(pq.read_table(folder)["key"].to_pylist())


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def test_every_image_is_there_once_and_a_second_run_does_nothing(make: Make, folder: Path, tmp_path: Path) -> None:
    assert run(make()) == 23
    assert keys_in(tmp_path / "out") == names(folder)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "_saccade",
        *(f"shard-{number:05d}.parquet" for number in range(5)),
    ]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    with BatchJob(make()) as job:
        assert list(job.run()) == []
        summary = job.summary()
    assert (summary.images, summary.failed, summary.finished, summary.shards) == (23, 0, 5, 5)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")} == before


def test_a_run_that_ends_early_leaves_whole_shards_and_the_next_does_the_rest(
    make: Make, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with BatchJob(make(batch=BatchConfig(pipeline=PipelineConfig(batch_size=2)))) as job:
        running = job.run()
        done = 0
        for answered in running:
            done += answered.images
            if done > 12:
                break
        running.close()
    finished = sorted(path.name for path in out.glob("*.parquet"))
    assert finished == ["shard-00000.parquet", "shard-00001.parquet"]
    assert list((out / "_saccade").glob("*.partial")) == []
    with BatchJob(make()) as job:
        assert job.before.images == 10
        assert (job.weight, job.weight_before, job.images) == (23, 10, 23)
        assert sum(answered.images for answered in job.run()) == 13
    assert keys_in(out) == names(folder)


def test_what_a_killed_run_left_is_removed(make: Make, folder: Path, tmp_path: Path) -> None:
    run(make())
    out = tmp_path / "out"
    (out / "shard-00003.parquet").unlink()
    left = out / "_saccade" / "shard-00003.parquet.elsewhere-123.partial"
    left.write_bytes(b"half a table")
    assert run(make()) == 5
    assert not left.exists()
    assert keys_in(out) == names(folder)


def test_a_disk_that_is_full_is_said_and_leaves_nothing_half_written(
    make: Make, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync
    calls = []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 5:  # of the second shard: each is a file and its folder, as the plan is
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(shards_module.os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device; what is finished there stays, and the same comm"):
        run(make())
    out = tmp_path / "out"
    assert [path.name for path in out.glob("*.parquet")] == ["shard-00000.parquet"]
    assert list((out / "_saccade").glob("*.partial")) == []
    monkeypatch.undo()
    assert run(make()) == 18
    assert keys_in(out) == names(folder)


def test_a_full_disk_in_the_middle_of_a_table(make: Make, tmp_path: Path) -> None:
    """The system's own limit on a file's size stands in for the disk's end."""
    config = make()
    code = (
        "import resource, signal, sys; from saccade.cli.main import main;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000)); main()"
    )
    arguments = ["batch", config.source, config.folder, "--bundle", config.bundle, "--shard-size", "5"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1
    assert "Error: cannot write into" in done.stderr
    assert list((tmp_path / "out" / "_saccade").glob("*.partial")) == []
    assert run(config) == 23


def test_another_source_bundle_or_option_is_refused_by_name(
    make: Make, folder: Path, tiny_own_bundle_kept: Path, tmp_path: Path
) -> None:
    run(make())
    stored = sorted(path.read_bytes() for path in (tmp_path / "out").glob("*.parquet"))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"bundle": tiny_own_bundle_kept}, "begun with another bundle"),
        ({"shard_size": 6}, "begun with --shard-size 5 and now it is --shard-size 6"),
        ({"limit": 7}, "begun with no --limit and now it is --limit 7"),
        ({"batch": BatchConfig(overlays=tmp_path / "pictures")}, "with no --overlays and now it is --overlays true"),
        ({"batch": BatchConfig(mask="uint8")}, 'begun with --mask "png" and now it is --mask "uint8"'),
        (
            {"batch": BatchConfig(pipeline=PipelineConfig(targets=(2,)))},
            r"--target \[-1\] and now it is --target \[2\]",
        ),
    ]
    for change, said in cases:
        with pytest.raises(UsageError, match=said):
            run(make(**change))
    for change in ({"batch": BatchConfig(pipeline=PipelineConfig(batch_size=3))}, {"engine": {"threads": 2}}):
        assert run(make(**change)) == 0, "how a machine is used is no part of the plan"
    (folder / "new.png").write_bytes(encoded(50))
    with pytest.raises(UsageError, match="it had 23 images and has 24 images; go on with that, write into another fol"):
        run(make())
    assert sorted(path.read_bytes() for path in (tmp_path / "out").glob("*.parquet")) == stored
    assert run(make(restart=True)) == 24
    assert keys_in(tmp_path / "out") == names(folder)


def test_a_restart_that_is_killed_anywhere_can_be_begun_again(
    make: Make, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(make())
    unlink, calls = Path.unlink, []

    def killed(path: Path, missing_ok: bool = False) -> None:
        calls.append(path)
        if len(calls) > allowed:
            raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    for allowed in range(5):
        monkeypatch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            run(make(restart=True, shard_size=4))
        monkeypatch.undo()
        calls.clear()
        left = list((tmp_path / "out").glob("*.parquet"))
        assert len(left) == 5 - allowed
        kept = sum(pq.read_metadata(path).num_rows for path in left)
        assert run(make()) == 23 - kept, "the plan is still there, and what is left of it"
    assert run(make(restart=True, shard_size=4)) == 23
    assert keys_in(tmp_path / "out") == names(folder)


def test_settings_that_were_tuned_later_do_not_change_the_bundle(make: Make, tiny_bundle: Path) -> None:
    from saccade.accel.manifest import Tuning
    from saccade.accel.tune import store_tuning

    assert run(make(bundle=tiny_bundle)) == 23
    store_tuning(open_bundle(tiny_bundle), "fp32", Tuning(threads=1))
    assert run(make(bundle=tiny_bundle)) == 0


def test_a_folder_of_something_else_is_not_written_into(make: Make, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs.parquet").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"holds 'theirs\.parquet' of something else"):
        run(make())
    (tmp_path / "out" / "theirs.parquet").unlink()
    run(make())
    (tmp_path / "out" / "theirs.parquet").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"holds 'theirs\.parquet' of something else"):
        run(make(restart=True))
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 6


def test_results_do_not_go_into_the_source_or_to_an_address(make: Make, folder: Path) -> None:
    with pytest.raises(UsageError, match="lies in the source"):
        make(folder=folder / "out")
    with pytest.raises(UsageError, match="lies in the source"):
        make(batch=BatchConfig(overlays=folder / "pictures"))
    for pattern in ("**/*.png", "*/*/*.png", "{de,pic}*/**/*.png"):
        with pytest.raises(UsageError, match="lies in the source"):
            make(source=f"{folder}/{pattern}", batch=BatchConfig(overlays=folder / "pictures"))
    for pattern in ("**/*.parquet", "*/shard-*"):
        with pytest.raises(UsageError, match="lies in the source"):
            make(source=f"{folder}/{pattern}", folder=folder / "out")
    make(source=f"{folder}/*.png", folder=folder / "out", batch=BatchConfig(overlays=folder / "pictures"))
    make(source=f"{folder}/**/*.png", folder=folder / "out")
    with pytest.raises(UsageError, match="a folder of this machine"):
        make(folder=Path("s3://bucket/out"))


def test_images_that_fail_are_rows_and_can_be_tried_again(make: Make, folder: Path, tmp_path: Path) -> None:
    good = (folder / "0007.png").read_bytes()
    (folder / "0007.png").write_bytes(b"x" * len(good))
    assert run(make()) == 23
    with BatchJob(make()) as job:
        assert job.before.failed == 1
        summary = job.summary()
    assert (summary.failed, summary.images, [key for key, _ in summary.failures]) == (1, 23, ["0007.png"])
    assert "is not an image" in summary.failures[0][1]
    (folder / "0007.png").write_bytes(good)
    assert run(make()) == 0
    assert run(make(retry_failed=True)) == 5
    assert pq.read_table(tmp_path / "out")["error"].null_count == 23


def test_parts_of_several_machines_are_together_the_whole(make: Make, folder: Path, tmp_path: Path) -> None:
    counts = [run(make(folder=tmp_path / f"part-{index}", part=(index, 3))) for index in range(3)]
    assert sum(counts) == 23
    (tmp_path / "all").mkdir()
    for path in tmp_path.glob("part-*/*.parquet"):
        path.rename(tmp_path / "all" / path.name)
    assert keys_in(tmp_path / "all") == names(folder)
    with pytest.raises(UsageError, match="of 3 parts the index goes from 0 to 2"):
        run(make(part=(3, 3)))


def test_a_tar_file_without_images_is_a_shard_all_the_same(make: Make, tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    for number, images in enumerate((range(4), range(0), range(4, 7))):
        write_tar(tars / f"{number}.tar", images)
    config = make(source=str(tars))
    with BatchJob(config) as job:
        assert job.images is None
        weights = [answered.weight for answered in job.run()]
        assert 0 < sum(weights) <= job.weight
        assert job.summary().finished == 3
    assert len(keys_in(tmp_path / "out")) == 7
    assert run(config) == 0


def test_a_finished_shard_that_is_damaged_is_said(make: Make, tmp_path: Path) -> None:
    run(make())
    (tmp_path / "out" / "shard-00002.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(OutputError, match=r"shard-00002\.parquet' cannot be read: .*; remove it, and the next run"):
        run(make())


def test_an_error_before_the_first_image_leaves_no_folder(make: Make, tmp_path: Path) -> None:
    for change in ({"source": str(tmp_path / "no")}, {"bundle": tmp_path / "no"}, {"engine": {"engine": "abacus"}}):
        with pytest.raises(SaccadeError):
            run(make(**change))
    assert not (tmp_path / "out").exists()


HOLD = """
import sys, time
from pathlib import Path
from saccade.accel.batch.explainer import BatchConfig
from saccade.accel.batch.job import BatchJob, JobConfig
with BatchJob(JobConfig(source=sys.argv[1], folder=Path(sys.argv[2]), bundle=Path(sys.argv[3]), shard_size=5)) as job:
    running = job.run()
    next(running)
    print("at work", flush=True)
    sys.stdin.readline()
    print(sum(answered.images for answered in running), flush=True)
"""


def test_two_runs_share_a_folder_and_neither_restarts_under_the_other(make: Make, folder: Path, tmp_path: Path) -> None:
    config = make()
    arguments = [sys.executable, "-c", HOLD, config.source, config.folder, config.bundle]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "at work\n"
        with pytest.raises(OutputError, match="another run is at work"):
            run(make(restart=True))
        ours = run(config)
        with BatchJob(config) as job:
            summary = job.summary()
        assert summary.finished < 5
        print("", file=other.stdin, flush=True)
        theirs = int(other.stdout.readline())
    assert ours < 23
    assert theirs + ours <= 23
    assert keys_in(tmp_path / "out") == names(folder)


def test_a_run_after_sigkill_has_every_image_once(tiny_bundle_kept: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", 260)
    out = tmp_path / "out"
    code = "from saccade.cli.main import main; main()"
    command = [sys.executable, "-c", code, "batch", folder, out, "--bundle", tiny_bundle_kept, "--shard-size", "13"]
    command += ["--batch-size", "2"]
    kills = 0
    for moment in (1, 5, 9):  # finished shards that are waited for
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
            while running.poll() is None and len(list(out.glob("*.parquet"))) < moment:
                threading.Event().wait(0.002)
            running.kill()
        kills += running.returncode == -9
    assert kills >= 2, "a machine may be fast, but not so fast"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table = pq.read_table(out)
    assert table.num_rows == 260
    assert sorted(table["key"].to_pylist()) == names(folder)
    assert list((out / "_saccade").glob("*.partial")) == []
    fresh = BatchExplainer(tiny_bundle_kept, threads=1)
    contents = {"key": names(folder), "bytes": [(folder / name).read_bytes() for name in names(folder)]}
    columns = ["key", "sha256", "target"]
    assert table.select(columns).sort_by("key").equals(fresh(contents).select(columns))


def test_the_writer_refuses_a_shard_with_an_image_too_few(make: Make, tmp_path: Path) -> None:
    with BatchJob(make()) as job:
        job._shards[:] = [replace(shard, images=shard.images + 1) for shard in job._shards if shard.images]
        with pytest.raises(OutputError, match="has 5 images and should have 6: the source has changed"):
            list(job.run())
    assert list((tmp_path / "out").glob("*.parquet")) == []
