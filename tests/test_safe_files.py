"""Nothing that is read can run code, start a program, or make a file where nobody asked for one."""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from environments import ROOT, tracked
from PIL import Image

from saccade.accel.image import load_image
from saccade.accel.results import ImageExplanation, ResultWriter
from saccade.contracts import ImageSpec
from saccade.errors import ImageError, SaccadeError

Run = Callable[..., tuple[int, str, str]]
PACKAGE = ("*.py", "accel/*.py", "cli/*.py", "evaluate/*.py", "export/*.py", "kernels/*.py", "methods/*.py")


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Every call in the package, with its place and the name that is called."""
    for name in tracked(*PACKAGE):
        if name.split("/")[0] in ("tests", "benchmarks", "examples"):
            continue
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            if isinstance(node, ast.Call):
                yield f"{name}:{node.lineno}", node


def argument(call: ast.Call, name: str) -> object:
    found = [one.value for one in call.keywords if one.arg == name]
    return found[0].value if found and isinstance(found[0], ast.Constant) else None


def test_no_pickle_is_read_anywhere() -> None:
    seen = 0
    for place, call in calls():
        what = ast.unparse(call.func)
        if what in ("np.load", "numpy.load"):
            seen += 1
            assert argument(call, "allow_pickle") is False, place
        if what == "torch.load":
            seen += 1
            assert argument(call, "weights_only") is True, place
        assert what not in ("eval", "exec", "os.system", "os.popen", "joblib.load", "yaml.load"), place
        assert argument(call, "shell") is not True, place
        assert argument(call, "trust_remote_code") is not True, place
        assert not what.endswith((".extractall", ".unpack_archive")), place
    assert seen >= 4, "the calls that this test is about were not found"


def test_nothing_imports_a_module_that_unpickles() -> None:
    for name in tracked(*PACKAGE):
        if name.split("/")[0] in ("tests", "benchmarks", "examples"):
            continue
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"} & set(modules), name


def test_a_postscript_image_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *arguments, **options: started.append(arguments))
    stream = io.BytesIO()
    Image.new("RGB", (20, 10)).save(stream, "EPS")
    path = tmp_path / "photo.jpg"
    path.write_bytes(stream.getvalue())
    for source in (path, stream.getvalue()):
        with pytest.raises(ImageError, match="is EPS, which another program would have to draw; save it as PNG"):
            load_image(source)
    assert started == []


@pytest.mark.parametrize("source", ["../../up.png", "/etc/passwd", "..", "a/../b.png", "x\0y.png", "C:\\x.png", ""])
@pytest.mark.parametrize("variant", ["", "../../up", "/etc", "[/red]", "..", "a\nb"])
def test_results_stay_in_their_folder_whatever_images_and_classes_are_called(
    tmp_path: Path, source: str, variant: str
) -> None:
    result = ImageExplanation(
        source=source,
        image=np.zeros((8, 8, 3), np.uint8),
        probabilities=np.array([1.0], np.float32),
        target=0,
        class_names=("../../up",),
        mask=np.zeros((8, 8), np.float32),
        spec=ImageSpec(size=(8, 8)),
        class_specific=True,
        milliseconds=None,
        variant=variant,
    )
    folder = tmp_path / "deep" / "out"
    writer = ResultWriter(folder, ("mask", "npz"))
    files = writer.write(result)["files"].values()
    writer.close()
    assert {path.name for path in folder.iterdir()} == {"results.jsonl", *files}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_a_message_is_one_line_that_no_terminal_obeys() -> None:
    said = str(SaccadeError("'a\nb\x1b[2J\u2028\udc80é [/red]' is missing"))
    assert said == r"'a\nb\x1b[2J\u2028\udc80é [/red]' is missing"


def test_names_that_look_like_markup_are_shown_as_they_are(
    saccade_command: Run, tiny_bundle_kept: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    folder = tmp_path / "a["
    folder.mkdir()
    Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / "b].png")
    (folder / "red] x.png").write_bytes(b"no image")
    out = tmp_path / "[" / "bold]"
    code, shown, err = saccade_command("explain", folder, "--bundle", tiny_bundle_kept, "--out", out)
    assert code == 1, err
    assert "Traceback" not in err
    assert "[/b].png" in "".join(shown.split())
    assert "[/bold]" in "".join(shown.split())
    assert "a[/red] x.png' is not an image" in err
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert {"error" in line for line in lines} == {True, False}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--max-megapixels", "nan"),
        ("--max-megapixels", "inf"),
        ("--max-megapixels", "1e999"),
        ("--batch-size", 2**64),
        ("--threads", 2**64),
    ],
)
def test_numbers_that_are_none_or_too_large_are_wrong_usage(
    saccade_command: Run, tiny_bundle_kept: Path, tmp_path: Path, arguments: tuple[str, object]
) -> None:
    photo = tmp_path / "photo.png"
    Image.new("RGB", (40, 40)).save(photo)
    code, _, err = saccade_command("explain", photo, "--bundle", tiny_bundle_kept, *arguments)
    assert code == 2, err
    assert arguments[0] in err


def test_a_path_that_no_file_can_have_is_one_sentence(saccade_command: Run, tmp_path: Path) -> None:
    for command in (
        ("verify", "x" * 300),
        ("evaluate", "x" * 300),
        ("export", "--checkpoint", "x" * 300, "--out", "b"),
    ):
        code, out, err = saccade_command(*command)
        assert (code, out) == (1, "")
        assert err.startswith("Error: ")
        assert err.count("\n") == 1
        assert "File name too long" in err
