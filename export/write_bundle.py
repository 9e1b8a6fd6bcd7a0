"""From an explainer to a bundle: export, gate, golden samples, manifest; written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..accel.bundle import Bundle, file_sha256
from ..accel.engine import run_in_batches
from ..accel.manifest import GOLDEN_FILE, GRAPH_FILE, MANIFEST_FILE, FileEntry
from ..accel.onnx_engine import OnnxEngine
from ..accel.precision import graph_file
from ..accel.torch_engine import TorchEngine
from ..contracts import Explanation, Uint8
from ..errors import OutputError
from ..methods.checkpoint import CheckpointRecord
from ..methods.explainee import Explainee, guest
from ..methods.gradient.config import GradientConfig
from ..methods.gradient.explainer import GradientExplainer
from ..methods.inr.amortized import AmortizedExplainer
from ..methods.ltx.model import LTXExplainer
from ..methods.training.explainer import TrainedExplainer
from .describe import About, about_gradient, about_trained, describe
from .graph import ExplainerGraph, TracedExplainer
from .lower_precision import write_lower
from .parity import (
    FEW,
    functions_error,
    measure_parity,
    require_parity,
)
from .to_onnx import export_onnx

__all__ = ["GOLDEN_COUNT", "export_gradient", "export_trained"]

GOLDEN_COUNT = 8
_AT_ONCE = 4  # images that PyTorch explains together


def export_trained(
    explainer: TrainedExplainer,
    record: CheckpointRecord,
    images: Uint8,
    out: Path,
    *,
    any_size: bool = False,
    precisions: Sequence[str] = (),
    calibration: Uint8 | None = None,
    overwrite: bool = False,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Bundle:
    """Export a trained explainer, prove it, and write the bundle.

    Args:
        explainer: the trained explainer.
        record: its checkpoint's record.
        images: uint8 (N ≥ 16, H, W, 3) at the model's size, of the user's own kind; the first eight become golden
            samples.
        out: folder of the bundle.
        any_size: resize inside the graph.
        precisions: lower ones, of `PRECISIONS`, in which the bundle holds the graph as well.
        calibration: of int8, images like `images` whose values' ranges are taken; None for `images`.
        overwrite: replace a bundle that is there.
        on_stage: told what is being done, for a progress display.

    Raises:
        ParityError: the graph does not pass the gate; nothing is written.
        OutputError: `out` exists and `overwrite` is not set, or cannot be written.
    """
    assert isinstance(explainer, (LTXExplainer, AmortizedExplainer)), "there are no others"
    about = about_trained(explainer, record)
    with _partial(out, overwrite) as folder, guest(explainer):
        graph = ExplainerGraph(explainer).eval()
        return _finish(graph, graph, about, images, folder, out, any_size, precisions, calibration, on_stage)


def export_gradient(
    explainee: Explainee,
    config: GradientConfig,
    images: Uint8,
    out: Path,
    *,
    any_size: bool = False,
    precisions: Sequence[str] = (),
    calibration: Uint8 | None = None,
    overwrite: bool = False,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Bundle:
    """Export a gradient method: its gradients become forward operators, so nothing is trained. Prove it, and write the
    bundle.

    Where masks are further than 1e-4 from PyTorch's, the gate allows them twice PyTorch's own error in float32 against
    float64: at the kinks of ReLU networks gradients jump.

    Args:
        explainee: the classifier; left as it is.
        config: the method and its settings.
        images: as for `export_trained`.
        out: folder of the bundle.
        any_size: resize inside the graph.
        precisions: lower ones, of `PRECISIONS`, in which the bundle holds the graph as well.
        calibration: of int8, images like `images` whose values' ranges are taken; None for `images`.
        overwrite: replace a bundle that is there.
        on_stage: told what is being done, for a progress display.

    Raises:
        ModelError: the method does not fit the model, or its gradients cannot be traced.
        ParityError: the graph does not pass the gate; nothing is written.
        OutputError: `out` exists and `overwrite` is not set, or cannot be written.
    """
    with _partial(out, overwrite) as folder:
        on_stage("finding the layers")
        explainer = GradientExplainer(explainee, config).eval()
        about = about_gradient(explainer)
        on_stage("tracing the gradients")
        traced = ExplainerGraph(TracedExplainer(explainer)).eval()
        original = ExplainerGraph(explainer).eval()
        return _finish(original, traced, about, images, folder, out, any_size, precisions, calibration, on_stage)


@contextlib.contextmanager
def _partial(out: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside `out` that is gone afterwards, whatever happens."""
    if out.exists() and not (overwrite and (out / MANIFEST_FILE).is_file()):
        raise OutputError(
            f"'{out}' exists already; "
            + (
                "replace it with --overwrite, or choose another --out"
                if (out / MANIFEST_FILE).is_file()
                else "choose another --out"
            )
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise OutputError(
            f"cannot write into '{out.parent}': {error.strerror or error}; choose another --out"
        ) from None
    try:
        yield folder
    except OSError as error:
        raise OutputError(f"cannot write the bundle '{out}': {error.strerror or error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _finish(
    original_graph: ExplainerGraph,
    graph: nn.Module,
    about: About,
    images: Uint8,
    folder: Path,
    out: Path,
    any_size: bool,
    precisions: Sequence[str],
    calibration: Uint8 | None,
    on_stage: Callable[[str], None],
) -> Bundle:
    """Export `graph`, hold it against `original_graph` in PyTorch, and move the bundle to `out`."""
    on_stage("exporting the graph")
    export_onnx(
        graph,
        about.image_spec,
        folder / GRAPH_FILE,
        example=original_graph.example(),
        outputs=original_graph.outputs,
        any_size=any_size,
        rewrite=isinstance(original_graph.explainer, TrainedExplainer),
    )

    def asking(who: str) -> Callable[[int], None]:
        return lambda done: on_stage(f"asking {who}: {done} of {len(images)} images")

    asking("PyTorch")(0)
    target = np.full(len(images), -1, dtype=np.int64)
    if about.class_specific:
        target[1::2] = np.arange(1, len(images), 2) % len(about.class_names)
    manifest = describe(about, any_size=any_size)
    in_torch = TorchEngine(Bundle(folder, manifest), original_graph)
    original = run_in_batches(in_torch, images, target, _AT_ONCE, asking("PyTorch"))
    # of the classifier itself: gradient methods run a copy that is folded and shortened
    parts = [in_torch.probabilities(images[start : start + _AT_ONCE]) for start in range(0, len(images), _AT_ONCE)]
    original = replace(original, probabilities=np.concatenate(parts))
    asking("ONNX Runtime")(0)
    engine = OnnxEngine(Bundle(folder, manifest))
    report = measure_parity(
        engine,
        images,
        original,
        target=target,
        class_specific=about.class_specific,
        own_error=about.own_error,
        own_probability_error=about.own_probability_error,
        rounding=about.rounding,
        batches=about.batches,
        few=about.few,
        on_progress=asking("ONNX Runtime"),
    )
    if about.areas:
        found = functions_error(engine, original_graph, images[:FEW], target[:FEW])
        report = report.model_copy(update={"mask_max_abs": max(report.mask_max_abs, found)})
    require_parity(report)
    reports = {
        precision: write_lower(
            folder, manifest, precision, images, target, original, calibration=calibration, on_stage=on_stage
        )
        for precision in dict.fromkeys(precisions)
    }
    _write_golden(folder / GOLDEN_FILE, images, target, original)
    files = {
        name: FileEntry(sha256=file_sha256(folder / name), bytes=(folder / name).stat().st_size)
        for name in (GRAPH_FILE, GOLDEN_FILE, *map(graph_file, reports))
    }
    manifest = describe(about, any_size=any_size, report=report, precisions=reports, files=files)
    on_stage("writing the bundle")
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    folder.chmod(0o755)
    if out.exists():
        shutil.rmtree(out)
    os.replace(folder, out)
    return Bundle(out, manifest)


def _write_golden(path: Path, images: Uint8, target: NDArray[np.int64], original: Explanation) -> None:
    count = min(GOLDEN_COUNT, len(images))
    with path.open("wb") as stream:
        np.savez_compressed(
            stream,
            images=images[:count],
            target=target[:count],
            probabilities=original.probabilities[:count],
            mask=original.mask[:count],
        )
