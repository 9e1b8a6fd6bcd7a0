"""ONNX Runtime on a device: inputs and outputs stay there at fixed addresses, which is what CUDA graphs replay."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

__all__ = ["BoundSession"]

_KEPT = 4  # shapes whose buffers are kept
_NOT_CAPTURED = "-1"  # ONNX Runtime's id of a run that no CUDA graph is made of


@dataclass(frozen=True)
class _Bound:
    """The buffers of one shape of inputs: their graph replays only with these."""

    binding: Any
    inputs: Mapping[str, Any]
    outputs: Sequence[Any]
    graph: str


class BoundSession:
    """Runs a session through buffers on its device, one set for each shape of its inputs.

    Without them ONNX Runtime takes memory on the device and copies through it anew in every call.

    Args:
        session: an ONNX Runtime session.
        device: where its provider computes, ``"cuda"`` or ``"cpu"``.
        index: of the device.
        graphs: its provider makes CUDA graphs: each shape has one, replayed from its third call on.
    """

    def __init__(self, session: Any, device: str = "cuda", index: int = 0, *, graphs: bool = False) -> None:
        self.session = session
        self.device = (device, index)
        self.graphs = graphs
        self._names = [output.name for output in session.get_outputs()]
        self._bound: OrderedDict[tuple[Any, ...], _Bound] = OrderedDict()
        self._captured = 0
        self._lock = threading.Lock()  # of the buffers, which all calls share

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The outputs by name, for inputs by name."""
        with self._lock:
            return self._run(feeds)

    def _run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        key = tuple((name, value.shape, value.dtype.str) for name, value in feeds.items())
        if key in self._bound:
            self._bound.move_to_end(key)
            return self._again(self._bound[key], feeds)
        return self._first(key, feeds)

    def _first(self, key: tuple[Any, ...], feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Find the outputs' shapes by a run into memory that ONNX Runtime takes, and keep buffers for the next."""
        binding = self.session.io_binding()
        inputs = {name: ort.OrtValue.ortvalue_from_numpy(value, *self.device) for name, value in feeds.items()}
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name in self._names:
            binding.bind_output(name, *self.device)
        self._call(binding, _NOT_CAPTURED)
        outputs = binding.get_outputs()
        fixed = self.session.io_binding()
        for name, value in inputs.items():
            fixed.bind_ortvalue_input(name, value)
        for name, value in zip(self._names, outputs, strict=True):
            fixed.bind_ortvalue_output(name, value)
        self._captured += 1
        self._bound[key] = _Bound(fixed, inputs, outputs, str(self._captured))
        if len(self._bound) > _KEPT:
            self._bound.popitem(last=False)
        return self._answers(outputs)

    def _again(self, bound: _Bound, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        for name, value in feeds.items():
            bound.inputs[name].update_inplace(np.ascontiguousarray(value))
        self._call(bound.binding, bound.graph)
        return self._answers(bound.outputs)

    def _call(self, binding: Any, graph: str) -> None:
        if not self.graphs:
            self.session.run_with_iobinding(binding)
            return
        options = ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", graph)
        self.session.run_with_iobinding(binding, options)

    def _answers(self, outputs: Sequence[Any]) -> dict[str, NDArray[Any]]:
        """Copies: the buffers are written again by the next call."""
        return {name: np.array(value.numpy()) for name, value in zip(self._names, outputs, strict=True)}
