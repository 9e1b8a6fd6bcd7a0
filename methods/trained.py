"""The methods whose explainers are trained."""

from __future__ import annotations

from .inr.amortized_objective import INR
from .ltx.objective import LTX
from .training.config import TrainingConfig
from .training.explainer import TrainedMethod

__all__ = ["METHODS", "method_of"]

METHODS: dict[str, TrainedMethod] = {method.name: method for method in (LTX, INR)}


def method_of(config: TrainingConfig) -> TrainedMethod:
    """The method that a config belongs to."""
    (found,) = [method for method in METHODS.values() if type(config) is method.config]
    return found
