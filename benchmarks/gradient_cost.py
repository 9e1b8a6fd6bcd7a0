"""What the gradient methods cost in forwards on ONNX Runtime CPU, at 224 px and batch 1; integrated gradients beside
Captum's, DIX and IIA of a ViT beside the loops of the published code.

    python benchmarks/gradient_cost.py                      all, about half an hour on two cores
    python benchmarks/gradient_cost.py --cases gradcam dix2 --seconds 5

The unit is the classifier alone, as a graph of its own that runs in turn with it. Weights are random: cost does not
depend on them. The last part runs ViT-B IIA2 on a batch of 8 in a process of its own and tells its largest memory.
Writes benchmarks/results/gradient_cost.json, where cases that were not run stay.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from zoo import build, photographs, tensors

from saccade.accel.machine import machine
from saccade.accel.onnx_prune import prune_onnx
from saccade.export.graph import ExplainerGraph, TracedExplainer
from saccade.export.to_onnx import export_onnx
from saccade.methods.explainee import Explainee
from saccade.methods.gradient.config import GradientConfig
from saccade.methods.gradient.explainer import GradientExplainer

RESULTS = Path(__file__).parent / "results"
VIT = "ViT-B/16 (timm)"


@dataclass(frozen=True)
class Case:
    """A method on a model, and the most that it may cost in forwards."""

    model: str
    config: GradientConfig
    bar: float | None = None
    published_passes: int = 0  # forwards with backwards, one by one, in the published code


CASES = (
    Case("ResNet-50", GradientConfig(method="gradcam"), 1.10),
    Case("ResNet-50", GradientConfig(method="layercam"), 1.10),
    Case("ResNet-50", GradientConfig(method="dix1"), 1.10),
    Case("ResNet-50", GradientConfig(method="dix2"), 4),
    Case("ResNet-50", GradientConfig(method="dix3"), 17),
    Case("ResNet-50", GradientConfig(method="iia2"), 13),
    Case("ResNet-101", GradientConfig(method="iia3"), 26),
    Case("ResNet-50", GradientConfig(method="ig")),
    Case(VIT, GradientConfig(method="gradcam"), 1.0),
    Case(VIT, GradientConfig(method="layercam"), 1.0),
    Case(VIT, GradientConfig(method="rollout")),
    Case(VIT, GradientConfig(method="class-rollout"), 1.0),
    Case(VIT, GradientConfig(method="gradient-rollout"), 3.5),
    Case(VIT, GradientConfig(method="dix2"), None, 24),
    Case(VIT, GradientConfig(method="iia2"), None, 42),
    Case(VIT, GradientConfig(method="ig")),
    Case("ResNet-50", GradientConfig(method="dix2", preset="fast")),
    Case("ResNet-50", GradientConfig(method="iia2", preset="fast")),
    Case("ResNet-101", GradientConfig(method="iia3", preset="fast")),
    Case("ResNet-50", GradientConfig(method="ig", preset="fast")),
    Case(VIT, GradientConfig(method="dix2", preset="fast")),
    Case(VIT, GradientConfig(method="iia2", preset="fast")),
    Case(VIT, GradientConfig(method="ig", preset="fast")),
)

MEMORY = """
import sys
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.enable_mem_pattern = False  # as the engine for such a bundle
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
images = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3), dtype=np.uint8)
at_once = int(sys.argv[2])  # as the engine does with a bundle of this budget
for start in range(0, 8, at_once):
    part = images[start : start + at_once]
    session.run(["mask"], {"image": part, "target": np.full(len(part), -1, dtype=np.int64)})
