"""A graph in int8: static quantisation with ranges that are taken once."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process

__all__ = ["OPERATORS", "Quantiser"]

OPERATORS = {
    # What a classifier computes with: values stay in int8 from one layer to the next.
    "throughout": ("Conv", "MatMul", "Gemm", "Relu", "Clip", "Add", "Concat", "MaxPool", "AveragePool"),
    # Sums and ReLUs in single precision: explanations that are made of several layers' small values need it.
    "products": ("Conv", "MatMul", "Gemm"),
}
"""Kinds of operators that are quantised together, the fastest first."""


class _Feeds(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Iterable[dict[str, Any]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


class Quantiser:
    """Makes graphs in int8 of one in single precision.

    Args:
        model: in single precision.
        feeds: inputs of single images, whose values' ranges are taken: the smallest and the largest.

    Attributes:
        model: as it is quantised: its shapes inferred, and what ONNX Runtime fuses fused.
    """

    def __init__(self, model: onnx.ModelProto, feeds: Iterable[dict[str, Any]]) -> None:
        with _files() as (source, result):
            onnx.save(model, source)
            quant_pre_process(source, result, skip_symbolic_shape=True)
            self.model = onnx.load(result)
            calibrator = create_calibrator(
                result,
                list(OPERATORS["throughout"]),
                augmented_model_path=str(result.with_name("augmented.onnx")),
                calibrate_method=CalibrationMethod.MinMax,
            )
            calibrator.collect_data(_Feeds(feeds))
            self._ranges = calibrator.compute_data()

    def to_int8(self, operators: str = "throughout", keep: Iterable[str] = ()) -> onnx.ModelProto:
        """The graph with weights in int8, per channel, and values in uint8, between QuantizeLinear and
        DequantizeLinear.

        Args:
            operators: the kinds that are quantised, of `OPERATORS`.
            keep: names of nodes that are not.
        """
        keep = list(keep)
        try:
            return self._quantised(operators, keep, {})
        except IndexError:  # of biases that are added along another axis than that of a product's weights
            return self._quantised(operators, keep, {"QDQDisableWeightAdjustForInt32Bias": True})

    def _quantised(self, operators: str, keep: Iterable[str], extra: dict[str, Any]) -> onnx.ModelProto:
        with _files() as (source, _):
            onnx.save(self.model, source)  # the quantiser changes the graph that it is given
            quantiser = QDQQuantizer(
                onnx.load(source),
                per_channel=True,
                reduce_range=False,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=self._ranges,
                nodes_to_quantize=[],
                nodes_to_exclude=list(keep),
                op_types_to_quantize=list(OPERATORS[operators]),
                extra_options=extra,
            )
            quantiser.quantize_model()
            result: onnx.ModelProto = quantiser.model.model
            return result


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
