"""The engines there are, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import EngineError, UsageError
from .bundle import Bundle, open_bundle
from .engine import Engine
from .golden import ensure_golden
from .onnx_engine import OnnxEngine
from .openvino_engine import OpenVINOEngine
from .tensorrt_engine import TensorRTEngine

__all__ = ["ENGINES", "open_engine"]

ENGINES = ("onnx", "openvino", "tensorrt")


def open_engine(
    bundle: str | Path | Bundle,
    engine: str = "onnx",
    *,
    providers: Sequence[str] | None = None,
    provider_options: Mapping[str, Mapping[str, str]] | None = None,
    threads: int | None = None,
    precision: str = "fp32",
    streams: int = 1,
    check: bool = True,
) -> Engine:
    """Open a bundle in an engine.

    Before an engine runs a bundle for the first time on a machine it must reproduce the bundle's golden samples; the
    pass is remembered.

    Args:
        bundle: the bundle's folder, or an opened one.
        engine: ``"onnx"`` (ONNX Runtime), ``"openvino"`` (processors) or ``"tensorrt"`` (NVIDIA GPUs, with plans that
            the bundle holds).
        providers: of ONNX Runtime: execution providers by name, in priority order; default CPU.
        provider_options: of ONNX Runtime: each provider's options, by its name.
        threads: of a processor, for one operator, as many as cores at the most; default: all cores.
        precision: of the graph: ``"fp32"``, or a lower one with which the bundle was exported.
        streams: batches at most that run side by side and share the threads, for throughput; ONNX Runtime's on a
            processor, the others take one, see `Engine`.
        check: hold the engine against the golden samples first.

    Raises:
        EngineError: no such engine, provider or precision here; the message says which there are.
        UsageError: a setting that the engine does not have.
        MissingDependencyError: the engine's package is not installed.
        ParityError: the engine computes something else than the original.
    """
    if engine not in ENGINES:
        raise EngineError(f"there is no engine '{engine}'; there are: {', '.join(ENGINES)}")
    if engine != "onnx" and (providers or provider_options):
        raise UsageError(f"execution providers are ONNX Runtime's; engine '{engine}' has none")
    if engine == "tensorrt" and threads:
        raise UsageError("threads are a processor's; engine 'tensorrt' runs on a GPU")
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    made: OnnxEngine | OpenVINOEngine | TensorRTEngine
    if engine == "openvino":
        made = OpenVINOEngine(opened, threads=threads, precision=precision)
    elif engine == "tensorrt":
        made = TensorRTEngine(opened, precision=precision)
    else:
        made = OnnxEngine(
            opened,
            providers=providers,
            provider_options=provider_options,
            threads=threads,
            precision=precision,
            streams=streams,
        )
    if check:
        ensure_golden(made, made.identity)
    return made
