"""``saccade bench`` over engines and precisions, and ``saccade tune``."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from running_server import running

from saccade.accel import tune as tuning_module
from saccade.accel.bench import BenchRow, Candidate, bench_engines
from saccade.accel.bundle import open_bundle
from saccade.accel.engines import open_engine
from saccade.accel.machine import tuning_key
from saccade.accel.manifest import Tuning
from saccade.accel.onnx_engine import OnnxEngine
from saccade.accel.tune import store_tuning, tune
from saccade.cli.bench_plot import draw_bench
from saccade.errors import EngineError, ParityError
from saccade.export.write_bundle import export_gradient
from saccade.methods.explainee import Explainee
from saccade.methods.gradient.config import GradientConfig

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def gradients(tiny_explainee: Explainee, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle of a gradient method whose classifier can be built again."""
    module = ModuleType("tiny_for_bench")
    module.build = lambda: copy.deepcopy(tiny_explainee.model)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tiny_for_bench", module)
    from saccade.methods.explainee import load_explainee

    images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    explainee = load_explainee("python:tiny_for_bench:build")
    export_gradient(explainee, GradientConfig(method="gradcam"), images, tmp_path / "bundle", precisions=("fp16",))
    return tmp_path / "bundle"


def test_all_engines_and_precisions_and_the_original_are_rows_of_one_run(
    saccade_command: Run, gradients: Path, tmp_path: Path
) -> None:
    code, out, err = saccade_command(
        *("bench", gradients, "--engine", "all", "--precision", "all", "--compare", "torch-eager,torch-compile"),
        *("--batch-sizes", "1,4", "--seconds", "0.1", "--plot", tmp_path / "bench.png", "--json"),
    )
    assert code == 0, err
    rows = json.loads(out)
    assert {(row["engine"], row["precision"]) for row in rows} == {
        ("onnx", "fp32"),
        ("onnx", "fp16"),
        ("openvino", "fp32"),
        ("openvino", "fp16"),
        ("torch-eager", "fp32"),
        ("torch-compile", "fp32"),
    }
    assert [row["batch"] for row in rows] == [1] * 6 + [4] * 6
    for row in rows:
        assert row["mask_cosine"] > 0.999
        assert row["mask_max_abs"] < (1e-4 if row["precision"] == "fp32" else 2e-2)
        assert row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["runs"] >= 20
        assert row["memory_mib"] >= 0
    assert any(line.startswith("tensorrt:") for line in rows[0]["left_out"]), "there is no plan here"
    with Image.open(tmp_path / "bench.png") as picture:
        assert picture.size[0] > 800


def test_an_engine_that_was_asked_for_by_name_must_run(saccade_command: Run, gradients: Path) -> None:
    code, _, err = saccade_command("bench", gradients, "--engine", "onnx,tensorrt", "--seconds", "0.1")
    assert code == 1
    assert "GPU" in err
    code, _, err = saccade_command("bench", gradients, "--engine", "onyx")
    assert code == 1
    assert "did you mean onnx" in err
    code, _, err = saccade_command("bench", gradients, "--precision", "int8", "--seconds", "0.1")
    assert code == 1
    assert "holds no int8 graph" in err


