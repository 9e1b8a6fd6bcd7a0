"""The engines there are, by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import EngineError
from .bundle import Bundle, open_bundle
from .engine import Engine
from .golden import ensure_golden
from .onnx_engine import OnnxEngine

__all__ = ["ENGINES", "open_engine"]

ENGINES = ("onnx",)


def open_engine(
    bundle: str | Path | Bundle,
    engine: str = "onnx",
    *,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    precision: str = "fp32",
    check: bool = True,
) -> Engine:
    """Open a bundle in an engine.

    Before an engine runs a bundle for the first time on a machine it must reproduce the bundle's golden samples; the
    pass is remembered.

    Args:
        bundle: the bundle's folder, or an opened one.
        engine: ``"onnx"`` (ONNX Runtime).
        providers: execution providers by name, in priority order; default CPU.
        threads: threads for one operator; default: all cores.
        precision: of the graph: ``"fp32"``, or a lower one with which the bundle was exported.
        check: hold the engine against the golden samples first.

    Raises:
        EngineError: no such engine, provider or precision here; the message says which there are.
        ParityError: the engine computes something else than the original.
    """
    if engine not in ENGINES:
        raise EngineError(f"there is no engine '{engine}'; there are: {', '.join(ENGINES)}")
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    made = OnnxEngine(opened, providers=providers, threads=threads, precision=precision)
    if check:
        ensure_golden(made, made.identity)
    return made
