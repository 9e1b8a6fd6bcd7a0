"""How good are the explanations of the scenes models? LTX and the gradient methods on held-out planted scenes.

    python benchmarks/faithfulness.py                         the committed models and checkpoints, 500 scenes
    python benchmarks/faithfulness.py --checkpoints runs/a runs/b   other checkpoints of the same models
    python benchmarks/faithfulness.py --explainers LTX              only explainers whose names begin so

Everything is exported to temporary bundles, and every number comes from ONNX Runtime. Writes
docs/explainers-on-scenes.md and benchmarks/results/faithfulness.json, where explainers that were not run stay.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from saccade.accel.engines import open_engine
from saccade.accel.machine import machine
from saccade.cli.contenders import bundle_contender
from saccade.cli.data import SCENES, sample_images
from saccade.cli.evaluate import record
from saccade.cli.evaluation import Contender, Evaluation, decimals, evaluate_contenders
from saccade.cli.evaluation_data import ScenesData
from saccade.cli.options import SHORT_SPECS
from saccade.contracts import Uint8
from saccade.evaluate.baselines import centre_gaussian, random_masks
from saccade.evaluate.metrics import Estimate, Predict, make_metrics
from saccade.evaluate.weights_folder import WEIGHTS
from saccade.export.write_bundle import export_gradient, export_trained
from saccade.methods.checkpoint import load_checkpoint, read_record
from saccade.methods.explainee import Explainee, load_explainee
from saccade.methods.gradient.config import GradientConfig

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "faithfulness.json"
FIRST = 20_000  # scenes of the test split that no setting was chosen on; 10,000 … 10,149 were used for that
SLOW = ("sic", "aic", "sensitivity", "randomisation")  # many seconds for each scene and explainer
SLOW_SCENES = 50
GRADIENT_METHODS = {
    "scenes:resnet": ("gradcam", "layercam", "dix2", "dix3", "iia2", "iia3", "ig"),
    "scenes:vit": ("gradcam", "layercam", "rollout", "class-rollout", "gradient-rollout", "dix2", "iia2", "ig"),
}
METRICS = (
    "pointing-box",
    "contrast",
    "precision",
    "insertion",
    "deletion",
    "insertion-deletion",
    "positive",
    "negative",
    "adp",
    "add",
    "miou",
    "f1",
    "area",
    "smoothness",
)


def checkpoints_of(spec: str, folders: Sequence[Path]) -> list[Path]:
    """Those that explain a model."""
    return [folder for folder in folders if read_record(folder).explainee == spec]


def predict_with(explainee: Explainee) -> Predict:
    """The classifier in PyTorch, for a model that no bundle holds."""

    def predict(images: Uint8) -> np.ndarray[Any, Any]:
        pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            return explainee.model(explainee.normalise(pixels)).softmax(1).numpy()

    return predict


def evaluate_model(
    spec: str,
    folders: Sequence[Path],
    methods: Sequence[str],
    data: ScenesData,
    progress: Progress,
    wanted: Callable[[str], bool],
) -> tuple[Evaluation, Evaluation]:
    """The explainers wanted of one model: all scenes, and the slow metrics on some."""
    explainee = load_explainee(spec)
    predict = predict_with(explainee)
    with ExitStack() as stack:
        contenders: list[Contender] = []
        for folder in checkpoints_of(spec, folders):
            explainer, about = load_checkpoint(folder)
            name = "INR" if about.method == "inr" else f"LTX {about.config.form}"  # type: ignore[attr-defined]
            if about.method == "ltx" and explainer.class_specific:
                name = "LTX any class"
            if not wanted(name):
                continue
            target = Path(stack.enter_context(tempfile.TemporaryDirectory())) / name
            engine = open_engine(export_trained(explainer, about, sample_images(about.data, about.image_spec), target))
            contenders.append(bundle_contender(engine, stack))
            predict = engine.probabilities
        for method in filter(wanted, methods):
            target = Path(stack.enter_context(tempfile.TemporaryDirectory())) / method
            config = GradientConfig(method=method, preset="fast")
            progress.console.print(f"{spec}: exporting {method}")
            images = sample_images(SCENES, explainee.image_spec)
            engine = open_engine(export_gradient(explainee, config, images, target))
            contenders.append(bundle_contender(engine, stack))
            predict = engine.probabilities
        blind = [
            Contender("centre", centre_gaussian(), centre_gaussian),
            Contender("random", random_masks(), random_masks),
        ]
        contenders += [entry for entry in blind if wanted(entry.name)]
        if not contenders:
            raise SystemExit(f"no explainer of {spec} has such a name")
        bars = {entry.name: progress.add_task(f"{spec} {entry.name}", total=data.count) for entry in contenders}

        def done(name: str, count: int) -> None:
            progress.update(bars[name], completed=count)

        some = ScenesData(data.size, min(data.count, SLOW_SCENES), data.first)
        return (
            evaluate_contenders(contenders, make_metrics(METRICS), data, predict, on_progress=done),
            evaluate_contenders(contenders, make_metrics(SLOW), some, predict, on_progress=done),
        )


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A record in which explainers that were measured again take the place of the old ones."""
    if old and (old["images"], old["accuracy"]) != (new["images"], new["accuracy"]):
        raise SystemExit("these are other scenes than the stored ones; measure all explainers, or use --dry")
    names = [entry["name"] for entry in new["explainers"]]
    kept = [entry for entry in old.get("explainers", ()) if entry["name"] not in names]
    together = {entry["name"]: entry for entry in [*kept, *new["explainers"]]}
    for entry in together.values():
        entry.pop("more_than_the_first", None)  # the first may be another one now
    return {**new, "explainers": [together[name] for name in sorted(together, key=place)]}


