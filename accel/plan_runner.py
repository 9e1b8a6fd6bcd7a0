"""Running a TensorRT plan: pinned staging buffers, two requests in flight, CUDA graphs for shapes seen before."""

from __future__ import annotations

import contextlib
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, SaccadeError, UsageError
from .gpu import Gpu

__all__ = ["PlanRunner"]

Arrays = Mapping[str, NDArray[Any]]
_IN_FLIGHT = 2
_GRAPHS = 4  # shapes that have a graph of their own, of each of the requests in flight: the first that come again


@dataclass
class _Buffer:
    """One input or output: where the GPU has it, and where the host has."""

    size: int
    device: int
    host: NDArray[np.uint8]


@dataclass
class _Lane:
    """An execution context with its buffers.

    Attributes:
        shapes: of the outputs of the request in flight.
        graph: of copies and computation, where the lane has one shape only: a graph holds its context's state and its
            buffers' addresses.
        ready: has run once, so that what no graph may hold is set up.
    """

    context: Any
    buffers: dict[str, _Buffer] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    graph: Any = None
    ready: bool = False


@dataclass
class _Slot:
    """One request in flight: its queue, the lane of any shape, and those of shapes that came again."""

    stream: int
    any_shape: _Lane
    one_shape: dict[tuple[Any, ...], _Lane] = field(default_factory=dict)
    seen: set[tuple[Any, ...]] = field(default_factory=set)
    lane: _Lane | None = None  # of the request in flight


