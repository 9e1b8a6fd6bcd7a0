"""``saccade explain`` without a bundle: a gradient method or a trained explainer, in PyTorch."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ..accel.torch_engine import TorchEngine
from ..errors import UsageError, suggest
from ..export.in_torch import gradients_in_torch, trained_in_torch
from ..methods.checkpoint import load_checkpoint
from ..methods.explainee import load_explainee
from ..methods.features import best_device
from ..methods.gradient.config import ALIASES, METHODS, GradientConfig
from ..methods.gradient.explainer import GradientExplainer
from .options import resolve_model

__all__ = ["open_checkpoint", "open_method"]


def open_method(method: str, spec: str, weights: str | None, batch: int | None) -> TorchEngine:
    """An engine of a gradient method with its published settings, for batches of some size, on a GPU where there is
    one.

    Raises:
        UsageError: there is no such method.
    """
    known = [*METHODS, *ALIASES, "inr"]
    if method not in known:
        raise UsageError(
            f"there is no method '{method}', and one that was trained is given by --checkpoint; "
            f"{suggest(method, known)}"
        )
    with Console(stderr=True).status("loading the classifier"):
        config = GradientConfig(method=ALIASES.get(method, method), batch=batch or 1)
        explainee = load_explainee(resolve_model(spec), weights)
        explainee.model.to(best_device())
        return gradients_in_torch(GradientExplainer(explainee, config).eval())


def open_checkpoint(checkpoint: Path, spec: str | None, weights: str | None) -> TorchEngine:
    """An engine of a trained explainer, on a GPU where there is one."""
    with Console(stderr=True).status("loading the explainer"):
        explainer, record = load_checkpoint(checkpoint, spec=resolve_model(spec) if spec else None, weights=weights)
        return trained_in_torch(explainer.to(best_device()), record)
