"""Every architecture and gradient method: is the graph right, and where does it run?

    python benchmarks/architectures.py                     all, at 224 px, about an hour on two cores
    python benchmarks/architectures.py --models VGG-16 --methods ig --size 96

Every row is written as soon as it is there, beside the rows of other models already in the results at this size, so
the work can be spread over several runs.

For each pair: the traced graph in float64 against naive autograd in float64; ONNX Runtime in float32, batches 1 and 5,
several classes, beside PyTorch's own error in float32; OpenVINO's masks; whether TensorRT builds an engine. Writes
docs/architectures.md and benchmarks/results/architectures.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from naive import naive_map
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from runtimes import in_onnxruntime, in_openvino, tensorrt_refusal
from torch import nn
from zoo import ATTENTION, FEATURE_MAPS, RESIDUAL, build, photographs, tensors

from saccade.accel.compare import cosine
from saccade.accel.machine import machine
from saccade.contracts import Floats, Uint8
from saccade.errors import SaccadeError
from saccade.export.autograd_free import trace_autograd_free
from saccade.export.graph import ExplainerGraph, TracedExplainer
from saccade.export.half import to_half
from saccade.export.to_onnx import export_onnx
from saccade.methods.explainee import Explainee
from saccade.methods.gradient.config import GradientConfig
from saccade.methods.gradient.explainer import GradientExplainer

ROOT = Path(__file__).parents[1]
METHODS = ("gradcam", "dix2", "iia2", "ig")
METHODS_OF_ATTENTION = ("gradcam", "class-rollout", "gradient-rollout", "dix2", "iia2", "ig")
STEPS = 2
GRAIN = 2
"""Grey levels."""
TARGETS = np.array([-1, 1, 5, -1, 9], dtype=np.int64)


@dataclass(frozen=True)
class Row:
    """One architecture with one method.

    Attributes:
        model, method, layers: what was asked.
        graph_error: of the traced graph in float64 against naive autograd in float64, over the map's largest value.
        runtime_error: of ONNX Runtime's masks in float32 against PyTorch's in float64, ‖Δ‖ / ‖mask‖ over all images,
            the worse of batches 1 and 5.
        own_error: of PyTorch's masks in float32, the same.
        runtime_correlation: Pearson's, of ONNX Runtime's masks with those in float64, the worst image.
        own_correlation: of PyTorch's masks in float32, the same.
        openvino_error: as `runtime_error`; None where OpenVINO refuses the graph.
        tensorrt: why TensorRT builds no plan; empty if it does.
        tensorrt_half: the same of the graph in fp16.
        seconds: for all of this.
        runtime_cosine, own_cosine: in place of the correlations, which of the few values of a small map say little.
        peak: most memory the process took, GiB; None where several shared it.
    """

    model: str
    method: str
    layers: tuple[str, ...]
    graph_error: float
    runtime_error: float
    own_error: float
    runtime_correlation: float
    own_correlation: float
    openvino_error: float | None
    tensorrt: str
    tensorrt_half: str = field(default="not tried", kw_only=True)
    seconds: float
    runtime_cosine: float | None = None
    own_cosine: float | None = None
    peak: float | None = None


def in_float64(explainee: Explainee) -> Explainee:
    return replace(explainee, model=copy.deepcopy(explainee.model).double())


class HardSigmoid(nn.Module):
    """As its formula is written: PyTorch's kernel of the gradient holds 1/6 in float32, in float64 too."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return F.relu6(values + 3) / 6


def written_out(model: nn.Module) -> nn.Module:
    """A copy whose gradients PyTorch computes in float64 to the last digits."""
    copied = copy.deepcopy(model)
    for module in list(copied.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Hardsigmoid):
                setattr(module, name, HardSigmoid())
    return copied


def graph_error(exact: GradientExplainer, images: torch.Tensor, method: str) -> float:
    """The traced graph of a batch of 2 against naive autograd, image by image, relative to the map's largest value."""
    target = torch.tensor([1, 3])
    traced = trace_autograd_free(partial(exact.attribute, spelled_out=True), (images[:2], target))
    maps = traced(images[:2], target)[2]
    model = written_out(exact.explainee.model)
    extra = 2 if "distilled" in exact.explainee.spec else 1
    worst = 0.0
    for index in range(2):
        expected = naive_map(
            method,
            model,
            images[index : index + 1],
            int(target[index]),
            exact.rule.points,
            exact.layers,
            extra,
        )
        worst = max(worst, float((maps[index] - expected).abs().max() / expected.abs().max()))
    return worst


