"""A graph in int8: static quantisation with ranges that are taken once."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process

from .bias_correction import mean_shifts, rounded_weights, with_biases

__all__ = ["OPERATORS", "RANGES", "Quantiser"]

OPERATORS = {
    # What a classifier computes with: values stay in int8 from one layer to the next.
    "throughout": ("Conv", "MatMul", "Gemm", "Relu", "Clip", "Add", "Concat", "MaxPool", "AveragePool"),
    # Sums and ReLUs in single precision: explanations that are made of several layers' small values need it.
    "products": ("Conv", "MatMul", "Gemm"),
}
"""Kinds of operators that are quantised together, the fastest first."""

RANGES = {"all": 100.0, "most": 99.999}
"""Percentiles of values that int8 must hold. What lies beyond is cut off, and the rest is told apart more finely."""


class _Feeds(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Iterable[dict[str, Any]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


class Quantiser:
    """Makes graphs in int8 of one in single precision.

    Args:
        model: in single precision.
        feeds: inputs of single images, whose values' ranges are taken, and whose channels keep their means.

    Attributes:
        model: as it is quantised: its shapes inferred, and what ONNX Runtime fuses fused.
    """

    def __init__(self, model: onnx.ModelProto, feeds: Iterable[dict[str, Any]]) -> None:
        with _files() as (source, result):
            onnx.save(model, source)
            quant_pre_process(source, result, skip_symbolic_shape=True)
            self.model = onnx.load(result)
        _own_weights(self.model)
        self._feeds = list(feeds)
        self._ranges: dict[str, TensorsData] = {}
        self._shifts: dict[int, dict[str, NDArray[np.float32]]] = {}

    def to_int8(
        self,
        operators: str = "throughout",
        keep: Iterable[str] = (),
        *,
        ranges: str = "all",
        weight_bits: Literal[7, 8] = 7,
    ) -> onnx.ModelProto:
        """The graph with weights in int8, per channel, and values in uint8, between QuantizeLinear and
        DequantizeLinear, and biases by which channels keep their means, see `mean_shifts`.

        Args:
            operators: the kinds that are quantised, of `OPERATORS`.
            keep: names of nodes that are not.
            ranges: of values, of `RANGES`.
            weight_bits: that weights take. Processors without VNNI add products of uint8 and int8 in pairs, in 16 bits,
                and say nothing where that overflows: 2 · 255 · 64 is less than 2¹⁵, 2 · 255 · 127 is not.
        """
        if weight_bits not in self._shifts:
            rounded = rounded_weights(self._quantised(self.model, "products", (), "all", weight_bits))
            self._shifts[weight_bits] = mean_shifts(self.model, rounded, self._feeds)
        kept = set(keep)
        shifts = {name: shift for name, shift in self._shifts[weight_bits].items() if name not in kept}
        return self._quantised(with_biases(self.model, shifts), operators, kept, ranges, weight_bits)

    def _quantised(
        self, model: onnx.ModelProto, operators: str, keep: Iterable[str], ranges: str, weight_bits: int
    ) -> onnx.ModelProto:
        if ranges not in self._ranges:
            self._ranges[ranges] = self._calibrated(ranges)
        with _files() as (source, _):
            onnx.save(model, source)  # the quantiser changes the graph that it is given
            quantiser = QDQQuantizer(
                onnx.load(source),
                per_channel=True,
                reduce_range=weight_bits == 7,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=self._ranges[ranges],
                nodes_to_quantize=[],
                nodes_to_exclude=list(keep),
                op_types_to_quantize=list(OPERATORS[operators]),
                extra_options={},
            )
            quantiser.quantize_model()
            result: onnx.ModelProto = quantiser.model.model
            return result

    def _calibrated(self, ranges: str) -> TensorsData:
        with _files() as (source, result), contextlib.redirect_stdout(io.StringIO()):
            onnx.save(self.model, source)
            calibrator = create_calibrator(
                source,
                list(OPERATORS["throughout"]),
                augmented_model_path=str(result),
                calibrate_method=CalibrationMethod.MinMax if ranges == "all" else CalibrationMethod.Percentile,
                extra_options={} if ranges == "all" else {"percentile": RANGES[ranges], "symmetric": False},
            )
            for feed in self._feeds:
                calibrator.collect_data(_Feeds([feed]))  # one at a time, or it holds all values of all of them
            return calibrator.compute_data()


def _own_weights(model: onnx.ModelProto) -> None:
    """Give weights that are used in several ways, as by a layer and by its gradient, a copy for each: the scales of
    channels go along one axis, which is another one where a weight is used transposed.
    """
    weights = {one.name: one for one in model.graph.initializer}
    ways: dict[str, list[tuple[Any, ...]]] = {}
    for node in model.graph.node:
        if node.op_type not in OPERATORS["products"]:
            continue
        transposed = tuple((one.name, one.i) for one in node.attribute if one.name in ("transA", "transB"))
        for place, name in enumerate(node.input):
            if name not in weights:
                continue
            seen = ways.setdefault(name, [])
            way = (node.op_type, place, transposed)
            if way not in seen:
                seen.append(way)
            if number := seen.index(way):
                node.input[place] = f"{name}.{number}"
                if node.input[place] not in weights:
                    copy = weights[node.input[place]] = model.graph.initializer.add()
                    copy.CopyFrom(weights[name])
                    copy.name = node.input[place]


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
