"""What an explainer's manifest says, and what the parity gate must know of it."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..accel.manifest import FileEntry, Manifest, ParityReport, PrecisionReport
from ..contracts import Floats, ImageSpec, Uint8
from ..methods.checkpoint import CheckpointRecord
from ..methods.gradient.config import METHODS
from ..methods.gradient.explainer import GradientExplainer
from ..methods.inr.amortized import AmortizedExplainer
from ..methods.ltx.model import LTXExplainer
from ..methods.training.explainer import TrainedExplainer
from .parity import BATCHES, FEW, error_of_float32, probability_error_of_float32
from .to_onnx import OPSET

__all__ = ["About", "about_gradient", "about_trained", "describe"]

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
class About:
    """What the manifest says of an explainer, and what the gate must know.

    Attributes:
        own_probability_error: of PyTorch in single precision, of images and their probabilities.
        own_error: of PyTorch's masks in single precision, of images, targets and masks; None where it is below the bar.
        batches: batch sizes that the gate tries.
        few: images with which it does so, where a method takes many passes; None for all.

    The others are those of `Manifest`.
    """

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


def about_trained(explainer: TrainedExplainer, record: CheckpointRecord) -> About:
    """Of a trained explainer and its checkpoint's record."""
    assert isinstance(explainer, (LTXExplainer, AmortizedExplainer)), "there are no others"
    functions = explainer if isinstance(explainer, AmortizedExplainer) else None
    how = "a coordinate network" if functions else _LTX_FORMS[record.config.form]  # type: ignore[attr-defined]
    return About(
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


def about_gradient(explainer: GradientExplainer) -> About:
    """Of a gradient method."""
    explainee, config = explainer.explainee, explainer.config
    return About(
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


def describe(
    about: About,
    *,
    any_size: bool = False,
    report: ParityReport = _UNPROVEN,
    precisions: Mapping[str, PrecisionReport] = MappingProxyType({}),
    files: Mapping[str, FileEntry] = MappingProxyType({}),
) -> Manifest:
    """The manifest; without a report that of an explainer that nothing was compiled of yet."""
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
        mask_size=about.image_spec.size,
        class_names=about.class_names,
        batch=about.batch,
        splits=about.few is not None,
        explainee=about.explainee,
        opset=OPSET,
        versions={package: _version(package) for package in _PACKAGES},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        files=dict(files),
        parity=report,
        precisions=dict(precisions),
    )


def _version(package: str) -> str:
    return ort.__version__ if package == "onnxruntime" else version(package)  # which comes by several names
