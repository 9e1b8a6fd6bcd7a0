"""A GPU and a TensorRT that are neither: queues do their work only when they are waited for, and a plan is an ONNX
graph that ONNX Runtime runs. What is read too early, overwritten too early, or replayed with another state shows.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

__all__ = ["SimulatedGpu", "SimulatedTensorRT"]

_TYPES = {"tensor(uint8)": np.uint8, "tensor(int64)": np.int64, "tensor(float)": np.float32}
Work = Callable[[], None]


class SimulatedGpu:
    """Memory by address; a stream is a list of work to do."""

    def __init__(self, index: int = 0, architecture: str = "sm89") -> None:
        self.architecture = architecture
        self.memory: dict[int, NDArray[np.uint8]] = {}
        self.queues: dict[int, list[Work]] = {}
        self.recording: list[Work] | None = None
        self.launched = 0
        self.most_waiting = 0
        self._next = 0x1000

    def use(self) -> None:
        pass

    def allocate(self, size: int) -> int:
        self._next += 0x1000000
        self.memory[self._next] = np.full(size, 0xCD, np.uint8)
        return self._next

    def free(self, address: int) -> None:
        del self.memory[address]

    def pinned(self, size: int) -> NDArray[np.uint8]:
        return np.full(size, 0xAB, np.uint8)

    def free_pinned(self, memory: NDArray[np.uint8]) -> None:
        memory[:] = 0xEE

    def stream(self) -> int:
        self.queues[len(self.queues) + 1] = []
        return len(self.queues)

    def copy_in(self, address: int, memory: NDArray[np.uint8], size: int, stream: int) -> None:
        def work() -> None:
            self.memory[address][:size] = memory[:size]

        self.add(stream, work)

    def copy_out(self, memory: NDArray[np.uint8], address: int, size: int, stream: int) -> None:
        def work() -> None:
            memory[:size] = self.memory[address][:size]

        self.add(stream, work)

    def wait(self, stream: int) -> None:
        self.most_waiting = max(self.most_waiting, sum(bool(queue) for queue in self.queues.values()))
        for work in self.queues[stream]:
            work()
        self.queues[stream].clear()

    def record(self, stream: int, work: Work) -> list[Work]:
        self.recording = recorded = []
        work()
        self.recording = None
        return recorded

    def launch(self, graph: list[Work], stream: int) -> None:
        self.launched += 1
        for work in graph:
            self.add(stream, work)

    def add(self, stream: int, work: Work) -> None:
        (self.queues[stream] if self.recording is None else self.recording).append(work)


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.changes = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        self.changes += 1
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        self.changes += 1
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        feeds = {key: np.zeros(shape, self.engine.dtypes[key]) for key, shape in self.shapes.items()}
        return tuple(self.engine.answers(feeds)[name].shape)

    def execute_async_v3(self, stream: int) -> bool:
        shapes, addresses, changes = dict(self.shapes), dict(self.addresses), self.changes
        gpu = self.engine.gpu
        replayed = gpu.recording is not None

        def work() -> None:
            assert not replayed or changes == self.changes, "a graph's context was changed"
            feeds = {
                name: gpu.memory[addresses[name]][: int(np.prod(shape)) * self.engine.dtypes[name].itemsize]
                .view(self.engine.dtypes[name])
                .reshape(shape)
                for name, shape in shapes.items()
            }
            for name, value in self.engine.answers(feeds).items():
                flat = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
                gpu.memory[addresses[name]][: flat.size] = flat

        gpu.add(stream, work)
        return True


class _Engine:
    def __init__(self, plan: bytes, gpu: SimulatedGpu, batches: tuple[int, int, int]) -> None:
        self.gpu, self.batches = gpu, batches
        self.session = ort.InferenceSession(plan, providers=["CPUExecutionProvider"])
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        self.names = [value.name for value in (*inputs, *outputs)]
        self.inputs = {value.name: value.shape for value in inputs}
        self.dtypes = {value.name: np.dtype(_TYPES[value.type]) for value in (*inputs, *outputs)}
        self.contexts = 0

    @property
    def num_io_tensors(self) -> int:
        return len(self.names)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.inputs else "output"

    def get_tensor_dtype(self, name: str) -> Any:
        return self.dtypes[name]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [
            tuple(count if isinstance(length, str) else length for length in self.inputs[name])
            for count in self.batches
        ]

    def create_execution_context(self) -> _Context:
        self.contexts += 1
        return _Context(self)

    def answers(self, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return dict(zip([one.name for one in self.session.get_outputs()], self.session.run(None, feeds), strict=True))


class SimulatedTensorRT:
    """The part of TensorRT's module that a runner uses."""

    __version__ = "10.8.0"
    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")

    class ILogger:
        ERROR, INTERNAL_ERROR = 1, 0

    def __init__(self, gpu: SimulatedGpu, batches: tuple[int, int, int] = (1, 2, 4)) -> None:
        self.gpu, self.batches = gpu, batches
        self.engines: list[_Engine] = []

    def nptype(self, dtype: Any) -> Any:
        return dtype

    def Runtime(self, logger: Any) -> SimulatedTensorRT:
        return self

    def deserialize_cuda_engine(self, plan: bytes) -> _Engine:
        self.engines.append(_Engine(plan, self.gpu, self.batches))
        return self.engines[-1]
