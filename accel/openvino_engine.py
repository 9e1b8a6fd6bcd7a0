"""The OpenVINO engine: the same graphs on processors, on some of which it is the faster runtime."""

from __future__ import annotations

from typing import Any

from ..errors import EngineError, OutOfMemory, require
from .bundle import Bundle
from .graph_engine import ALLOCATION, Answer, GraphEngine, first_line, smaller
from .machine import core_count
from .onnx_prune import output_names

__all__ = ["OpenVINOEngine"]

# OpenVINO's own choice is bfloat16 where the processor has it, whatever the graph says.
_HINTS = {"fp32": "f32", "fp16": "f32", "bf16": "bf16", "int8": "f32"}


class OpenVINOEngine(GraphEngine):
    """Runs a bundle's graph in OpenVINO on the processor; graphs are compiled when they are first needed.

    The precision is the one asked for: graphs in half precision are computed in single (processors have no other), and
    those in bfloat16 in bfloat16 throughout.

    Args:
        bundle: an opened bundle.
        threads: as many as cores at the most; None takes all cores.
        precision: of the graph, ``"fp32"`` or a lower one that the bundle holds.

    Raises:
        EngineError: the bundle holds no graph in this precision.
        MissingDependencyError: OpenVINO is not installed.
    """

    name = "openvino"

    def __init__(self, bundle: Bundle, *, threads: int | None = None, precision: str = "fp32") -> None:
        super().__init__(bundle, precision)
        self._openvino = require("openvino", extra="openvino", purpose="the engine 'openvino'")
        self._core = self._openvino.Core()
        self.settings = {"INFERENCE_PRECISION_HINT": _HINTS[precision]}
        if threads:
            self.settings["INFERENCE_NUM_THREADS"] = str(min(threads, core_count()))
        self._requests: dict[str, tuple[Any, list[str]]] = {}

    @property
    def identity(self) -> str:
        """Engine, version and precision: what a cached golden pass holds for."""
        return f"openvino {self._openvino.__version__} CPU {self.precision}"

    def _answers(self, what: Answer, feeds: dict[str, Any]) -> dict[str, Any]:
        request, names = self._open(what)
        try:
            answers = request.infer(feeds, share_inputs=True)
        except (RuntimeError, MemoryError) as error:  # RuntimeError is all that OpenVINO raises
            count = len(feeds["image"])
            if isinstance(error, MemoryError) or any(word in str(error).lower() for word in ALLOCATION):
                raise OutOfMemory(f"a batch of {count} images does not fit into memory; {smaller(feeds)}") from None
            raise EngineError(f"OpenVINO failed on a batch of {count} images: {first_line(error)}") from error
        return {name: answers[index].copy() for index, name in enumerate(names)}

    def _open(self, what: Answer) -> tuple[Any, list[str]]:
        """The request that gives the masks, the parts, or the probabilities alone; compiled when first needed.

        With it come its outputs' names in order: OpenVINO merges those of a result and of its conversion.
        """
        if what not in self._requests:
            graph = self.graph_of(what)
            try:
                compiled = self._core.compile_model(self._core.read_model(graph), "CPU", self.settings)
                self._requests[what] = (compiled.create_infer_request(), output_names(graph))
            except RuntimeError as error:
                raise EngineError(
                    f"OpenVINO {self._openvino.__version__} cannot load '{self.file}': {first_line(error)}"
                ) from error
        return self._requests[what]
