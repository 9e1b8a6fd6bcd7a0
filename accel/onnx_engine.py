"""The ONNX Runtime engine."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import onnxruntime as ort

from ..errors import EngineError, OutOfMemory, UsageError
from .bound_session import BoundSession
from .bundle import Bundle
from .graph_engine import ALLOCATION, Answer, GraphEngine, first_line, smaller
from .machine import core_count, tuning_key
from .manifest import Tuning

__all__ = ["OnnxEngine", "short_name"]

_DEVICES = {
    "CUDAExecutionProvider": "cuda",
    "TensorrtExecutionProvider": "cuda",
    "NvTensorRTRTXExecutionProvider": "cuda",
}
_LEVELS = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


class OnnxEngine(GraphEngine):
    """Runs a bundle's graph in ONNX Runtime; sessions are made when they are first needed.

    On a GPU inputs and outputs are bound to buffers there; with the provider's option ``enable_cuda_graph`` every shape
    is replayed as a CUDA graph.

    Args:
        bundle: an opened bundle.
        providers: execution providers by name (``"CUDAExecutionProvider"`` or just ``"cuda"``), in priority order.
        provider_options: of each provider, by its name as above, as ONNX Runtime's documentation lists them.
        threads: threads for one operator, as many as cores at the most; None takes what was tuned, or all cores.
        precision: of the graph, ``"fp32"`` or a lower one that the bundle holds.
        tuning: settings of the session; None takes those that the bundle holds for this machine, if any.
        streams: batches at most that are run side by side and share the threads; a processor gets through more of them
            so, since its cores wait for each other less. A GPU takes one.

    Raises:
        EngineError: the bundle holds no graph in this precision, or there is no such provider.
        UsageError: options of a provider that is not asked for.
    """

    name = "onnx"

    def __init__(
        self,
        bundle: Bundle,
        *,
        providers: Sequence[str] | None = None,
        provider_options: Mapping[str, Mapping[str, str]] | None = None,
        threads: int | None = None,
        precision: str = "fp32",
        tuning: Tuning | None = None,
        streams: int = 1,
    ) -> None:
        super().__init__(bundle, precision)
        self.providers = _resolve_providers(providers or ("cpu",))
        self.provider_options = _resolve_options(provider_options or {}, self.providers)
        stored = bundle.manifest.tuning.get(tuning_key(precision)) if self.providers == [_CPU] else None
        self.tuning = tuning or stored or Tuning()
        self.threads = min(threads or self.tuning.threads, core_count())
        self.concurrent = not any(_DEVICES.get(name) for name in self.providers)  # bound buffers are one caller's
        self.streams = min(streams, self.threads or core_count()) if self.concurrent else 1
        self._opening = threading.Lock()
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._bound: dict[str, BoundSession] = {}

    @property
    def identity(self) -> str:
        """Engine, version, providers and settings: what a cached golden pass holds for."""
        options = f" {self.provider_options}" if any(self.provider_options) else ""
        level = f" {self.tuning.graph_optimization}" if self.tuning.graph_optimization != "all" else ""
        return f"onnxruntime {ort.__version__} {' '.join(self.providers)} {self.precision}{options}{level}"

    def _answers(self, what: Answer, feeds: dict[str, Any]) -> dict[str, Any]:
        session = self._open(what)
        try:
            if what in self._bound:
                return self._bound[what].run(feeds)
            outputs = [output.name for output in session.get_outputs()]
            return dict(zip(outputs, session.run(outputs, feeds), strict=True))
        except Exception as error:  # onnxruntime's exceptions share no public base class
            count = len(feeds["image"])
            if isinstance(error, MemoryError) or any(word in str(error).lower() for word in ALLOCATION):
                raise OutOfMemory(f"a batch of {count} images does not fit into memory; {smaller(feeds)}") from None
            raise EngineError(f"ONNX Runtime failed on a batch of {count} images: {first_line(error)}") from error

    def _open(self, what: Answer) -> ort.InferenceSession:
        """The session that gives the masks, the parts, or the probabilities alone; made when first needed."""
        with self._opening:
            if what not in self._sessions:
                session = self._session(self.graph_of(what))
                if device := _DEVICES.get(self.providers[0]):
                    options = self.provider_options[0]
                    wanted = (options.get("enable_cuda_graph"), options.get("trt_cuda_graph_enable"))
                    graphs = any(str(value).lower() in ("1", "true") for value in wanted)
                    self._bound[what] = BoundSession(session, device, int(options.get("device_id", 0)), graphs=graphs)
                self._sessions[what] = session
            return self._sessions[what]

    def _session(self, graph: bytes) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self.threads
        if self.streams > 1:  # each call brings its own thread along, and all draw on one pool
            options.intra_op_num_threads = (self.threads or core_count()) - self.streams + 1
        options.graph_optimization_level = _LEVELS[self.tuning.graph_optimization]
        options.enable_cpu_mem_arena = self.tuning.arena
        # A pattern sets a second block aside, which a memory budget does not know of.
        options.enable_mem_pattern = self.tuning.memory_pattern and not self.bundle.manifest.splits
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(self.tuning.spinning)))
        if self.tuning.spinning:  # but not after the call, when others want the cores
            options.add_session_config_entry("session.force_spinning_stop", "1")
        if any(_DEVICES.get(name) for name in self.providers):
            ort.preload_dlls()  # the CUDA libraries that came as Python packages, if any did
        try:
            session = ort.InferenceSession(
                graph, options, providers=self.providers, provider_options=self.provider_options
            )
        except MemoryError:
            raise OutOfMemory(f"the bundle '{self.bundle.path}' does not fit into memory") from None
        except Exception as error:  # as above
            hint = (
                "; a processor has no bf16 operators here: use --engine openvino, --provider cuda or --precision fp32"
            )
            hint = hint if self.precision == "bf16" and self.providers == [_CPU] else ""
            raise EngineError(
                f"ONNX Runtime {ort.__version__} cannot load '{self.file}': {first_line(error)}{hint}"
            ) from error
        used = session.get_providers()
        if missing := [name for name in self.providers if name not in used]:
            raise EngineError(
                f"ONNX Runtime could not start {', '.join(missing)}; it started {', '.join(used)}; "
                "what is missing is said by: saccade doctor"
            )
        return session


_CPU = "CPUExecutionProvider"


def _resolve_providers(names: Sequence[str]) -> list[str]:
    available = ort.get_available_providers()
    resolved = []
    for name in names:
        full = next((one for one in available if _is_called(name, one)), None)
        if full is None:
            raise EngineError(
                f"provider '{name}' is not in this ONNX Runtime; it offers: {', '.join(available)}; "
                "for NVIDIA GPUs install onnxruntime-gpu in place of onnxruntime"
            )
        resolved.append(full)
    return resolved


def _resolve_options(options: Mapping[str, Mapping[str, str]], providers: Sequence[str]) -> list[dict[str, str]]:
    """The options of each provider, in the providers' order."""
    if unknown := [name for name in options if not any(_is_called(name, full) for full in providers)]:
        raise UsageError(f"options are for '{unknown[0]}', and the providers asked for are {', '.join(providers)}")
    return [
        {key: value for name, chosen in options.items() if _is_called(name, full) for key, value in chosen.items()}
        for full in providers
    ]


def _is_called(name: str, full: str) -> bool:
    """``CUDAExecutionProvider`` is also called ``cuda``."""
    return short_name(name) == short_name(full)


def short_name(provider: str) -> str:
    """``CUDAExecutionProvider`` as ``cuda``."""
    return provider.lower().removesuffix("executionprovider")
