from __future__ import annotations

import copy
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from saccade.accel.engines import open_engine
from saccade.accel.verify import verify_engine
from saccade.methods.explainee import Explainee
from saccade.methods.gradient.config import ALIASES, METHODS

Command = Callable[..., tuple[int, str, str]]
MODEL = ("--model", "python:tiny:build")


@pytest.fixture(autouse=True)
def _importable(tiny_explainee: Explainee, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the tiny model's spec, python:tiny:build, one that can be loaded."""
    module = types.ModuleType("tiny")
    module.build = lambda: copy.deepcopy(tiny_explainee.model)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tiny", module)


@pytest.mark.parametrize("method", ["gradcam", "layercam", "dix", "iia", "ig"])
def test_a_method_becomes_a_bundle_that_answers_for_any_class(
    saccade_command: Command, tmp_path: Path, method: str
) -> None:
    code, out, err = saccade_command("export", "--method", method, *MODEL, "--steps", 3, "--out", tmp_path / "bundle")
    assert code == 0, err
    assert "change from class to class" in out
    engine = open_engine(tmp_path / "bundle")
    assert engine.bundle.manifest.method == ALIASES.get(method, method)
    assert engine.bundle.manifest.class_specific
    assert [check.name for check in verify_engine(engine) if not check.passed] == []
    golden = engine.bundle.golden
    assert set(golden.target.tolist()) > {-1}
    masks = [engine.run(golden.images, label).mask for label in range(5)]
    assert min(float(np.abs(a - b).max()) for i, a in enumerate(masks) for b in masks[:i]) > 0.01


def test_the_graph_has_standard_forward_operators_only(saccade_command: Command, tmp_path: Path) -> None:
    code, _, err = saccade_command("export", "--method", "dix2", *MODEL, "--steps", 2, "--out", tmp_path / "bundle")
    assert code == 0, err
    model = onnx.load(tmp_path / "bundle" / "explainer.onnx")
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert {node.op_type for node in model.graph.node} <= known
    assert not any("Grad" in node.op_type for node in model.graph.node)


def test_every_method_is_listed(saccade_command: Command) -> None:
    code, out, _ = saccade_command("export", "--method", "help", "--out", "x")
    assert code == 0
    for name in METHODS:
        assert re.search(rf"^{name} ", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give either --checkpoint DIR or --method NAME --model SPEC"),
        (("--method", "gradcam"), "needs the classifier: --model SPEC"),
        (("--method", "gradcam", "--checkpoint", "x", *MODEL), "give either"),
        (("--method", "gradcan", *MODEL), "no method 'gradcan'; did you mean gradcam"),
        (("--method", "gradcam", "--layer", "lat", *MODEL), "no layer 'lat'; did you mean late"),
        (("--method", "dix3", *MODEL), "dix3 reads 3 layers of the model, the last one first, and there are 2"),
        (("--method", "rollout", *MODEL), "the model calls no attention"),
        (("--method", "gradcam", "--classes", "nowhere.txt", *MODEL), "cannot read the class names in 'nowhere.txt'"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_sentence_and_leaves_nothing(
    saccade_command: Command, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, _, err = saccade_command("export", *arguments, "--out", tmp_path / "bundle")
    assert code == 1
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_too_few_images_for_the_gate_are_refused_before_anything_is_compiled(
    saccade_command: Command, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saccade.export.write_bundle.export_gradient", lambda *_, **__: pytest.fail("compiled"))
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(3):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(photos / f"{index}.png")
    out = tmp_path / "bundle"
    code, _, err = saccade_command("export", "--method", "gradcam", *MODEL, "--data", photos, "--out", out)
    assert code == 1
    assert f"needs at least 16 images and '{photos}' has 3" in " ".join(err.split())
    assert not out.exists()