def with_grain(images: Uint8) -> Uint8:
    """Noise of two grey levels: in flat and saturated areas all pixels of a pooling window tie, and rounding decides
    where the gradient goes; PyTorch's own result changes there with the size of the batch.
    """
    noise = np.random.default_rng(0).integers(-GRAIN, GRAIN, images.shape, endpoint=True)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def untied(images: torch.Tensor) -> torch.Tensor:
    """Noise of a thousandth, so that no two pixels are equal, as they still may be with whole grey levels."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=images.dtype)
    return images + 1e-3 * noise


def distance(masks: Floats, exact: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(masks - exact) / np.linalg.norm(exact))


def correlation(masks: Floats, exact: NDArray[np.float64]) -> float:
    """Pearson's, of the image whose mask is furthest from the exact one; of two constant masks, as where nothing is
    evidence, 1.
    """
    found = []
    for mask, best in zip(masks, exact, strict=True):
        constant = [bool(np.ptp(values) == 0) for values in (mask, best)]
        found.append(float(all(constant)) if any(constant) else float(np.corrcoef(mask.ravel(), best.ravel())[0, 1]))
    return min(found)


def masks_in_torch(explainer: GradientExplainer, images: Uint8, target: NDArray[np.int64]) -> Floats:
    graph = ExplainerGraph(explainer)
    exact = next(explainer.classifier.parameters()).dtype == torch.float64
    spec = explainer.explainee.image_spec
    values = tensors(images, spec).double() if exact else None
    found = []
    for index in range(len(images)):
        asked = torch.from_numpy(target[index : index + 1])
        if values is None:
            mask = graph(torch.from_numpy(images[index : index + 1]), asked)[2]
        else:
            pixels = torch.from_numpy(images[index : index + 1]).permute(0, 3, 1, 2).double() / 255
            mask = explainer(explainer.explainee.normalise(pixels), asked)[2]
        found.append(mask.detach().numpy())
    return np.concatenate(found)


def check(explainee: Explainee, method: str, folder: Path, steps: int = STEPS) -> Row:
    """Everything about one architecture and one method."""
    began = time.perf_counter()
    # not the constant image at the start of the path, where all pixels tie
    config = GradientConfig(method=method, steps=steps, rule="midpoint" if method == "ig" else "riemann")
    explainer = GradientExplainer(explainee, config).eval()
    exact = GradientExplainer(in_float64(explainee), replace(config, layers=explainer.layers)).double().eval()
    spec = explainee.image_spec
    images = photographs(spec)[: len(TARGETS)]
    if any(isinstance(module, nn.MaxPool2d) for module in explainee.model.modules()):
        images = with_grain(images)
    error = graph_error(exact, untied(tensors(images, spec).double()), method)
    graph = ExplainerGraph(TracedExplainer(explainer)).eval()
    path = folder / "explainer.onnx"
    export_onnx(graph, spec, path, example=graph.example(), outputs=graph.outputs, rewrite=False)
    foreign = {node.domain for node in onnx.load(path, load_external_data=False).graph.node} - {""}
    assert not foreign, f"operators of {foreign}"
    expected = masks_in_torch(exact, images, TARGETS)
    own = masks_in_torch(explainer, images, TARGETS)
    found = [in_onnxruntime(path, images, TARGETS, batch)[1] for batch in (1, len(images))]
    try:
        openvino = distance(in_openvino(path, images, TARGETS)[1], expected)
    except RuntimeError as failure:
        Console(stderr=True).print(f"OpenVINO: {failure}", markup=False)
        openvino = None
    return Row(
        model=explainee.spec.removeprefix("zoo:"),
        method=method,
        layers=explainer.layers,
        graph_error=error,
        runtime_error=max(distance(masks, expected) for masks in found),
        own_error=distance(own, expected),
        runtime_correlation=min(correlation(masks, expected) for masks in found),
        own_correlation=correlation(own, expected),
        runtime_cosine=min(float(cosine(masks, expected.astype(np.float32)).min()) for masks in found),
        own_cosine=float(cosine(own, expected.astype(np.float32)).min()),
        openvino_error=openvino,
        tensorrt=tensorrt_refusal(path),
        tensorrt_half=tensorrt_refusal(to_half(onnx.load(path), "fp16").SerializeToString()),
        seconds=round(time.perf_counter() - began, 1),
        peak=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1),
    )


def alone(name: str, method: str, size: int) -> Row:
    """Check one pair, for a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return check(build(name, size), method, Path(folder))


