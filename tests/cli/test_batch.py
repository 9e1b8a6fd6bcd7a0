"""``saccade batch`` as a user runs it: what it writes and says, what it refuses, how it is stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from batch_material import write_folder, write_parquet, write_tar
from PIL import Image

from saccade import errors

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "photos", 9)


def program(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from saccade.cli.main import main; main()", *map(str, arguments)]


def one_sentence(answer: tuple[int, str, str]) -> str:
    code, out, err = answer
    assert (code, out) == (1, "")
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    return err


def test_a_folder_becomes_a_table(saccade_command: Run, tiny_bundle_kept: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, said, err = saccade_command("batch", folder, out, "--bundle", tiny_bundle_kept, "--shard-size", 4)
    assert (code, err) == (0, "")
    assert "9 explained" in said
    assert "3 Parquet files" in said
    assert pq.read_table(out).num_rows == 9
    code, said, err = saccade_command("batch", folder, out, "--bundle", tiny_bundle_kept, "--shard-size", 4, "--json")
    report = json.loads(said)
    assert (code, report["images"], report["images_before"], report["failed"]) == (0, 9, 9, 0)
    assert (report["shards"], report["shards_finished"], report["failures"]) == (3, 3, [])
    assert report["images_per_second"] is None
    assert "9 images are done already" in err


def test_the_table_says_what_explain_says(
    saccade_command: Run, tiny_bundle_kept: Path, folder: Path, tmp_path: Path
) -> None:
    saccade_command("batch", folder, tmp_path / "out", "--bundle", tiny_bundle_kept)
    _, printed, _ = saccade_command("explain", folder, "--bundle", tiny_bundle_kept, "--json")
    expected = {Path(one["image"]).relative_to(folder).as_posix(): one for one in map(json.loads, printed.splitlines())}
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert {row["key"] for row in rows} == expected.keys()
    for row in rows:
        record = expected[row["key"]]
        assert row["target_name"] == record["class"]
        assert row["probability"] == pytest.approx(record["probability"], abs=1e-5)
        assert row["mask_area"] == pytest.approx(record["area"], abs=1e-3)


def test_images_that_cannot_be_read_are_listed_and_the_exit_code_is_one(
    saccade_command: Run, tiny_bundle_kept: Path, folder: Path, tmp_path: Path
) -> None:
    (folder / "bad [1].jpg").write_bytes(b"no image")
    (folder / "none.png").write_bytes(b"")
    code, said, _ = saccade_command("batch", folder, tmp_path / "out", "--bundle", tiny_bundle_kept)
    assert code == 1
    assert "9 explained, 2 could not be read" in said
    assert "failed 'bad [1].jpg' is not an image" in said
    assert "failed 'none.png' is empty" in said
    code, said, _ = saccade_command("batch", folder, tmp_path / "out", "--bundle", tiny_bundle_kept, "--json")
    assert code == 1, "also when it was done before"
    assert {one["key"] for one in json.loads(said)["failures"]} == {"bad [1].jpg", "none.png"}


def test_tar_and_parquet_give_the_same_rows(saccade_command: Run, tiny_bundle_kept: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "a-0.tar", range(5))
    write_tar(tmp_path / "a-1.tar", range(5, 8))
    write_parquet(tmp_path / "images.parquet", range(8))
    both = []
    for name, source, more in (
        ("tar", f"{tmp_path}/a-{{0..1}}.tar", ()),
        ("parquet", tmp_path / "images.parquet", ("--id-column", "label", "--shard-size", 3)),
    ):
        code, *_ = saccade_command("batch", source, tmp_path / name, "--bundle", tiny_bundle_kept, *more)
        assert code == 0
        both.append(pq.read_table(tmp_path / name).sort_by("key"))
    columns = ["sha256", "target", "mask", "top_classes"]
    assert both[0].select(columns).equals(both[1].select(columns))
    assert both[1]["id"].to_pylist() == [str(number) for number in range(8)]


def test_options_reach_the_table(saccade_command: Run, tiny_bundle_kept: Path, folder: Path, tmp_path: Path) -> None:
    arguments = ["--bundle", tiny_bundle_kept, "--mask", "float16", "--top", 2, "--limit", 4, "--target", "dog"]
    code, _, err = saccade_command("batch", folder, tmp_path / "out", *arguments, "--overlays", tmp_path / "pictures")
    assert code == 0
    assert "predicted class only" in err
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert len(rows) == 4
    for row in rows:
        assert (row["target_name"], len(row["top_names"])) == ("dog", 2)
        assert row["explains"] == row["predicted"]
        mask = np.frombuffer(row["mask"], "<f2").reshape(row["mask_height"], row["mask_width"])
        assert mask.mean() == pytest.approx(row["mask_area"], abs=1e-3)
        with Image.open(tmp_path / "pictures" / f"{row['key']}.overlay.png") as picture:
            assert picture.width >= 300


def test_what_cannot_be_done_is_one_sentence(
    saccade_command: Run, tiny_bundle_kept: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    ask = ("--bundle", tiny_bundle_kept)
    assert "has no images" in one_sentence(saccade_command("batch", tmp_path / "empty", out, *ask))
    assert "there is no file or folder" in one_sentence(saccade_command("batch", tmp_path / "no", out, *ask))
    assert "is not a bundle" in one_sentence(saccade_command("batch", folder, out, "--bundle", tmp_path / "no"))
    assert "one area and one size" in one_sentence(saccade_command("batch", folder, out, *ask, "--areas", "0.1"))
    assert "there is no class 'cow'" in one_sentence(saccade_command("batch", folder, out, *ask, "--target", "cow"))
    assert "holds no fp16 graph" in one_sentence(saccade_command("batch", folder, out, *ask, "--precision", "fp16"))
    assert "lies in the source" in one_sentence(saccade_command("batch", folder, folder / "out", *ask))
    assert not out.exists()
    (tmp_path / "file").write_text("")
    assert saccade_command("batch", folder, tmp_path / "file", *ask)[0] == 2
    assert "cannot write into" in one_sentence(saccade_command("batch", folder, tmp_path / "file" / "out", *ask))
    assert saccade_command("batch", folder, out, *ask, "--shard-index", 0)[0] == 2
    assert saccade_command("batch", folder, out, *ask, "--actors", 2)[0] == 2
    monkeypatch.setattr(errors.importlib.util, "find_spec", lambda name: None if name == "ray" else find_spec(name))
    assert "pip install 'saccade[ray]'" in one_sentence(saccade_command("batch", folder, out, *ask, "--ray"))


def test_without_pyarrow_the_line_that_installs_it_is_said(
    tiny_bundle_kept: Path, folder: Path, tmp_path: Path
) -> None:
    code = "import sys; sys.modules['pyarrow'] = None; from saccade.cli.main import main; main()"
    arguments = ["batch", folder, tmp_path / "out", "--bundle", tiny_bundle_kept]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "'saccade[batch]'" in done.stderr


def test_a_run_that_is_interrupted_says_how_it_goes_on(tiny_bundle_kept: Path, tmp_path: Path) -> None:
    folder, out = write_folder(tmp_path / "photos", 400), tmp_path / "out"
    arguments = ("batch", folder, out, "--bundle", tiny_bundle_kept, "--shard-size", 20, "--batch-size", 1)
    command = program(*arguments)
    # a test run in the background of a shell hands down that interrupts are ignored
    command[2] = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {command[2]}"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        while running.poll() is None and len(list(out.glob("*.parquet"))) < 2:
            time.sleep(0.002)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate()
    assert running.returncode == 130
    assert "images are finished in" in err
    assert "the same command goes on from there" in err
    assert "Traceback" not in err
    assert list((out / "_saccade").glob("*.partial")) == []
    finished = len(list(out.glob("*.parquet")))
    assert f"{finished * 20} of 400 images are finished" in err
    done = subprocess.run(program(*arguments, "--json"), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["images_before"] == finished * 20
    assert pq.read_table(out).num_rows == 400


def actors() -> list[int]:
    """Processes of Ray in which shards are explained."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if path.read_bytes().startswith(b"ray::MapWorker(MapBatches(ShardExplainer))"):
                found.append(int(path.parent.name))
    return found