def test_a_rival_is_the_bundles_own_original(
    saccade_command: Run, tiny_bundle_kept: Path, gradients: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = saccade_command("bench", tiny_bundle_kept, "--compare", "torch-eager", "--seconds", "0.1")
    assert code == 1
    assert "--checkpoint DIR" in err
    code, _, err = saccade_command("bench", gradients, "--compare", "torch-script")
    assert code == 1
    assert "did you mean" in err
    other = copy.deepcopy(sys.modules["tiny_for_bench"].build())
    next(other.parameters()).data.mul_(1.5)
    monkeypatch.setattr(sys.modules["tiny_for_bench"], "build", lambda: other)
    code, _, err = saccade_command("bench", gradients, "--compare", "torch-eager", "--seconds", "0.1")
    assert code == 1
    assert "is not the classifier" in err


def test_engines_take_turns(tiny_bundle_kept: Path) -> None:
    calls: list[str] = []

    class Noting(OnnxEngine):
        def run(self, *arguments: object, **options: object) -> object:  # type: ignore[override]
            calls.append(self.name)
            return super().run(*arguments, **options)  # type: ignore[arg-type]

    def opened(name: str) -> Noting:
        engine = Noting(open_bundle(tiny_bundle_kept), threads=1)
        engine.name = name
        return engine

    rows = bench_engines(
        [Candidate(name, lambda name=name: opened(name)) for name in "abc"],  # type: ignore[misc]
        (2,),
        seconds=1e-9,
        min_runs=6,
    )
    assert [row.engine for row in rows] == ["a", "b", "c"]
    timed = calls[-18:]
    assert timed == list("abcbcacababcbcacab"), "each round begins with the next"


def test_a_picture_shows_every_engine() -> None:
    rows = [
        BenchRow(engine, "fp32", batch, 1, 20, 5.0 * batch, 6.0, 7.0, 4.0 * batch, 200, 1.2, 1.1, 1.3, 10, None, 0, 1)
        for engine in ("onnx", "openvino")
        for batch in (1, 8)
    ]
    one, both = (
        np.asarray(Image.open(BytesIO(draw_bench(part, "A model"))).convert("RGB")).reshape(-1, 3)
        for part in (rows[:2], rows)
    )
    blue, red = (0x2A, 0x6F, 0xBB), (0xC8, 0x45, 0x2F)
    assert (one == blue).all(1).any()
    assert (both == red).all(1).any()
    assert not (one == red).all(1).any()


def test_tuning_is_kept_for_this_class_of_machines(saccade_command: Run, tiny_bundle: Path) -> None:
    code, out, err = saccade_command("tune", tiny_bundle, "--seconds", "0.1", "--batch-size", "2", "--json")
    assert code == 0, err
    report = json.loads(out)
    stored = open_bundle(tiny_bundle).manifest.tuning[tuning_key("fp32")]
    assert stored.model_dump() == report["tuning"]
    assert report["machine"] in tuning_key("fp32")
    taken = {trial["name"] for trial in report["trials"] if trial["taken"]}
    assert all(trial["gain"] >= 1.02 for trial in report["trials"] if trial["name"] in taken)
    assert saccade_command("tune", tiny_bundle, "--seconds", "0.1", "--dry-run")[0] == 0
    assert saccade_command("verify", tiny_bundle)[0] == 0


def test_the_engine_takes_what_was_tuned_for_its_machine(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = Tuning(threads=1, graph_optimization="basic", arena=False, gain=1.3)
    bundle = store_tuning(open_bundle(tiny_bundle), "fp32", tuned)
    engine = open_engine(bundle)
    assert isinstance(engine, OnnxEngine)
    assert (engine.threads, engine.tuning) == (1, tuned)
    assert "basic" in engine.identity, "another graph must pass the golden samples again"
    monkeypatch.setattr("saccade.accel.onnx_engine.core_count", lambda: 3)
    assert open_engine(bundle, threads=2).threads == 2  # type: ignore[attr-defined]
    # fails: as many threads as asked for, of which each operator waits for those without a core
    assert open_engine(bundle, threads=134).threads == 3  # type: ignore[attr-defined]
    answers = engine.run(bundle.golden.images).mask
    np.testing.assert_allclose(answers, bundle.golden.mask, atol=1e-4)
    monkeypatch.setattr("saccade.accel.machine.machine_class", lambda: "another machine")
    assert open_engine(bundle).threads == 0  # type: ignore[attr-defined]


def test_the_fastest_settings_are_found_one_by_one(tiny_bundle_kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gain(bundle: object, precision: str, tried: Tuning, against: Tuning, *others: object) -> tuple[float, float]:
        if tried.graph_optimization == "extended":
            raise ParityError("another mask")
        speed = {True: 1.2, False: 1.0}
        ratio = speed[tried.spinning] / speed[against.spinning] * (0.9 if not tried.arena else 1.0)
        return ratio, ratio

    monkeypatch.setattr(tuning_module, "_gain", gain)
    found, trials = tune(open_bundle(tiny_bundle_kept))
    assert found == Tuning(spinning=True, gain=1.2)
    assert [trial.name for trial in trials if trial.taken] == ["threads that wait keep their core"]
    assert [trial.name for trial in trials if trial.refused] == ["graph optimisation: extended"]


def test_a_precision_that_the_bundle_lacks_cannot_be_tuned(tiny_bundle_kept: Path) -> None:
    with pytest.raises(EngineError, match="holds no int8 graph"):
        tune(open_bundle(tiny_bundle_kept), precision="int8")


def test_a_server_is_measured_under_load(saccade_command: Run, tiny_bundle_kept: Path, tmp_path: Path) -> None:
    with running({"tiny": tiny_bundle_kept}) as server:
        level = ("bench", "serve", server.url, "--seconds", 0.6, "--clients", "1,4", "--plot", tmp_path / "load.png")
        code, out, err = saccade_command(*level, "--rates", "20", "--json")
        assert code == 0, err
        rows = json.loads(out)
        assert [(row["loop"], row["level"]) for row in rows] == [("closed", 1), ("closed", 4), ("open", 20)]
        for row in rows:
            assert row["answered"] > 0
            assert (row["failed"], row["wrong"], row["refused"], row["unsent"]) == (0, 0, 0, 0)
            assert row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert np.asarray(Image.open(tmp_path / "load.png")).std() > 1
        code, out, err = saccade_command(*level, "--rates", "none", "--outputs", "probabilities")
        assert code == 0, err
        assert "4 clients" in out
        code, _, err = saccade_command(*level, "--model", "nobody")
        assert (code, "there is no model 'nobody'; there are: tiny" in err) == (1, True)
    code, _, err = saccade_command("bench", "serve", "localhost:1")
    assert (code, "cannot be reached" in err) == (1, True)
    assert saccade_command("bench", "serve", "localhost:1", "--rates", "x")[0] == 2
    code, out, _ = saccade_command("bench", "serve", "--help")
    assert "saccade bench serve http://localhost:8000" in out
