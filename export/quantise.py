"""A graph in int8: static quantisation of its convolutions and products of matrices."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

__all__ = ["prepared", "to_int8"]

_QUANTISED = ("Conv", "MatMul", "Gemm")  # with sums of quantised values explanations of several layers suffer


class _Feeds(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Iterable[dict[str, Any]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph as it is quantised: its shapes inferred, and what ONNX Runtime fuses fused."""
    with _files() as (source, result):
        onnx.save(model, source)
        quant_pre_process(source, result, skip_symbolic_shape=True)
        return onnx.load(result)


def to_int8(model: onnx.ModelProto, feeds: Iterable[dict[str, Any]], keep: Iterable[str] = ()) -> onnx.ModelProto:
    """The graph with weights in int8, per channel, and activations in uint8, between QuantizeLinear and
    DequantizeLinear; what follows a quantised operator is in single precision.

    Args:
        model: in single precision, `prepared`.
        feeds: inputs of single images, whose values' ranges are taken.
        keep: names of nodes that are not quantised.
    """
    with _files() as (source, result):
        onnx.save(model, source)
        quantize_static(
            source,
            result,
            _Feeds(feeds),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTISED),
            nodes_to_exclude=list(keep),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return onnx.load(result)


@contextlib.contextmanager
def _files() -> Iterator[tuple[Path, Path]]:
    """Two files for tools that take and give files, and no advice of theirs on how they are used."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory(prefix="saccade-") as folder:
            yield Path(folder) / "source.onnx", Path(folder) / "result.onnx"
    finally:
        logging.disable(before)