@pytest.mark.slow
def test_ray_gives_the_same_table_although_an_actor_is_killed(tiny_bundle_kept: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", 120)
    (folder / "bad.png").write_bytes(b"no image")
    arguments = ("--bundle", tiny_bundle_kept, "--shard-size", 3, "--json")
    others, out = actors(), tmp_path / "ray"
    command = program("batch", folder, out, *arguments, "--ray", "--actors", 2)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        while running.poll() is None and not list(out.glob("*.parquet")):
            time.sleep(0.002)
        victims = [number for number in actors() if number not in others]
        assert victims, running.communicate()
        os.kill(victims[0], signal.SIGKILL)
        finished = len(list(out.glob("*.parquet")))
        said, err = running.communicate()
    assert running.returncode == 1, err
    assert finished < 41, "the job was over before the actor was killed"
    report = json.loads(said)
    assert (report["images"], report["failed"], report["shards_finished"]) == (121, 1, 41)
    subprocess.run(program("batch", folder, tmp_path / "plain", *arguments), capture_output=True, check=False)
    tables = [pq.read_table(tmp_path / name).sort_by("key") for name in ("ray", "plain")]
    columns = ["key", "sha256", "target", "mask_height", "error"]
    assert tables[0].select(columns).equals(tables[1].select(columns))
    assert tables[0].schema.equals(tables[1].schema, check_metadata=True)


@pytest.mark.parametrize("missing", [False, True], ids=["unreachable", "not installed"])
def test_results_stay_where_ray_cannot_be_had(
    saccade_command: Run,
    tiny_bundle_kept: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    missing: bool,
) -> None:
    out = tmp_path / "out"
    (folder / "bad.png").write_bytes(b"no image")
    saccade_command("batch", folder, out, "--bundle", tiny_bundle_kept)
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    if missing:
        monkeypatch.setattr(errors.importlib.util, "find_spec", lambda name: None if name == "ray" else find_spec(name))
    for option in ("--restart", "--retry-failed"):
        answer = saccade_command("batch", folder, out, "--bundle", tiny_bundle_kept, option, "--ray", "127.0.0.1:9")
        assert ("saccade[ray]" if missing else "Ray cannot be reached at '127.0.0.1:9'") in one_sentence(answer)
        assert {path: path.read_bytes() for path in out.rglob("*.*")} == before


def test_what_other_runs_have_not_finished_makes_the_exit_code_one(
    saccade_command: Run, tiny_bundle_kept: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ("batch", folder, out, "--bundle", tiny_bundle_kept, "--shard-size", 4)
    assert saccade_command(*arguments)[0] == 0
    (out / "shard-00001.parquet").unlink()
    hold = "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX, 1, 1); print(); input()"
    command = [sys.executable, "-c", hold, out / "_saccade" / "locks"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        code, said, _ = saccade_command(*arguments)
        other.communicate(b"\n")
    assert code == 1
    assert "1 shard is in the hands of other runs and not finished" in said
    assert saccade_command(*arguments)[0] == 0
