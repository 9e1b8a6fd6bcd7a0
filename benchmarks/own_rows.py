"""Saccade's rows of the comparison with its peers: compiled graphs, and the same explainers as they are in PyTorch."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import cost
import torch
from subjects import Subject, Work
from ungated import read_ungated, write_ungated

import saccade
from saccade.accel.bundle import Bundle
from saccade.accel.engine import Engine
from saccade.accel.engines import open_engine
from saccade.accel.onnx_engine import OnnxEngine
from saccade.contracts import Floats, Uint8
from saccade.evaluate.weights_folder import WEIGHTS
from saccade.export.in_torch import compiled_in_torch, gradients_in_torch, trained_in_torch
from saccade.export.write_bundle import export_trained
from saccade.methods.checkpoint import CheckpointRecord, load_checkpoint
from saccade.methods.gradient.config import GradientConfig
from saccade.methods.gradient.explainer import GradientExplainer
from saccade.methods.inr.amortized_config import AmortizedConfig
from saccade.methods.ltx.config import LTXConfig
from saccade.methods.trained import method_of
from saccade.methods.training.config import TrainingConfig
from saccade.methods.training.explainer import TrainedExplainer

__all__ = ["by_onnx", "by_openvino", "by_torch", "plain_forwards"]

_TRAINED: dict[str, TrainingConfig] = {"ltx_shared": LTXConfig(), "inr": AmortizedConfig()}
_BUDGET = 2.0  # GiB for the passes of a gradient method
_FAST = ("dix2", "iia2")  # with the points of `--preset fast`; Captum's integral has 50 points, and so has ours


def by_onnx(method: str) -> Callable[[Subject], Work]:
    """Prediction and explanation in one graph, in ONNX Runtime."""
    return lambda subject: _work(OnnxEngine(_bundle(subject, method), threads=subject.threads))


def by_openvino(method: str) -> Callable[[Subject], Work]:
    """The same graph in OpenVINO, in float32."""
    proven = method in _TRAINED  # others are timed without golden samples, see `write_ungated`

    def make(subject: Subject) -> Work:
        return _work(open_engine(_bundle(subject, method), engine="openvino", threads=subject.threads, check=proven))

    return make


def by_torch(method: str, compiled: bool = False) -> Callable[[Subject], Work]:
    """The explainer that the graph was made of, in PyTorch."""

    def make(subject: Subject) -> Work:
        engine = _original(subject, method)
        copied = method not in _TRAINED  # the gradient methods work on a classifier of their own
        return _work(compiled_in_torch(engine) if compiled else engine, 0 if copied else subject.weights_mib)

    return make


def plain_forwards(subject: Subject) -> dict[str, Callable[[], Callable[[Uint8], Floats]]]:
    """Of each engine what opens the classifier alone, from pixels to probabilities."""

    def eager() -> Callable[[Uint8], Floats]:
        def forward(images: Uint8) -> Floats:
            with torch.inference_mode():
                found: Floats = subject.explainee.model(subject.tensors(images)).softmax(1).numpy()
                return found

        return forward

    def onnx() -> Callable[[Uint8], Floats]:
        return OnnxEngine(_bundle(subject, "ltx_shared"), threads=subject.threads).probabilities

    def openvino() -> Callable[[Uint8], Floats]:
        bundle = _bundle(subject, "ltx_shared")
        return open_engine(bundle, engine="openvino", threads=subject.threads).probabilities

    def compiled() -> Callable[[Uint8], Floats]:
        return compiled_in_torch(_original(subject, "ltx_shared")).probabilities

    return {"ONNX Runtime": onnx, "OpenVINO": openvino, "PyTorch": eager, "PyTorch, compiled": compiled}


def _work(engine: Engine, weights_mib: float = 0) -> Work:
    def explain(images: Uint8) -> tuple[Floats, Floats]:
        found = engine.run(images)
        return found.probabilities, found.mask.mean(1)  # of masks of several areas what ranks the pixels

    return Work(explain, weights_mib=weights_mib)


def _untrained(subject: Subject, method: str) -> tuple[TrainedExplainer, CheckpointRecord]:
    """An explainer of a classifier with random weights, or the one that was trained for the scenes."""
    if subject.trained:
        return load_checkpoint(WEIGHTS / subject.trained.format(method))
    torch.manual_seed(0)
    config = _TRAINED[method]
    explainer = method_of(config).build(subject.explainee, config)
    return explainer, CheckpointRecord.of(explainer, config, "photographs", 0)


def _config(method: str) -> GradientConfig:
    preset = "fast" if method in _FAST else "published"
    if method == "ig":  # as it is exported by itself, for one image: many points together make a shorter graph
        return GradientConfig(method=method)
    return GradientConfig(method=method, preset=preset, memory_budget=_BUDGET, batch=8)


def _original(subject: Subject, method: str) -> Engine:
    if method in _TRAINED:
        return trained_in_torch(*_untrained(subject, method))
    explainer = GradientExplainer(subject.explainee, _config(method)).eval()
    return gradients_in_torch(explainer)


def _bundle(subject: Subject, method: str) -> Bundle:
    """The bundle that was kept of an earlier run with the same settings, classifier and sources, or a new one."""
    folder = subject.graphs / subject.title.replace("/", "") / method
    note, made_of = folder.with_suffix(".made-of"), _made_of(subject, method)
    kept = read_ungated(folder)
    if kept is not None and note.is_file() and note.read_text() == made_of:
        return kept
    note.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    if method in _TRAINED and subject.trained:
        made = export_trained(*_untrained(subject, method), subject.images, folder)
    elif method in _TRAINED:
        made = cost.export(subject.explainee, _TRAINED[method], folder)
    else:
        made = write_ungated(GradientExplainer(subject.explainee, _config(method)).eval(), folder)
    note.write_text(made_of)
    return made


def _made_of(subject: Subject, method: str) -> str:
    """What a graph depends on: settings, classifier, the sources that made it, and its explainer's weights."""
    sources = hashlib.sha256()
    package = Path(saccade.__file__).parent
    files = [file for folder in ("methods", "export", "kernels") for file in (package / folder).rglob("*.py")]
    files += [package / "benchmarks" / name for name in ("ungated.py", "cost.py")]
    if method in _TRAINED and subject.trained:
        files += [file for file in (WEIGHTS / subject.trained.format(method)).rglob("*") if file.is_file()]
    for file in sorted(files):
        sources.update(file.read_bytes())
    config = _TRAINED[method] if method in _TRAINED else _config(method)
    return f"{config} {subject.explainee.fingerprint} torch {torch.__version__} sources {sources.hexdigest()}"