def place(name: str) -> tuple[int, str]:
    """Where an explainer stands in the table: trained, then traced, then blind ones."""
    order = ["LTX own", "LTX shared", "LTX any class", *dict.fromkeys(sum(GRADIENT_METHODS.values(), ())), "centre"]
    return (order.index(name) if name in order else len(order), name)


def table(stored: dict[str, Any], header: bool = True) -> str:
    """A Markdown table, a metric per row."""
    explainers = stored["explainers"]
    lines = (
        ["| metric | " + " | ".join(entry["name"] for entry in explainers) + " |", "|---|" + "---|" * len(explainers)]
        if header
        else []
    )
    for metric, higher in stored["higher_is_better"].items():
        arrow = {True: " ↑", False: " ↓", None: ""}[higher]
        cells = []
        for entry in explainers:
            found = entry["metrics"].get(metric)
            if found is None or not found["images"]:
                cells.append("–")
                continue
            value = Estimate(**found)
            digits = decimals(value)
            cells.append(f"{value.value:.{digits}f} ({value.low:.{digits}f}–{value.high:.{digits}f})")
        lines.append(f"| {metric}{arrow} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def whole_table(stored: dict[str, dict[str, Any]]) -> str:
    """Both evaluations, one below the other."""
    first, some = stored.values()
    return table(first) + "\n" + table(some, header=False)


def write_docs(models: dict[str, dict[str, dict[str, Any]]], data: ScenesData) -> None:
    """The page in docs/."""
    text = [
        "# Explainers on planted scenes",
        "",
        f"{data.count} scenes of the test split from index {data.first} on, which no setting was chosen on. "
        "Explained and watched is the predicted class; removed pixels are grey (128); 16 steps; in brackets the 95 % "
        f"bootstrap interval over the scenes. The last four metrics are of the first {SLOW_SCENES} scenes. "
        "`saccade evaluate x --metrics help` says what each metric is. Gradient methods run with `--preset fast`.",
        "",
        "This page is written by `python benchmarks/faithfulness.py`.",
    ]
    for name, stored in models.items():
        accuracy = next(iter(stored.values()))["accuracy"]
        text += ["", f"## {name}, {accuracy:.1%} right", "", whole_table(stored)]
    text += [
        "",
        "*random* and *centre* (a Gaussian in the middle) do not look at the image; they say what a metric gives for "
        "nothing. A *randomisation* of 1 means that the mask does not change when the model's weights are shuffled.",
    ]
    (ROOT / "docs" / "explainers-on-scenes.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoints", nargs="*", type=Path, default=sorted(path.parent for path in WEIGHTS.glob("*/checkpoint.json"))
    )
    parser.add_argument("--count", type=int, default=500, help="number of held-out scenes")
    parser.add_argument("--models", nargs="*", choices=sorted(GRADIENT_METHODS), default=sorted(GRADIENT_METHODS))
    parser.add_argument("--explainers", nargs="*", default=[""], metavar="NAME", help="beginnings of names")
    parser.add_argument("--dry", action="store_true", help="print the tables, write nothing")
    arguments = parser.parse_args()
    data = ScenesData(96, arguments.count, FIRST)
    console = Console(width=160)
    wanted = tuple(arguments.explainers)
    models: dict[str, dict[str, dict[str, Any]]] = {}
    if RESULTS.exists():
        models = json.loads(RESULTS.read_text(encoding="utf-8"))["models"]
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for name in arguments.models:
            spec, methods = SHORT_SPECS[name], GRADIENT_METHODS[name]
            found = evaluate_model(
                spec, arguments.checkpoints, methods, data, progress, lambda title: title.startswith(wanted)
            )
            old = models.get(name, {})
            models[name] = {
                title: merged(old.get(title, {}), record(result, {}))
                for title, result in zip(("all scenes", f"the first {SLOW_SCENES}"), found, strict=True)
            }
    for name in arguments.models:
        console.print(f"{name}\n{whole_table(models[name])}\n", markup=False)
    if arguments.dry:
        return
    write_docs(models, data)
    about = {"scenes": data.count, "first": FIRST, "split": "test", "machine": machine()}
    RESULTS.write_text(json.dumps({**about, "models": models}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
