"""Explainers that run as they are, in PyTorch: no bundle is written, and nothing is proven or compiled."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor

from ..accel.bundle import Bundle
from ..accel.graph_engine import first_line
from ..accel.torch_engine import TorchEngine, TorchGraph
from ..errors import EngineError, ModelError
from ..methods.checkpoint import CheckpointRecord
from ..methods.features import device_of
from ..methods.gradient.explainer import GradientExplainer
from ..methods.inr.amortized import AmortizedExplainer
from ..methods.ltx.model import LTXExplainer
from ..methods.training.explainer import TrainedExplainer
from .describe import About, about_gradient, about_trained, describe
from .graph import ExplainerGraph

__all__ = ["as_original", "compiled_in_torch", "gradients_in_torch", "trained_in_torch"]


def gradients_in_torch(explainer: GradientExplainer) -> TorchEngine:
    """An engine of a gradient method, where its classifier lies."""
    return _engine(explainer, about_gradient(explainer))


def trained_in_torch(explainer: TrainedExplainer, record: CheckpointRecord) -> TorchEngine:
    """An engine of a trained explainer, where its classifier lies."""
    assert isinstance(explainer, (LTXExplainer, AmortizedExplainer)), "there are no others"
    return _engine(explainer, about_trained(explainer, record))


def as_original(explainer: GradientExplainer | TrainedExplainer, bundle: Bundle) -> TorchEngine:
    """An engine of the explainer that a bundle was exported from, with the bundle's own samples to hold it against.

    Raises:
        ModelError: its classifier is another one.
    """
    assert isinstance(explainer, (GradientExplainer, LTXExplainer, AmortizedExplainer)), "there are no others"
    explainee = explainer.explainee
    if explainee.fingerprint != bundle.manifest.explainee["fingerprint"]:
        raise ModelError(f"'{bundle.path}' was not exported from this classifier, '{explainee.spec}'")
    return TorchEngine(bundle, ExplainerGraph(explainer).eval(), device=device_of(explainee.model))


def compiled_in_torch(engine: TorchEngine) -> TorchEngine:
    """The same engine through ``torch.compile``, which compiles each batch size when it first comes."""
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # it reports what it leaves as it is
    warnings.filterwarnings("ignore", module=r"torch\..*")  # and warns of its own code
    return TorchEngine(engine.bundle, _Compiled(engine.graph), device=engine.device)


class _Compiled:
    """What an engine runs, compiled."""

    def __init__(self, graph: TorchGraph) -> None:
        self.outputs = graph.outputs
        self._explain = torch.compile(graph, dynamic=False)
        self.predict = torch.compile(graph.predict, dynamic=False)

    def __call__(self, image: Tensor, target: Tensor, *query: Tensor) -> tuple[Tensor, ...]:
        try:
            answers: tuple[Tensor, ...] = self._explain(image, target, *query)
        except torch._dynamo.exc.TorchDynamoException as error:  # its only common base
            raise EngineError(f"torch.compile does not compile this explainer: {first_line(error)}") from error
        return answers


def _engine(explainer: GradientExplainer | LTXExplainer | AmortizedExplainer, about: About) -> TorchEngine:
    return TorchEngine(
        Bundle(Path(about.name), describe(about)),
        ExplainerGraph(explainer).eval(),
        device=device_of(explainer.explainee.model),
    )
