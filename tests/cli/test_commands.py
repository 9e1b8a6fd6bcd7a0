import csv
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

import saccade
from saccade.cli.main import COMMANDS
from saccade.cli.main import saccade as program

Run = Callable[..., tuple[int, str, str]]


def all_commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []

    def walk(command: click.Command, path: tuple[str, ...]) -> None:
        found.append(path)
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                inner = command.get_command(click.Context(command), name)
                assert inner is not None
                walk(inner, (*path, name))

    walk(program, ())
    return found


@pytest.mark.parametrize("path", all_commands(), ids=" ".join)
def test_every_command_has_help_with_an_example(saccade_command: Run, path: tuple[str, ...]) -> None:
    code, out, err = saccade_command(*path, "--help")
    assert code == 0
    assert err == ""
    assert "Usage:" in out
    is_group = "Commands:" in out
    assert is_group or re.search(r"Examples?:\n +saccade ", out), out
    assert not re.search(r"^  -.*(?<!\S)--[a-z-]+( [A-Z|]+)?$\n(?!  +\S)", out, re.MULTILINE), (
        "an option without a word of help"
    )


def test_the_table_of_commands_is_in_the_readme() -> None:
    readme = (Path(__file__).parent.parent.parent / "README.md").read_text()
    for name in COMMANDS:
        assert f"saccade {name}" in readme


def test_help_starts_fast_and_loads_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "onnxruntime", "onnx", "PIL", "pydantic", "rich"}
    code = (
        "import sys; from saccade.cli.main import saccade; saccade.main(['--help'], standalone_mode=False);"
        f"print(sorted({{name.partition('.')[0] for name in sys.modules}} & {heavy}))"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - began
    assert done.stdout.strip().endswith("[]"), done.stdout[-200:]
    assert seconds < 3, "the bar is 0.3 s on a quiet machine; this only catches a heavy import"


@pytest.fixture
def photos(tmp_path: Path, rng: np.random.Generator) -> Path:
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    for name, shape in (("one.png", (40, 60, 3)), ("two.jpg", (33, 21, 3)), ("deeper/one.png", (64, 64, 3))):
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
    return folder


def test_explain_writes_pictures_masks_and_lines(
    saccade_command: Run, tiny_bundle_kept: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, printed, _ = saccade_command(
        "explain",
        photos,
        "--bundle",
        tiny_bundle_kept,
        "--out",
        out,
        "--format",
        "overlay",
        "--format",
        "mask",
        "--format",
        "npz",
    )
    assert code == 0
    assert "3 explained" in printed
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [Path(line["image"]).name for line in lines] == ["one.png", "one.png", "two.jpg"]
    names = {name for line in lines for name in line["files"].values()}
    assert names | {"results.jsonl"} == {path.name for path in out.iterdir()}

    session = ort.InferenceSession(tiny_bundle_kept / "explainer.onnx")
    for line in lines:
        with Image.open(line["image"]) as image:
            pixels = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))[None]
            width, height = image.size
        probabilities, target, mask = session.run(None, {"image": pixels, "target": np.array([-1])})
        with np.load(out / line["files"]["npz"]) as stored:
            np.testing.assert_allclose(
                stored["mask"], mask[0, 0], atol=0.02
            )  # Pillow's rounding between its two passes
            assert stored["target"] == target[0] == line["target"]
        assert line["probability"] == pytest.approx(probabilities[0, target[0]], abs=1e-2)
        assert line["class"] == ("ant", "bee", "cat", "dog", "emu")[target[0]]
        with Image.open(out / line["files"]["mask"]) as picture:
            assert (picture.mode, picture.size) == ("L", (width, height))
        with Image.open(out / line["files"]["overlay"]) as picture:
            assert picture.width >= 300


