"""Bundles without the parity gate, which of some graphs takes minutes: for timing alone, since nothing is proven."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from saccade.accel.bundle import Bundle, file_sha256
from saccade.accel.manifest import GRAPH_FILE, MANIFEST_FILE, FileEntry, Manifest
from saccade.export.describe import about_gradient, about_trained, describe
from saccade.export.graph import ExplainerGraph, TracedExplainer
from saccade.export.to_onnx import export_onnx
from saccade.methods.checkpoint import CheckpointRecord
from saccade.methods.explainee import guest
from saccade.methods.gradient.explainer import GradientExplainer
from saccade.methods.training.explainer import TrainedExplainer

__all__ = ["read_ungated", "write_ungated"]


def write_ungated(
    explainer: GradientExplainer | TrainedExplainer, folder: Path, record: CheckpointRecord | None = None
) -> Bundle:
    """A graph and a manifest in a folder; a trained explainer comes with its record."""
    gradient = isinstance(explainer, GradientExplainer)
    about = about_gradient(explainer) if gradient else about_trained(explainer, record)  # type: ignore[arg-type]
    unfinished = folder.with_suffix(".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    with guest(explainer):
        graph = ExplainerGraph(TracedExplainer(explainer) if gradient else explainer).eval()  # type: ignore[arg-type]
        export_onnx(
            graph,
            about.image_spec,
            unfinished / GRAPH_FILE,
            example=graph.example(),
            outputs=graph.outputs,
            rewrite=not gradient,
        )
    entry = FileEntry(sha256=file_sha256(unfinished / GRAPH_FILE), bytes=(unfinished / GRAPH_FILE).stat().st_size)
    manifest = describe(about, files={GRAPH_FILE: entry})
    (unfinished / MANIFEST_FILE).write_text(json.dumps(manifest.model_dump()))  # with the infinities of a missing proof
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return Bundle(folder, manifest)


def read_ungated(folder: Path) -> Bundle | None:
    """One that was kept; None where there is none."""
    if not (folder / MANIFEST_FILE).is_file():
        return None
    return Bundle(folder, Manifest.model_validate(json.loads((folder / MANIFEST_FILE).read_text())))
