"""The ONNX Runtime engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from ..errors import EngineError, OutOfMemory
from .bundle import Bundle
from .graph_engine import Answer, GraphEngine, smaller
from .onnx_prune import prune_onnx
from .precision import graph_file

__all__ = ["OnnxEngine"]

_ALLOCATION = ("allocate", "bad_alloc", "bad allocation", "out of memory")


class OnnxEngine(GraphEngine):
    """Runs a bundle's graph in ONNX Runtime; sessions are made when they are first needed.

    Args:
        bundle: an opened bundle.
        providers: execution providers by name (``"CUDAExecutionProvider"`` or just ``"cuda"``), in priority order.
        threads: threads for one operator; None takes all cores.
        precision: of the graph, ``"fp32"`` or a lower one that the bundle holds.

    Raises:
        EngineError: the bundle holds no graph in this precision, or there is no such provider.
    """

    name = "onnx"

    def __init__(
        self,
        bundle: Bundle,
        *,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        precision: str = "fp32",
    ) -> None:
        super().__init__(bundle, precision)
        self.providers = _resolve_providers(providers or ("cpu",))
        self.threads = threads or 0
        self._sessions: dict[str, ort.InferenceSession] = {}

    @property
    def identity(self) -> str:
        """Engine, version and providers: what a cached golden pass holds for."""
        return f"onnxruntime {ort.__version__} {' '.join(self.providers)} {self.precision}"

    @property
    def _file(self) -> Path:
        return self.bundle.path / graph_file(self.precision)

    def _answers(self, what: Answer, feeds: dict[str, Any]) -> dict[str, Any]:
        session = self._open(what)
        outputs = [output.name for output in session.get_outputs()]
        return dict(zip(outputs, self._run(session, outputs, feeds), strict=True))

    def _open(self, what: Answer) -> ort.InferenceSession:
        """The session that gives the masks, the parts, or the probabilities alone; made when first needed."""
        if what not in self._sessions:
            graph = self._file.read_bytes()
            if what == "probabilities":
                graph = prune_onnx(graph, (what,))
            elif self.bundle.manifest.parts > 1:  # ONNX Runtime would compute both
                graph = prune_onnx(graph, ("probabilities", "target_class", what))
            self._sessions[what] = self._session(graph)
        return self._sessions[what]

    def _session(self, graph: bytes) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self.threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self.bundle.manifest.splits:  # keeps to a memory budget: a pattern sets a second block aside
            options.enable_mem_pattern = False
        try:
            session = ort.InferenceSession(graph, options, providers=self.providers)
        except MemoryError:
            raise OutOfMemory(f"the bundle '{self.bundle.path}' does not fit into memory") from None
        except Exception as error:  # onnxruntime's exceptions share no public base class
            hint = "; a processor has no bf16 operators: use --provider cuda, or --precision fp32"
            hint = hint if self.precision == "bf16" and self.providers == ["CPUExecutionProvider"] else ""
            raise EngineError(
                f"ONNX Runtime {ort.__version__} cannot load '{self._file}': {_line(error)}{hint}"
            ) from error
        used = session.get_providers()
        if missing := [name for name in self.providers if name not in used]:
            raise EngineError(
                f"ONNX Runtime could not start {', '.join(missing)}; it started {', '.join(used)}; see: saccade doctor"
            )
        return session

    def _run(self, session: ort.InferenceSession, outputs: Sequence[str], feeds: dict[str, Any]) -> list[Any]:
        try:
            return list(session.run(list(outputs), feeds))
        except Exception as error:  # as above
            count = len(feeds["image"])
            if isinstance(error, MemoryError) or any(word in str(error).lower() for word in _ALLOCATION):
                raise OutOfMemory(f"a batch of {count} images does not fit into memory; {smaller(feeds)}") from None
            raise EngineError(f"ONNX Runtime failed on a batch of {count} images: {_line(error)}") from error


def _resolve_providers(names: Sequence[str]) -> list[str]:
    available = ort.get_available_providers()
    by_short_name = {name.removesuffix("ExecutionProvider").lower(): name for name in available}
    resolved = []
    for name in names:
        full = name if name in available else by_short_name.get(name.lower())
        if full is None:
            raise EngineError(
                f"provider '{name}' is not in this ONNX Runtime; it offers: {', '.join(available)}; "
                "for NVIDIA GPUs install onnxruntime-gpu in place of onnxruntime"
            )
        resolved.append(full)
    return resolved


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