def test_json_is_one_line_an_image_and_writes_no_file(
    saccade_command: Run, tiny_bundle_kept: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    code, out, _ = saccade_command("explain", photos, "--bundle", tiny_bundle_kept, "--json")
    assert code == 0
    records = [json.loads(line) for line in out.splitlines()]
    assert len(records) == 3
    assert all(0 <= record["area"] <= 1 for record in records)
    assert list(work.iterdir()) == []


def test_a_target_that_the_explainer_does_not_know_about_is_said(
    saccade_command: Run, tiny_bundle_kept: Path, photos: Path
) -> None:
    code, out, err = saccade_command(
        "explain", photos / "one.png", "--bundle", tiny_bundle_kept, "--target", "cat", "--json"
    )
    record = json.loads(out)
    assert code == 0
    assert (record["class"], record["target"]) == ("cat", 2)
    assert record["explains"] == record["predicted"]
    assert "predicted class only" in err


def test_verify_passes_and_says_what_it_measured(saccade_command: Run, tiny_bundle_kept: Path) -> None:
    code, out, _ = saccade_command("verify", tiny_bundle_kept, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["passed"] is True
    assert len(report["checks"]) == 8
    code, out, _ = saccade_command("verify", tiny_bundle_kept)
    assert code == 0
    assert out.count("pass") >= 8


def test_bench_reports_rows_with_the_cost_in_forwards(saccade_command: Run, tiny_bundle_kept: Path) -> None:
    code, out, _ = saccade_command("bench", tiny_bundle_kept, "--batch-sizes", "1,4", "--seconds", "0.2", "--json")
    rows = json.loads(out)
    assert code == 0
    assert [row["batch"] for row in rows] == [1, 4]
    for row in rows:
        assert row["forwards"] > 0
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["p50_ms"] * 1e3)
        assert row["p95_ms"] >= row["p50_ms"]
        assert row["machine"]["onnxruntime"] == ort.__version__
    code, out, _ = saccade_command("bench", tiny_bundle_kept, "--batch-sizes", "2", "--seconds", "0.1")
    assert code == 0
    assert "forwards" in out


def test_doctor_names_what_is_there(saccade_command: Run) -> None:
    code, out, _ = saccade_command("doctor", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["saccade"] == saccade.__version__
    assert {p["package"]: p["version"] for p in report["packages"]}["onnxruntime"] == ort.__version__
    assert "CPUExecutionProvider" in report["providers"]
    assert saccade_command("doctor")[0] == 0


def test_doctor_says_what_a_gpu_lacks_where_there_is_one(saccade_command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from saccade.accel import gpu_libraries

    module = sys.modules["saccade.cli.doctor"]
    monkeypatch.setattr(gpu_libraries, "_loads", lambda name: "cudnn" not in name)
    assert "cudnn" not in saccade_command("doctor")[1], "there is no GPU to need it"
    monkeypatch.setattr(module, "_gpu", lambda: "NVIDIA L4, 570.1")
    said = " ".join(saccade_command("doctor")[1].split())
    assert "libcudnn.so.9, for ONNX Runtime's provider cuda: pip install 'onnxruntime-gpu[cuda,cudnn]'" in said
    assert "libcuda.so.1" not in said
    libraries = json.loads(saccade_command("doctor", "--json")[1])["gpu_libraries"]
    assert [library["name"] for library in libraries if not library["found"]] == ["libcudnn.so.9", "onnxruntime-gpu"]


def test_an_option_of_a_provider_is_read_or_refused(saccade_command: Run, tiny_bundle_kept: Path) -> None:
    code, _, err = saccade_command("verify", tiny_bundle_kept, "--provider-option", "cuda.device_id=1")
    assert code == 1
    assert "options are for 'cuda', and the providers asked for are CPUExecutionProvider" in " ".join(err.split())
    code, _, err = saccade_command("verify", tiny_bundle_kept, "--provider-option", "device_id=1")
    assert code == 2
    assert "cuda.enable_cuda_graph=1" in err


def test_scenes_write_a_folder_that_explain_takes(saccade_command: Run, tiny_bundle_kept: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    assert saccade_command("scenes", "write", folder, "--count", 6, "--variant", "context")[0] == 0
    about = json.loads((folder / "scenes.json").read_text())
    assert len(about["scenes"]) == 6
    for scene in about["scenes"]:
        with Image.open(folder / "masks" / scene["file"]) as mask:
            assert set(np.unique(np.asarray(mask))) == {0, 128, 255}
            left, top, right, bottom = scene["box"]
            rows, columns = np.nonzero(np.asarray(mask) == 255)
            assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (left, top, right, bottom)
    code, out, _ = saccade_command("explain", folder / "images", "--bundle", tiny_bundle_kept, "--json")
    assert code == 0
    assert len(list(csv.reader(io.StringIO(out)))) == 6
