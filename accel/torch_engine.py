"""The PyTorch engine: an explainer as it is, before it is compiled into a graph."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import OutOfMemory
from .bundle import Bundle
from .graph_engine import Answer, GraphEngine, smaller

__all__ = ["TorchEngine", "TorchGraph"]


class TorchGraph(Protocol):
    """What the engine runs: a module whose inputs and outputs are those of a bundle's graph."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what a call gives."""
        ...

    def __call__(self, image: Tensor, target: Tensor, *query: Tensor) -> tuple[Tensor, ...]:
        """Predict and explain images uint8 (N, H, W, 3)."""
        ...

    def predict(self, image: Tensor) -> Tensor:
        """The probabilities alone, (N, K)."""
        ...


class TorchEngine(GraphEngine):
    """Runs an explainer in PyTorch, on a processor or a GPU: the same requests and answers as of its bundle.

    Args:
        bundle: what the explainer's bundle says or would say; nothing is read from its folder.
        graph: the explainer from raw pixels on, in eval mode, on `device`.
        device: where the images go.
    """

    name = "torch"

    def __init__(self, bundle: Bundle, graph: TorchGraph, *, device: torch.device | str = "cpu") -> None:
        super().__init__(bundle)
        self.graph = graph
        self.device = torch.device(device)

    @torch.no_grad()
    def _answers(self, what: Answer, feeds: dict[str, Any]) -> dict[str, Any]:
        inputs = [
            torch.from_numpy(np.require(value, requirements=["C", "W"])).to(self.device) for value in feeds.values()
        ]
        try:
            if what == "probabilities":
                return {what: self.graph.predict(inputs[0]).cpu().numpy()}
            answers = self.graph(*inputs)
        except RuntimeError as error:  # of a processor's memory there is no class of its own
            if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
            count = len(feeds["image"])
            raise OutOfMemory(f"a batch of {count} images does not fit into memory; {smaller(feeds)}") from None
        found = {name: value.cpu().numpy() for name, value in zip(self.graph.outputs, answers, strict=True)}
        found.pop("mask" if what == "parts" else "parts", None)
        return found
