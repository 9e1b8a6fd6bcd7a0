"""Explainers that run as they are, in PyTorch: no bundle is written, and nothing is proven or compiled."""

from __future__ import annotations

from pathlib import Path

from ..accel.bundle import Bundle
from ..accel.torch_engine import TorchEngine
from ..methods.checkpoint import CheckpointRecord
from ..methods.features import device_of
from ..methods.gradient.explainer import GradientExplainer
from ..methods.inr.amortized import AmortizedExplainer
from ..methods.ltx.model import LTXExplainer
from ..methods.training.explainer import TrainedExplainer
from .describe import About, about_gradient, about_trained, describe
from .graph import ExplainerGraph

__all__ = ["gradients_in_torch", "trained_in_torch"]


def gradients_in_torch(explainer: GradientExplainer) -> TorchEngine:
    """An engine of a gradient method, where its classifier lies."""
    return _engine(explainer, about_gradient(explainer))


def trained_in_torch(explainer: TrainedExplainer, record: CheckpointRecord) -> TorchEngine:
    """An engine of a trained explainer, where its classifier lies."""
    assert isinstance(explainer, (LTXExplainer, AmortizedExplainer)), "there are no others"
    return _engine(explainer, about_trained(explainer, record))


def _engine(explainer: GradientExplainer | LTXExplainer | AmortizedExplainer, about: About) -> TorchEngine:
    return TorchEngine(
        Bundle(Path(about.name), describe(about)),
        ExplainerGraph(explainer).eval(),
        device=device_of(explainer.explainee.model),
    )
