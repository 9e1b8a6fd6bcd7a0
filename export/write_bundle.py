"""From a checkpoint to a bundle: export, gate, golden samples, manifest; written whole or not at all."""

from __future__ import annotations

import datetime
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ..accel.bundle import Bundle, file_sha256
from ..accel.manifest import GOLDEN_FILE, GRAPH_FILE, MANIFEST_FILE, FileEntry, Manifest, ParityReport
from ..accel.onnx_engine import OnnxEngine
from ..contracts import Explanation, Uint8
from ..errors import OutputError
from ..methods.explainee import guest
from ..methods.ltx.checkpoint import CheckpointRecord
from ..methods.ltx.model import LTXExplainer
from .graph import ExplainerGraph
from .parity import explain_in_torch, measure_parity, require_parity
from .to_onnx import OPSET, export_onnx

__all__ = ["GOLDEN_COUNT", "export_ltx"]

GOLDEN_COUNT = 8
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


def export_ltx(
    explainer: LTXExplainer,
    record: CheckpointRecord,
    images: Uint8,
    out: Path,
    *,
    any_size: bool = False,
    overwrite: bool = False,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Bundle:
    """Export an LTX explainer, prove it, and write the bundle.

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
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise OutputError(
            f"cannot write into '{out.parent}': {error.strerror or error}; choose another --out"
        ) from None
    try:
        with guest(explainer):
            manifest = _make(explainer, record, images, partial, any_size, on_stage)
        on_stage("writing the bundle")
        (partial / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        partial.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        os.replace(partial, out)
    except OSError as error:
        raise OutputError(f"cannot write the bundle '{out}': {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Bundle(out, manifest)


def _make(
    explainer: LTXExplainer,
    record: CheckpointRecord,
    images: Uint8,
    folder: Path,
    any_size: bool,
    on_stage: Callable[[str], None],
) -> Manifest:
    graph = ExplainerGraph(explainer).eval()
    on_stage("tracing and exporting the graph")
    export_onnx(graph, record.image_spec, folder / GRAPH_FILE, any_size=any_size)
    on_stage(f"asking PyTorch about {len(images)} images")
    original = explain_in_torch(graph, images)
    manifest = _describe(record, original, any_size, _UNPROVEN, {})
    on_stage("holding ONNX Runtime against PyTorch")
    report = measure_parity(OnnxEngine(Bundle(folder, manifest)), images, original, class_specific=False)
    require_parity(report)
    _write_golden(folder / GOLDEN_FILE, images, original)
    files = {
        name: FileEntry(sha256=file_sha256(folder / name), bytes=(folder / name).stat().st_size)
        for name in (GRAPH_FILE, GOLDEN_FILE)
    }
    return _describe(record, original, any_size, report, files)


def _describe(
    record: CheckpointRecord, original: Explanation, any_size: bool, report: ParityReport, files: dict[str, FileEntry]
) -> Manifest:
    form = record.config.form
    return Manifest(
        name=f"{record.explainee} explained by LTX ({'shared trunk' if form == 'shared' else 'own backbone'})",
        method="ltx",
        parameters={
            **asdict(record.config),
            "layers": list(record.layers),
            "trained_steps": record.step,
            "data": record.data,
        },
        class_specific=False,
        image=record.image_spec,
        any_size=any_size,
        mask_size=(int(original.mask.shape[2]), int(original.mask.shape[3])),
        class_names=record.class_names,
        explainee={"spec": record.explainee, "weights": Path(record.weights).name, "fingerprint": record.fingerprint},
        opset=OPSET,
        versions={package: version(package) for package in _PACKAGES},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        files=files,
        parity=report,
    )


def _write_golden(path: Path, images: Uint8, original: Explanation) -> None:
    count = min(GOLDEN_COUNT, len(images))
    with path.open("wb") as stream:
        np.savez_compressed(
            stream,
            images=images[:count],
            target=np.full(count, -1, dtype=np.int64),
            probabilities=original.probabilities[:count],
            mask=original.mask[:count],
        )
