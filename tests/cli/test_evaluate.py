from __future__ import annotations

import copy
import json
import re
import sys
import types
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saccade.accel.engines import open_engine
from saccade.accel.image import load_image
from saccade.methods.explainee import Explainee

Command = Callable[..., tuple[int, str, str]]
FAST = ("--batch-size", 16, "--steps", 4)


@pytest.fixture
def photos(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Eight images in folders called like classes, with ground truth in tmp_path/truth."""
    for index in range(8):
        name = f"{('ant', 'bee')[index % 2]}/{index}.png"
        for folder, pixels in (
            ("photos", rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)),
            ("truth", np.pad(np.full((9, 7), 255, np.uint8), ((5, 18), (index, 25 - index)))),
        ):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return tmp_path / "photos"


@pytest.fixture
def importable(tiny_explainee: Explainee, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the tiny model's spec, python:tiny:build, one that can be loaded."""
    module = types.ModuleType("tiny")
    module.build = lambda: copy.deepcopy(tiny_explainee.model)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tiny", module)


def deletion_by_hand(bundle: Path, photos: Path, steps: int, colour: tuple[int, ...]) -> float:
    """One image, one step, one forward at a time."""
    engine = open_engine(bundle)
    areas = []
    for file in sorted(photos.rglob("*.png")):
        image = load_image(file)
        answer = engine.run(image[None])
        label = int(answer.target[0])
        order = np.argsort(-answer.mask[0, 0].reshape(-1), kind="stable")
        heights = []
        for step in range(steps + 1):
            altered = image.reshape(-1, 3).copy()
            altered[order[: 1024 * step // steps]] = colour
            heights.append(float(engine.run(altered.reshape(1, 32, 32, 3)).probabilities[0, label]))
        areas.append(sum((a + b) / 2 / steps for a, b in pairwise(heights)))
    return float(np.mean(areas))


def test_the_numbers_are_those_of_a_loop_over_the_bundle(
    saccade_command: Command, tiny_bundle_kept: Path, photos: Path
) -> None:
    code, out, _ = saccade_command(
        "evaluate", tiny_bundle_kept, "--data", photos, "--metrics", "deletion,area", "--json", *FAST
    )
    assert code == 0
    result = json.loads(out)
    (explainer,) = result["explainers"]
    mean = open_engine(tiny_bundle_kept).bundle.manifest.image.mean
    expected = deletion_by_hand(tiny_bundle_kept, photos, 4, tuple(round(255 * part) for part in mean))
    found = explainer["metrics"]["deletion"]
    assert found["value"] == pytest.approx(expected, abs=1e-5)
    assert found["low"] < found["value"] < found["high"]
    assert found["images"] == result["images"] == 8
    assert explainer["curves"]["deletion"]["x"] == [0, 0.25, 0.5, 0.75, 1]
    masks = open_engine(tiny_bundle_kept).run(np.stack([load_image(f) for f in sorted(photos.rglob("*.png"))])).mask
    assert explainer["metrics"]["area"]["value"] == pytest.approx(float(masks.mean()), abs=1e-5)


def test_accuracy_and_target_come_from_the_folders(
    saccade_command: Command, tiny_bundle_kept: Path, photos: Path
) -> None:
    engine = open_engine(tiny_bundle_kept)
    files = sorted(photos.rglob("*.png"))
    probabilities = engine.probabilities(np.stack([load_image(file) for file in files]))
    labels = np.array([engine.bundle.manifest.class_names.index(file.parent.name) for file in files])
    results = {}
    for target in ("predicted", "label"):
        code, out, _ = saccade_command(
            "evaluate", tiny_bundle_kept, "--data", photos, "--metrics", "positive,insertion", "--target", target,
            "--json", *FAST,
        )  # fmt: skip
        assert code == 0
        results[target] = json.loads(out)
    assert results["label"]["accuracy"] == pytest.approx(float((probabilities.argmax(1) == labels).mean()))
    clean = {target: result["explainers"][0]["curves"]["insertion"]["y"][0] for target, result in results.items()}
    assert clean["label"] == pytest.approx(float(probabilities[np.arange(8), labels].mean()), abs=1e-6)
    assert clean["predicted"] == pytest.approx(float(probabilities.max(1).mean()), abs=1e-6)


@pytest.mark.usefixtures("importable")
def test_every_metric_of_every_kind_of_explainer_and_a_page(
    saccade_command: Command, tiny_bundle_kept: Path, tiny_own_bundle_kept: Path, photos: Path, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    code, out, err = saccade_command(
        "evaluate", tiny_bundle_kept, "--data", photos, "--masks", tmp_path / "truth", "--metrics", "all",
        "--against", tiny_own_bundle_kept, "--against", "random", "--against", "centre", "--against", "grad-cam",
        "--against", "integrated-gradients", "--report", page, *FAST,
    )  # fmt: skip
    assert code == 0, err
    for name in ("insertion", "sic", "miou", "f1-rows", "sensitivity", "randomisation", "tiny-own", "grad-cam"):
        assert name in out
    html = page.read_text()
    confident = open_engine(tiny_bundle_kept).probabilities(np.stack([load_image(f) for f in photos.rglob("*.png")]))
    assert float(confident.max()) < 0.8, "so SIC is not defined for any image, and has no curve"
    assert html.count("<svg") == 5
    assert html.count("<polyline") == 5 * 6
    assert "http" not in html.replace("http://www.w3.org", "")
    assert not re.search(r"\$[a-z]", html), "a placeholder was left"
    assert html.count("data:image/webp") == 6 * (2 + 6)


def test_a_rival_is_compared_image_by_image(
    saccade_command: Command, tiny_bundle_kept: Path, tiny_own_bundle_kept: Path, photos: Path
) -> None:
    values: dict[str, Any] = {}
    for first, second in ((tiny_bundle_kept, tiny_own_bundle_kept), (tiny_own_bundle_kept, tiny_bundle_kept)):
        code, out, _ = saccade_command(
            "evaluate", first, "--against", second, "--data", photos, "--metrics", "deletion", "--json", *FAST
        )
        assert code == 0
        values[first.name] = json.loads(out)["explainers"]
    there, back = values["tiny"][1]["more_than_the_first"], values["tiny-own"][1]["more_than_the_first"]
    assert there["deletion"]["value"] == pytest.approx(-back["deletion"]["value"], abs=1e-9)
    assert there["deletion"]["low"] == pytest.approx(-back["deletion"]["high"], abs=1e-9)
    difference = values["tiny"][1]["metrics"]["deletion"]["value"] - values["tiny"][0]["metrics"]["deletion"]["value"]
    assert there["deletion"]["value"] == pytest.approx(difference, abs=1e-9)
    assert values["tiny"][0]["more_than_the_first"] == {}


def test_a_bundle_can_be_held_against_itself_under_another_name(
    saccade_command: Command, tiny_bundle_kept: Path, photos: Path
) -> None:
    code, out, _ = saccade_command(
        "evaluate", tiny_bundle_kept, "--against", tiny_bundle_kept, "--data", photos, "--metrics", "area", "--json"
    )
    assert code == 0
    second = json.loads(out)["explainers"][1]
    assert second["more_than_the_first"]["area"]["value"] == 0


def test_an_image_that_cannot_be_read_is_told_and_the_exit_code_is_1(
    saccade_command: Command, tiny_bundle_kept: Path, photos: Path
) -> None:
    (photos / "ant" / "0.png").write_bytes(b"")
    code, out, err = saccade_command("evaluate", tiny_bundle_kept, "--data", photos, "--metrics", "area", "--json")
    assert code == 1
    assert json.loads(out)["images"] == 7
    assert "0.png' is empty (0 bytes)" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--metrics", "insertoin"), "no metric 'insertoin'; did you mean insertion"),
        (("--metrics", "pointing"), "pointing: needs ground truth; give a folder of masks with --masks"),
        (("--against", "gradcam"), "neither a bundle nor a baseline.*did you mean grad-cam"),
        (("--report", "/nowhere/at/all/page.html"), "no folder '/nowhere/at/all' for the report"),
        (("--data", "/nowhere"), "no file or folder '/nowhere'"),
        (("--memory-budget", "0.1"), "a memory budget of 102 MiB is too small"),
    ],
)
def test_what_cannot_work_is_one_sentence(
    saccade_command: Command, tiny_bundle_kept: Path, photos: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = saccade_command("evaluate", tiny_bundle_kept, "--data", photos, *arguments)
    assert code == 1
    assert out == ""
    assert re.search(message, " ".join(err.split()))
    assert "Traceback" not in err


def test_labels_are_needed_to_explain_them(saccade_command: Command, tiny_bundle_kept: Path, photos: Path) -> None:
    code, _, err = saccade_command("evaluate", tiny_bundle_kept, "--data", photos / "ant", "--target", "label")
    assert code == 1
    assert "--target label needs labels" in err


def test_a_bundle_of_another_classifier_is_refused(
    saccade_command: Command, tiny_bundle: Path, tiny_bundle_kept: Path, photos: Path
) -> None:
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    manifest["explainee"]["fingerprint"] = "0" * 64
    (tiny_bundle / "manifest.json").write_text(json.dumps(manifest))
    code, _, err = saccade_command("evaluate", tiny_bundle_kept, "--against", tiny_bundle, "--data", photos)
    assert code == 1
    assert "explains another classifier" in err


@pytest.mark.usefixtures("importable")
def test_other_weights_than_those_exported_are_refused(
    saccade_command: Command, tiny_bundle_kept: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = sys.modules["tiny"].build

    def changed() -> Any:
        model = build()
        model.head.bias.data += 1
        return model

    monkeypatch.setattr(sys.modules["tiny"], "build", changed)
    code, _, err = saccade_command("evaluate", tiny_bundle_kept, "--against", "grad-cam", "--data", photos)
    assert code == 1
    assert "is not the classifier that" in err


def test_the_list_of_metrics_names_all(saccade_command: Command) -> None:
    from saccade.evaluate.metrics import METRIC_NAMES

    code, out, _ = saccade_command("evaluate", "x", "--metrics", "help")
    assert code == 0
    for name in METRIC_NAMES:
        assert re.search(rf"^{name} ", out, re.MULTILINE)
