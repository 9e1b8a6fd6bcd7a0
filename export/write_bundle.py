"""From an explainer to a bundle: export, gate, golden samples, manifest; written whole or not at all."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..accel.bundle import Bundle, file_sha256
from ..accel.manifest import GOLDEN_FILE, GRAPH_FILE, MANIFEST_FILE, FileEntry, Manifest, ParityReport
from ..accel.onnx_engine import OnnxEngine
from ..contracts import Explanation, Floats, ImageSpec, Uint8
from ..errors import OutputError
from ..methods.checkpoint import CheckpointRecord
from ..methods.explainee import Explainee, guest
from ..methods.gradient.config import METHODS, GradientConfig
from ..methods.gradient.explainer import GradientExplainer
from ..methods.inr.amortized import AmortizedExplainer
from ..methods.ltx.model import LTXExplainer
from ..methods.training.explainer import TrainedExplainer
from .graph import ExplainerGraph, TracedExplainer
from .parity import (
    BATCHES,
    FEW,
    error_of_float32,
    explain_in_torch,
    functions_error,
    measure_parity,
    probability_error_of_float32,
    require_parity,
)
from .to_onnx import OPSET, export_onnx

__all__ = ["GOLDEN_COUNT", "export_gradient", "export_trained"]

GOLDEN_COUNT = 8
_LTX_FORMS = {"shared": "LTX (shared trunk)", "own": "LTX (own backbone)"}
_PACKAGES = ("saccade", "torch", "onnx", "onnxscript", "onnxruntime", "numpy")
_UNPROVEN = ParityReport(
    images=0,
    batches=(),
    mask_max_abs=float("inf"),
    mask_mean_abs=float("inf"),
    mask_cosine=-1,
    mask_spearman=-1,
    mask_top10_iou=0,
    probabilities_max_abs=float("inf"),
    targets_equal=False,
    batch_max_abs=float("inf"),
    deterministic=False,
    input_dependence=0,
)


@dataclass(frozen=True)
class _About:
    """What the manifest says of an explainer, and what the gate must know."""

    name: str
    method: str
    parameters: dict[str, Any]
    class_specific: bool
    several_targets: bool
    image_spec: ImageSpec
    class_names: tuple[str, ...]
    explainee: dict[str, str]
    own_probability_error: Callable[[Uint8, Floats], float]
    own_error: Callable[[Uint8, NDArray[np.int64], Floats], float] | None = None
    rounding: float = 1.0
    batches: Sequence[int] = BATCHES
    few: int | None = None
    batch: int = 8
    areas: tuple[float, ...] = ()
    parts: int = 1


def export_trained(
    explainer: TrainedExplainer,
    record: CheckpointRecord,
    images: Uint8,
    out: Path,
    *,
    any_size: bool = False,
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
        overwrite: replace a bundle that is there.
        on_stage: told what is being done, for a progress display.

    Raises:
        ParityError: the graph does not pass the gate; nothing is written.
        OutputError: `out` exists and `overwrite` is not set, or cannot be written.
    """
    assert isinstance(explainer, (LTXExplainer, AmortizedExplainer)), "there are no others"
    functions = explainer if isinstance(explainer, AmortizedExplainer) else None
    how = "a coordinate network" if functions else _LTX_FORMS[record.config.form]  # type: ignore[attr-defined]
    about = _About(
        name=f"{record.explainee} explained by {how}",
        method=record.method,
        parameters={
            # as JSON gives them back
            **{
                name: list(value) if isinstance(value, tuple) else value
                for name, value in asdict(record.config).items()
            },
            "layers": list(record.layers),
            "trained_steps": record.step,
            "data": record.data,
        },
        class_specific=explainer.class_specific,
        several_targets=explainer.class_specific and not functions,
        areas=record.config.areas if functions else (),  # type: ignore[attr-defined]
        parts=functions.parts if functions else 1,
        image_spec=record.image_spec,
        class_names=record.class_names,
        explainee={"spec": record.explainee, "weights": Path(record.weights).name, "fingerprint": record.fingerprint},
        own_probability_error=partial(probability_error_of_float32, explainer.explainee),
        rounding=max(1.0, functions.network.gain) if functions else 1.0,
    )
    with _partial(out, overwrite) as folder, guest(explainer):
        graph = ExplainerGraph(explainer).eval()
        return _finish(graph, graph, about, images, folder, out, any_size, on_stage)


def export_gradient(
    explainee: Explainee,
    config: GradientConfig,
    images: Uint8,
    out: Path,
    *,
    any_size: bool = False,
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
        about = _About(
            name=f"{explainee.spec} explained by {METHODS[config.method].partition(':')[0].partition(' (')[0]}",
            method=config.method,
            parameters={
                **{name: value for name, value in asdict(config).items() if name != "batch"},
                "layers": list(explainer.layers),
                "steps": explainer.steps,
                "inner_steps": config.inner_steps_of(explainer.on_attention),
                "rule": config.quadrature,
                "points_per_pass": explainer.at_once,
            },
            class_specific=config.class_specific,
            several_targets=False,
            image_spec=explainee.image_spec,
            class_names=explainee.class_names,
            explainee={
                "spec": explainee.spec,
                "weights": Path(explainee.weights).name,
                "fingerprint": explainee.fingerprint,
            },
            own_probability_error=partial(probability_error_of_float32, explainee),
            own_error=partial(error_of_float32, explainer),
            batches=sorted({1, 2, min(7, explainer.batch), explainer.batch}),
            few=FEW if config.integrates else None,
            batch=explainer.batch,
        )
        on_stage("tracing the gradients")
        traced = ExplainerGraph(TracedExplainer(explainer)).eval()
        return _finish(ExplainerGraph(explainer).eval(), traced, about, images, folder, out, any_size, on_stage)


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
    about: _About,
    images: Uint8,
    folder: Path,
    out: Path,
    any_size: bool,
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
    original = explain_in_torch(original_graph, images, target, on_progress=asking("PyTorch"))
    manifest = _describe(about, original, any_size, _UNPROVEN, {})
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
    _write_golden(folder / GOLDEN_FILE, images, target, original)
    files = {
        name: FileEntry(sha256=file_sha256(folder / name), bytes=(folder / name).stat().st_size)
        for name in (GRAPH_FILE, GOLDEN_FILE)
    }
    manifest = _describe(about, original, any_size, report, files)
    on_stage("writing the bundle")
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    folder.chmod(0o755)
    if out.exists():
        shutil.rmtree(out)
    os.replace(folder, out)
    return Bundle(out, manifest)


def _describe(
    about: _About, original: Explanation, any_size: bool, report: ParityReport, files: dict[str, FileEntry]
) -> Manifest:
    return Manifest(
        name=about.name,
        method=about.method,
        parameters=about.parameters,
        class_specific=about.class_specific,
        several_targets=about.several_targets,
        areas=about.areas,
        parts=about.parts,
        image=about.image_spec,
        any_size=any_size,
        mask_size=(int(original.mask.shape[2]), int(original.mask.shape[3])),
        class_names=about.class_names,
        batch=about.batch,
        splits=about.few is not None,
        explainee=about.explainee,
        opset=OPSET,
        versions={package: version(package) for package in _PACKAGES},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        files=files,
        parity=report,
    )


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