class PlanRunner:
    """Runs a deserialized plan.

    While one request computes, the inputs of the next are copied in and the outputs of the one before are copied out,
    each on a stream of its own. Shapes that come again are replayed as CUDA graphs of copies and computation.

    Args:
        trt: the flavour's module.
        engine: TensorRT's engine.
        device: where it runs.
        graphs: make CUDA graphs.
        config: with what contexts are created; None for TensorRT's own choice.
    """

    def __init__(self, trt: Any, engine: Any, device: Gpu, *, graphs: bool = True, config: Any = None) -> None:
        self._device, self._engine, self._graphs = device, engine, graphs
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self._inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._outputs = [name for name in names if name not in self._inputs]
        self._dtypes = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in names}
        self._config = config
        self._slots = [_Slot(device.stream(), self._lane()) for _ in range(_IN_FLIGHT)]
        weakref.finalize(self, _release, device, self._slots)

    def run(self, feeds: Arrays) -> dict[str, NDArray[Any]]:
        """The outputs by name, for inputs by name."""
        slot = self._slots[0]
        self._start(slot, feeds)
        return self._finish(slot)

    def run_each(self, requests: Iterable[Arrays]) -> Iterator[dict[str, NDArray[Any]]]:
        """The outputs of each request, in order; two are in flight at a time."""
        free, busy = deque(self._slots), deque[_Slot]()
        try:
            for feeds in requests:
                if not free:
                    free.append(busy.popleft())
                    yield self._finish(free[-1])
                self._start(free[0], feeds)
                busy.append(free.popleft())
            while busy:
                yield self._finish(busy.popleft())
        finally:
            for slot in busy:  # whoever asked has gone; the buffers are written until the queues are empty
                self._device.wait(slot.stream)

    def _lane(self) -> _Lane:
        context = self._engine.create_execution_context(*([] if self._config is None else [self._config]))
        if context is None:
            raise EngineError("TensorRT cannot make an execution context; the GPU's memory may be full")
        return _Lane(context)

    def _start(self, slot: _Slot, feeds: Arrays) -> None:
        arrays = {name: np.ascontiguousarray(feeds[name], self._dtypes[name]) for name in self._inputs}
        key = tuple(value.shape for value in arrays.values())
        lane = slot.lane = self._choose(slot, key)
        if lane.graph is None:
            self._set_shapes(lane, arrays)
        for name, value in arrays.items():
            lane.buffers[name].host[: value.nbytes] = value.reshape(-1).view(np.uint8)
        if lane.ready and lane is not slot.any_shape and lane.graph is None and self._graphs:
            try:
                lane.graph = self._device.record(slot.stream, lambda: self._queue(slot.stream, lane, arrays))
            except SaccadeError:  # some plans cannot be recorded; they run as well without
                self._graphs = False
        if lane.graph is None:
            self._queue(slot.stream, lane, arrays)
            lane.ready = True
        else:
            self._device.launch(lane.graph, slot.stream)

    def _choose(self, slot: _Slot, key: tuple[Any, ...]) -> _Lane:
        """The lane of a shape, which a shape gets when it comes for the second time."""
        if key in slot.one_shape:
            return slot.one_shape[key]
        if self._graphs and key in slot.seen and len(slot.one_shape) < _GRAPHS:
            try:
                slot.one_shape[key] = self._lane()
                return slot.one_shape[key]
            except SaccadeError:  # the GPU's memory is for what runs already
                self._graphs = False
        slot.seen.add(key)
        return slot.any_shape

    def _set_shapes(self, lane: _Lane, arrays: Arrays) -> None:
        """Tell the context the inputs' shapes, ask for the outputs', and have room for all."""
        for name, value in arrays.items():
            self._check_shape(name, value.shape)
            lane.context.set_input_shape(name, value.shape)
        lane.shapes = {name: tuple(lane.context.get_tensor_shape(name)) for name in self._outputs}
        for name, value in arrays.items():
            self._make_room(lane, name, value.nbytes)
        for name in self._outputs:
            self._make_room(lane, name, self._bytes(lane, name))

    def _make_room(self, lane: _Lane, name: str, size: int) -> None:
        old = lane.buffers.get(name)
        if old is not None and old.size >= size:
            return
        if old is not None:
            del lane.buffers[name]
            self._device.free(old.device)
            self._device.free_pinned(old.host)
        buffer = lane.buffers[name] = _Buffer(size, self._device.allocate(size), self._device.pinned(size))
        lane.context.set_tensor_address(name, buffer.device)

    def _queue(self, stream: int, lane: _Lane, arrays: Arrays) -> None:
        for name, value in arrays.items():
            buffer = lane.buffers[name]
            self._device.copy_in(buffer.device, buffer.host, value.nbytes, stream)
        if not lane.context.execute_async_v3(stream):
            raise EngineError("TensorRT could not run the plan; is the GPU's memory full?")
        for name in self._outputs:
            buffer = lane.buffers[name]
            self._device.copy_out(buffer.host, buffer.device, self._bytes(lane, name), stream)

    def _finish(self, slot: _Slot) -> dict[str, NDArray[Any]]:
        self._device.wait(slot.stream)
        assert slot.lane is not None, "started before"
        lane, slot.lane = slot.lane, None
        return {name: self._read(lane, name) for name in self._outputs}

    def _read(self, lane: _Lane, name: str) -> NDArray[Any]:
        """A copy of an output: the buffer is written again by the next request."""
        flat = lane.buffers[name].host[: self._bytes(lane, name)].view(self._dtypes[name])
        return np.array(flat.reshape(lane.shapes[name]))

    def _bytes(self, lane: _Lane, name: str) -> int:
        return int(prod(lane.shapes[name]) * self._dtypes[name].itemsize)

    def _check_shape(self, name: str, shape: tuple[int, ...]) -> None:
        least, _, most = (tuple(bound) for bound in self._engine.get_tensor_profile_shape(name, 0))
        if len(least) != len(shape) or any(
            not low <= length <= high for low, length, high in zip(least, shape, most, strict=True)
        ):
            raise UsageError(f"the plan takes '{name}' from {least} to {most}, not {shape}; --engine onnx takes any")


def _release(device: Gpu, slots: list[_Slot]) -> None:
    """Give back the memory of a runner that is no more."""
    with contextlib.suppress(Exception):  # at the process's end the device may have gone before
        for slot in slots:
            device.wait(slot.stream)
            for lane in (slot.any_shape, *slot.one_shape.values()):
                for buffer in lane.buffers.values():
                    device.free(buffer.device)
                    device.free_pinned(buffer.host)
