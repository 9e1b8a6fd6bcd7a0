"""An NVIDIA GPU as far as a TensorRT plan needs it: memory, streams, copies and graphs, by CUDA's runtime interface.

NVIDIA's own Python bindings come as wheels and know CUDA graphs; they use the device's primary context, as PyTorch and
ONNX Runtime do, so that all can share one process.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, OutOfMemory, SaccadeError, require

__all__ = ["Gpu", "free_bytes"]


class Gpu:
    """One GPU; addresses, streams and graphs are CUDA's own handles.

    Args:
        index: of the GPU.

    Raises:
        MissingDependencyError: CUDA's bindings are not installed.
        EngineError: there is no such GPU, or no driver.
    """

    def __init__(self, index: int = 0) -> None:
        self._cuda = _bindings()
        error, count = self._cuda.cudaGetDeviceCount()
        if error != self._cuda.cudaError_t.cudaSuccess or not count:
            raise EngineError(
                f"there is no NVIDIA GPU here ({_reason(self._cuda, error)}); what there is: saccade doctor"
            )
        if index >= count:
            raise EngineError(f"there is no GPU {index}; there are {count}, from 0 on")
        self.index = index
        self.use()
        kinds = self._cuda.cudaDeviceAttr
        major, minor = (
            self._call("cudaDeviceGetAttribute", kind, index)
            for kind in (kinds.cudaDevAttrComputeCapabilityMajor, kinds.cudaDevAttrComputeCapabilityMinor)
        )
        self.architecture = f"sm{major}{minor}"

    def use(self) -> None:
        """Make it the one that this thread calls."""
        self._call("cudaSetDevice", self.index)

    def allocate(self, size: int) -> int:
        """Memory of so many bytes; its address."""
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        """Give memory back."""
        self._call("cudaFree", address)

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """So many bytes of the host's memory that the GPU copies from and to by itself."""
        address = int(self._call("cudaHostAlloc", size, 0))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def free_pinned(self, memory: NDArray[np.uint8]) -> None:
        """Give it back."""
        self._call("cudaFreeHost", memory.ctypes.data)

    def stream(self) -> int:
        """A queue of work that waits for no other."""
        return int(self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking))

    def copy_in(self, address: int, memory: NDArray[np.uint8], size: int, stream: int) -> None:
        """Queue a copy from pinned memory."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", address, memory.ctypes.data, size, kind, stream)

    def copy_out(self, memory: NDArray[np.uint8], address: int, size: int, stream: int) -> None:
        """Queue a copy to pinned memory."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", memory.ctypes.data, address, size, kind, stream)

    def wait(self, stream: int) -> None:
        """Until everything in a queue is done."""
        self._call("cudaStreamSynchronize", stream)

    def record(self, stream: int, work: Callable[[], None]) -> Any:
        """Make a graph of the work that a function queues."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            work()
        except BaseException:
            _, graph = self._cuda.cudaStreamEndCapture(stream)  # whatever it says, the first reason counts
            if graph:
                self._cuda.cudaGraphDestroy(graph)
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: int) -> None:
        """Queue a graph."""
        self._call("cudaGraphLaunch", graph, stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *results = getattr(self._cuda, name)(*arguments)
        if error != self._cuda.cudaError_t.cudaSuccess:
            if error == self._cuda.cudaError_t.cudaErrorMemoryAllocation:
                raise OutOfMemory("the GPU's memory is full; use smaller batches, or free some of it")
            raise EngineError(f"{name} failed on GPU {getattr(self, 'index', 0)}: {_reason(self._cuda, error)}")
        return results[0] if results else None


def free_bytes() -> int | None:
    """Free memory of the current GPU; None where there is none, or CUDA's bindings are not installed."""
    try:
        cuda = _bindings()
    except SaccadeError:
        return None
    error, free, _ = cuda.cudaMemGetInfo()
    return int(free) if error == cuda.cudaError_t.cudaSuccess else None


def _bindings() -> ModuleType:
    require("cuda", extra="tensorrt", purpose="TensorRT plans")
    return require("cuda.bindings.runtime", extra="tensorrt", purpose="TensorRT plans")


def _reason(cuda: ModuleType, error: Any) -> str:
    _, text = cuda.cudaGetErrorString(error)
    return text.decode() if isinstance(text, bytes) else str(text)