print(next(int(line.split()[1]) / 2**20 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def session_of(graph: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def in_turn(calls: list[Callable[[], object]], seconds: float, least: int = 3) -> np.ndarray:
    """Seconds of each call, (rounds, calls), one after the other, the order turned round every time."""
    for call in calls:
        call()
    rounds: list[list[float]] = []
    began = time.perf_counter()
    while len(rounds) < least or time.perf_counter() - began < seconds:
        row = [0.0] * len(calls)
        for place in range(len(calls))[:: 1 if len(rounds) % 2 else -1]:
            start = time.perf_counter()
            calls[place]()
            row[place] = time.perf_counter() - start
        rounds.append(row)
    return np.asarray(rounds)


def captum(explainee: Explainee, images: torch.Tensor) -> Callable[[], object]:
    """Captum's integrated gradients as its documentation calls them: 50 points in one pass."""
    from captum.attr import IntegratedGradients

    gradients = IntegratedGradients(explainee.model)
    return lambda: gradients.attribute(images, target=1, n_steps=50)


def published_pass(explainee: Explainee, images: torch.Tensor) -> Callable[[], object]:
    """One forward with one backward in PyTorch, gradients of the weights included, as the published code runs them."""
    explainee.model.requires_grad_(True)

    def run() -> None:
        explainee.model.zero_grad(set_to_none=True)
        explainee.model(images)[0, 1].backward()

    return run


class Alone(nn.Module):
    """The classifier without its explainer, whole: of a transformer's last block a graph that explains leaves out what
    the logits do not need.
    """

    def __init__(self, explainer: GradientExplainer) -> None:
        super().__init__()
        self.whole = ExplainerGraph(explainer)

    def forward(self, image: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.whole.predict(image), target + 0


def measure(case: Case, seconds: float, folder: Path) -> dict[str, object]:
    explainee = build(case.model)
    began = time.perf_counter()
    explainer = GradientExplainer(explainee, case.config).eval()
    graph = ExplainerGraph(TracedExplainer(explainer)).eval()
    path = folder / "explainer.onnx"
    export_onnx(graph, explainee.image_spec, path, example=graph.example(), outputs=graph.outputs, rewrite=False)
    export_seconds = time.perf_counter() - began
    images = photographs(explainee.image_spec)[:1]
    normalised = tensors(images, explainee.image_spec)
    alone, names = folder / "classifier.onnx", ("probabilities", "target_class")
    export_onnx(Alone(explainer), explainee.image_spec, alone, example=graph.example(), outputs=names, rewrite=False)
    full, plain = session_of(path.read_bytes()), session_of(prune_onnx(alone.read_bytes(), names[:1]))
    feeds = {"image": images, "target": np.array([1], dtype=np.int64)}
    calls: list[Callable[[], object]] = [lambda: full.run(None, feeds), lambda: plain.run(None, {"image": images})]
    if case.config.method == "ig" and case.config.preset == "published":
        calls.append(captum(explainee, normalised))
    elif case.published_passes:
        calls.append(published_pass(explainee, normalised))
    times = in_turn(calls, seconds)
    row: dict[str, object] = {
        "model": case.model,
        **{key: value for key, value in asdict(case.config).items() if key in ("method", "preset", "mode")},
        "steps": explainer.steps,
        "rule": case.config.quadrature,
        "points_per_pass": explainer.at_once or "all",
        "forwards": float(np.median(times[:, 0] / times[:, 1])),
        "milliseconds": float(np.median(times[:, 0]) * 1e3),
        "forward_milliseconds": float(np.median(times[:, 1]) * 1e3),
        "bar": case.bar,
        "export_seconds": round(export_seconds, 1),
        "rounds": len(times),
    }
    if case.published_passes:
        published = times[:, 2] * case.published_passes
        row["of the published code's time"] = float(np.median(times[:, 0] / published))
        row["published pass in forwards"] = float(np.median(times[:, 2] / times[:, 1]))
    elif len(calls) == 3:
        row["of Captum's time"] = float(np.median(times[:, 0] / times[:, 2]))
    return row


def memory(folder: Path) -> dict[str, object]:
    """The largest resident memory, GiB, of a process that explains 8 images by IIA2 of a ViT-B in one call."""
    explainee = build(VIT)
    config = GradientConfig(method="iia2", memory_budget=4, batch=8)
    explainer = GradientExplainer(explainee, config).eval()
    graph = ExplainerGraph(TracedExplainer(explainer)).eval()
    path = folder / "memory.onnx"
    export_onnx(graph, explainee.image_spec, path, example=graph.example(), outputs=graph.outputs, rewrite=False)
    command = [sys.executable, "-c", MEMORY, str(path), str(explainer.batch)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return {
        "budget GiB": 4,
        "batch": 8,
        "images per pass": explainer.batch,
        "points_per_pass": explainer.at_once,
        "peak GiB": float(ran.stdout),
    }


def merged(kept: dict[str, Any], rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """The rows in the order of the cases, new ones in the place of old ones."""
    found = {(row["model"], row["method"], row["preset"]): row for row in [*kept.get("rows", ()), *rows]}
    names = [(case.model, case.config.method, case.config.preset) for case in CASES]
    return [found[name] for name in names if name in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", help="methods; default all")
    parser.add_argument("--models", nargs="*", help="models; default all")
    parser.add_argument("--preset", choices=["published", "fast"])
    parser.add_argument("--seconds", type=float, default=20, help="timed seconds per case")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "gradient_cost.json")
    arguments = parser.parse_args()
    table = Table("model", "method", "preset", "points", "forwards", "bar", "ms", "beside", "export s", box=None)
    console, rows = Console(stderr=True), []
    for case in CASES:
        if arguments.cases and case.config.method not in arguments.cases:
            continue
        if arguments.models and case.model not in arguments.models:
            continue
        if arguments.preset and case.config.preset != arguments.preset:
            continue
        with tempfile.TemporaryDirectory() as folder:
            row = measure(case, arguments.seconds, Path(folder))
        rows.append(row)
        console.print(row, markup=False)
        beside = [f"{row[key]:.2f} {key}" for key in row if key.startswith("of ")]
        table.add_row(
            case.model,
            case.config.method,
            case.config.preset,
            f"{row['steps']} {row['rule']}",
            f"{row['forwards']:.2f}",
            "" if case.bar is None else f"≤ {case.bar}",
            f"{row['milliseconds']:.0f}",
            " ".join(beside),
            f"{row['export_seconds']:.0f}",
        )
    Console(width=160).print(table)
    kept = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    about: dict[str, object] = {"machine": machine(), "torch": torch.__version__, "rows": merged(kept, rows)}
    if "memory" in kept:
        about["memory"] = kept["memory"]
    if not arguments.no_memory:
        with tempfile.TemporaryDirectory() as folder:
            about["memory"] = memory(Path(folder))
        Console().print(about["memory"])
    arguments.out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