def write_docs(rows: list[Row], size: int) -> None:
    text = [
        "# Architectures and gradient methods",
        "",
        f"Random weights, photographs of {size}×{size} pixels, integrals of {STEPS} steps. Written by "
        "`python benchmarks/architectures.py`.",
        "",
        f"- Residual branches of ResNets are scaled by {RESIDUAL:g}: training too may begin with small ones, and the "
        "pixel gradient of a random ResNet is too jagged for float32 otherwise.",
        f"- Networks with max-pooling get photographs with a grain of {GRAIN} grey levels: where pixels of a window "
        "tie, as in flat and saturated areas, a gradient is not defined and rounding decides where it goes.",
        "- **graph**: the traced graph in float64 against naive autograd in float64 (one image, one point at a time), "
        "largest difference over the map's largest value. Hard-sigmoids are written out in the naive model, since "
        "PyTorch's own kernel of their gradient holds 1/6 in float32.",
        "- **ONNX Runtime**, **PyTorch**, **OpenVINO**: masks in float32 against PyTorch's in float64, ‖Δ‖ / ‖mask‖; "
        "ONNX Runtime in batches of 1 and 5. Where ReLU networks have kinks, float32 itself is not exact.",
        "- **correlation** (Pearson): of ONNX Runtime's masks with the exact ones, the worst image; in brackets "
        "PyTorch's.",
        "- **TensorRT**: an engine is built ahead of time (TensorRT for RTX, compute capability 8.0 and 8.9).",
        "",
        "| model | method | layers | graph | ONNX Runtime | PyTorch | correlation | OpenVINO | TensorRT |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        layers = ", ".join(f"`{name}`" for name in row.layers) or "attention" * (row.method != "ig")
        openvino = "refused" if row.openvino_error is None else f"{row.openvino_error:.0e}"
        text.append(
            f"| {row.model} | {row.method} | {layers} | {row.graph_error:.0e} | {row.runtime_error:.0e} | "
            f"{row.own_error:.0e} | {row.runtime_correlation:.6f} ({row.own_correlation:.6f}) | "
            f"{openvino} | {row.tensorrt or 'yes'} |"
        )
    (ROOT / "docs" / "architectures.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def keep(row: Row, size: int) -> None:
    """Write one row into the results, in the order of the zoo; rows measured at another size go."""
    path = ROOT / "benchmarks" / "results" / "architectures.json"
    rows = {(row.model, row.method): row}
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        if earlier["size"] == size:
            found = (Row(**{**fields, "layers": tuple(fields["layers"])}) for fields in earlier["rows"])
            rows = {(each.model, each.method): each for each in found} | rows
    names, methods = [*FEATURE_MAPS, *ATTENTION], ("gradcam", "class-rollout", "gradient-rollout", "dix2", "iia2", "ig")
    ordered = sorted(rows.values(), key=lambda each: (names.index(each.model), methods.index(each.method)))
    about = {"size": size, "steps": STEPS, "machine": machine(), "rows": [asdict(each) for each in ordered]}
    path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    write_docs(ordered, size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = [*FEATURE_MAPS, *ATTENTION]
    parser.add_argument("--models", nargs="*", choices=everything, default=everything)
    parser.add_argument("--methods", nargs="*", default=sorted({*METHODS, *METHODS_OF_ATTENTION}))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--dry", action="store_true", help="print the table, write nothing")
    arguments = parser.parse_args()
    table = Table("model", "method", "graph", "runtime", "own", "correlation", "OpenVINO", "TensorRT", "s", box=None)
    progress = Console(stderr=True)
    pairs = [
        (name, method)
        for name in arguments.models
        for method in (METHODS if name in FEATURE_MAPS else METHODS_OF_ATTENTION)
        if method in arguments.methods
    ]
    # a process of its own for each: graphs of whole transformers and the builders of engines take gigabytes
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        for name, method in pairs:
            try:
                row = processes.submit(alone, name, method, arguments.size).result()
            except SaccadeError as error:
                progress.print(f"{name} {method}: {error}", markup=False)
                continue
            progress.print(row, markup=False)
            if not arguments.dry:
                keep(row, arguments.size)
            table.add_row(
                row.model,
                row.method,
                f"{row.graph_error:.1e}",
                f"{row.runtime_error:.1e}",
                f"{row.own_error:.1e}",
                f"{row.runtime_correlation:.6f}",
                "refused" if row.openvino_error is None else f"{row.openvino_error:.1e}",
                row.tensorrt or "yes",
                f"{row.seconds:.0f}",
            )
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
