"""A running mean of the weights, which is often better than the last ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .explainer import TrainedExplainer

__all__ = ["WeightAverage"]


class WeightAverage:
    """Exponential moving average (EMA) of a network's weights and batch statistics.

    After the first step it is the network itself; then the decay grows with the steps n as (1 + n)/(10 + n) up to what
    is asked for, so the random weights of the beginning are soon forgotten.

    Args:
        network: what is trained; it is not touched.
        decay: of the mean per step; 0 for no mean, then `network` is the one that is trained.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        def towards(mean: Tensor, weights: Tensor, count: Tensor | int) -> Tensor:
            if not mean.is_floating_point():  # the count of batches in a batch norm
                return weights.to(mean.device)
            kept = min(decay, (1 + int(count)) / (10 + int(count)))
            return torch.lerp(mean, weights.to(mean.device, mean.dtype), 1 - kept)

        self._trained = network
        self._mean = AveragedModel(network, avg_fn=towards, use_buffers=True) if decay else None

    @property
    def network(self) -> nn.Module:
        """The network with the mean weights."""
        if self._mean is None:
            return self._trained
        module: nn.Module = self._mean.module
        return module

    def update(self) -> None:
        """Take the network's weights after a step into the mean."""
        if self._mean is not None:
            self._mean.update_parameters(self._trained)

    @contextmanager
    def used_by(self, explainer: TrainedExplainer) -> Iterator[None]:
        """Have an explainer work with the mean weights."""
        trained, mode = explainer.network, explainer.training
        explainer.network = self.network
        try:
            yield
        finally:
            explainer.network = trained
            explainer.train(mode)

    def state(self) -> dict[str, Any]:
        """A copy of what a resumed training needs."""
        if self._mean is None:
            return {}
        return {name: value.detach().cpu().clone() for name, value in self._mean.state_dict().items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        if self._mean is not None:
            self._mean.load_state_dict(state)
