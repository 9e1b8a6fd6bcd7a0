"""Each of the user's errors: one clear sentence on stderr, exit code 1, nothing half-written."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def photo(tmp_path: Path, rng: np.random.Generator) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return path


def assert_one_sentence(answer: tuple[int, str, str], *words: str) -> None:
    code, out, err = answer
    assert code == 1, (code, out, err)
    assert out == ""
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for word in words:
        assert word in err


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_missing_file(saccade_command: Run, tiny_bundle_kept: Path, tmp_path: Path) -> None:
    answer = saccade_command("explain", tmp_path / "no.jpg", "--bundle", tiny_bundle_kept, "--out", tmp_path / "out")
    assert_one_sentence(answer, "no.jpg", "there is no file")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"this is a text file\n", b"", None], ids=["text", "empty", "truncated"])
def test_unreadable_image_alone(
    saccade_command: Run, tiny_bundle_kept: Path, tmp_path: Path, rng: np.random.Generator, content: bytes | None
) -> None:
    path = tmp_path / "bad.jpg"
    if content is None:
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        content = path.read_bytes()[:1500]
    path.write_bytes(content)
    code, _, err = saccade_command("explain", path, "--bundle", tiny_bundle_kept, "--out", tmp_path / "out")
    assert code == 1
    assert "bad.jpg" in err
    assert "Traceback" not in err
    assert files_in(tmp_path / "out") == {"results.jsonl"}
    assert "bad.jpg" in json.loads((tmp_path / "out" / "results.jsonl").read_text())["error"]


def test_truncated_image_in_a_folder_is_reported_and_the_others_go_on(
    saccade_command: Run, tiny_bundle_kept: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a", "b", "c"):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{name}.jpg")
    (folder / "b.jpg").write_bytes((folder / "b.jpg").read_bytes()[:1500])
    code, out, _ = saccade_command("explain", folder, "--bundle", tiny_bundle_kept, "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert [Path(record["image"]).name for record in records] == ["a.jpg", "b.jpg", "c.jpg"]
    assert ["error" in record for record in records] == [False, True, False]


def test_folder_without_images(saccade_command: Run, tiny_bundle_kept: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    answer = saccade_command("explain", tmp_path / "empty", "--bundle", tiny_bundle_kept)
    assert_one_sentence(answer, "empty", "no images", ".jpg")


@pytest.mark.parametrize(("target", "hint"), [("dogg", "dog"), ("5", "0 to 4"), ("-1", "0 to 4")])
def test_unknown_target(
    saccade_command: Run, tiny_bundle_kept: Path, photo: Path, tmp_path: Path, target: str, hint: str
) -> None:
    answer = saccade_command(
        "explain", photo, "--bundle", tiny_bundle_kept, f"--target={target}", "--out", tmp_path / "o"
    )
    assert_one_sentence(answer, hint)
    assert not (tmp_path / "o").exists()


def test_one_flipped_byte_in_the_bundle(saccade_command: Run, tiny_bundle: Path, photo: Path) -> None:
    graph = tiny_bundle / "explainer.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    assert_one_sentence(saccade_command("explain", photo, "--bundle", tiny_bundle), "damaged", "explainer.onnx")
    assert_one_sentence(saccade_command("verify", tiny_bundle), "damaged", "explainer.onnx")
    assert_one_sentence(saccade_command("bench", tiny_bundle), "damaged", "explainer.onnx")


def test_bundle_of_a_newer_schema(saccade_command: Run, tiny_bundle: Path, photo: Path) -> None:
    manifest = tiny_bundle / "manifest.json"
    stored = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**stored, "schema_version": stored["schema_version"] + 1, "new field": 1}))
    assert_one_sentence(saccade_command("explain", photo, "--bundle", tiny_bundle), "schema version 2", "upgrade")


def test_no_bundle(saccade_command: Run, photo: Path, tmp_path: Path) -> None:
    assert_one_sentence(
        saccade_command("explain", photo, "--bundle", tmp_path / "none"), "is not a bundle", "saccade export"
    )


def test_output_folder_that_cannot_be_written(
    saccade_command: Run, tiny_bundle_kept: Path, photo: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    before = files_in(tmp_path)
    answer = saccade_command("explain", photo, "--bundle", tiny_bundle_kept, "--out", tmp_path / "file" / "out")
    assert_one_sentence(answer, "cannot write", "--out")
    assert files_in(tmp_path) == before


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space of a process, which only Linux enforces")
def test_batch_that_does_not_fit_into_memory(tiny_bundle_kept: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / "0.png")
    for index in range(1, 6000):
        os.link(folder / "0.png", folder / f"{index}.png")
    program = (
        "import resource, onnxruntime, numpy, PIL.Image, pydantic, rich.progress;"
        "from saccade.cli.main import main;"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize();"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 250_000_000,) * 2);"
        "main()"
    )
    arguments = ["explain", folder, "--bundle", tiny_bundle_kept, "--batch-size", 6000, "--threads", 1, "--json"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
        check=False,
    )
    assert done.returncode == 1, done.stderr[-500:]
    last = done.stderr.strip().splitlines()[-1]
    assert "a batch of 6000 images does not fit into memory" in last
    assert "--batch-size 1500" in last
    assert done.stdout == ""


def test_damaged_checkpoint_and_missing_checkpoint(saccade_command: Run, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    assert_one_sentence(
        saccade_command("export", "--checkpoint", tmp_path, "--out", out), "is not a checkpoint", "saccade train"
    )
    (tmp_path / "checkpoint.json").write_text('{"format": 1')
    assert_one_sentence(saccade_command("export", "--checkpoint", tmp_path, "--out", out), "damaged")
    assert not out.exists()


def test_export_never_replaces_what_is_no_bundle(saccade_command: Run, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(committed_checkpoint(), tmp_path / "checkpoint"))
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("years of work")
    answer = saccade_command("export", "--checkpoint", checkpoint, "--out", tmp_path / "precious", "--overwrite")
    assert_one_sentence(answer, "exists already", "another --out")
    assert files_in(tmp_path / "precious") == {"thesis.tex"}


def committed_checkpoint() -> Path:
    from saccade.evaluate.weights_folder import WEIGHTS

    return WEIGHTS / "scenes_resnet_ltx_shared"


@pytest.mark.parametrize(
    "arguments",
    [
        ("explan",),
        ("explain",),
        ("explain", "x.png"),
        ("bench", "b", "--batch-sizes", "0"),
        ("train", "ltx", "--form", "x"),
    ],
    ids=["command", "no path", "no bundle", "batch size", "choice"],
)
def test_wrong_usage_exits_with_2(saccade_command: Run, arguments: tuple[str, ...]) -> None:
    code, out, err = saccade_command(*arguments)
    assert code == 2
    assert out == ""
    assert "Error" in err


def test_unknown_command_suggests_the_nearest(saccade_command: Run) -> None:
    assert "explain" in saccade_command("explan")[2]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EIO, "Input/output error", "photo\n.png"), "'photo\\n.png' cannot be used: Input/output error"),
        (OSError(errno.ENAMETOOLONG, "File name too long", b"a\xff"), "'a\\udcff' cannot be used: File name too long"),
        (OSError(errno.EBADF, "Bad file descriptor", 7), "the system refused: Bad file descriptor"),
        (OSError("no space"), "the system refused: no space"),
    ],
    ids=["text", "bytes", "a number", "no name"],
)
def test_what_the_system_refuses_is_one_sentence(
    saccade_command: Run, monkeypatch: pytest.MonkeyPatch, error: OSError, words: str
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("saccade.cli.main.saccade.main", failing)
    assert_one_sentence(saccade_command("doctor"), words)
