"""A graph in int8: static quantisation with ranges that are taken once."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorData, TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process

from .bias_correction import make_session, mean_shifts, rounded_weights, with_biases

__all__ = ["OPERATORS", "RANGES", "Quantiser"]

OPERATORS = {
    # What a classifier computes with: values stay in int8 from one layer to the next.
    "throughout": ("Conv", "MatMul", "Gemm", "Relu", "Clip", "Add", "Concat", "MaxPool", "AveragePool"),
    # Sums and ReLUs in single precision: explanations that are made of several layers' small values need it.
    "products": ("Conv", "MatMul", "Gemm"),
}
"""Kinds of operators that are quantised together, the fastest first."""

RANGES = {"all": 1.0, "most": 0.99999}
"""Shares of the values that int8 must hold. What lies beyond, on both sides, is cut off, and the rest told apart more
finely.
"""
_BINS = 8192  # of a tensor's values, by which their share is found


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
            weights = rounded_weights(self._quantised(self.model, "products", (), "all", weight_bits))
            self._shifts[weight_bits] = mean_shifts(self.model, weights, self._feeds)
        kept = set(keep)
        layers = [node for node in self.model.graph.node if node.op_type in OPERATORS["products"]]
        rounded = {node.input[1] for node in layers if node.name not in kept}  # by others that use the same one, too
        names = {node.name for node in layers if node.input[1] in rounded}
        shifts = {name: shift for name, shift in self._shifts[weight_bits].items() if name in names}
        return self._quantised(with_biases(self.model, shifts), operators, kept, ranges, weight_bits)

    def _quantised(
        self, model: onnx.ModelProto, operators: str, keep: Iterable[str], ranges: str, weight_bits: int
    ) -> onnx.ModelProto:
        held = self._ranges_of(ranges)
        copied = TensorsData(CalibrationMethod.MinMax, dict(held.items()))  # the quantiser changes that as well
        with _files() as (source, _):
            onnx.save(model, source)  # the quantiser changes the graph that it is given
            quantiser = QDQQuantizer(
                onnx.load(source),
                per_channel=True,
                reduce_range=weight_bits == 7,
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=copied,
                nodes_to_quantize=[],
                nodes_to_exclude=list(keep),
                op_types_to_quantize=list(OPERATORS[operators]),
                extra_options={},
            )
            quantiser.quantize_model()
            result: onnx.ModelProto = quantiser.model.model
            return result

    def _ranges_of(self, ranges: str) -> TensorsData:
        """Of all values that are quantised, by name."""
        if ranges not in self._ranges:
            self._ranges[ranges] = self._smallest_and_largest() if ranges == "all" else self._most(RANGES[ranges])
        return self._ranges[ranges]

    def _smallest_and_largest(self) -> TensorsData:
        with _files() as (source, result):
            onnx.save(self.model, source)
            calibrator = create_calibrator(
                source,
                list(OPERATORS["throughout"]),
                augmented_model_path=str(result),
                calibrate_method=CalibrationMethod.MinMax,
            )
            calibrator.collect_data(_Feeds(self._feeds))
            return calibrator.compute_data()

    def _most(self, share: float) -> TensorsData:
        """Ranges that hold so many of the values.

        ONNX Runtime's own cuts a bin too much off the largest, and its bins are as wide as the first image's values are
        large.
        """
        limits: dict[str, tuple[float, float]] = {}
        for name, data in self._ranges_of("all").items():
            low, high = (float(np.asarray(value).item()) for value in data.range_value)
            if low < high and np.isfinite((low, high)).all():
                limits[name] = low, high
        counts = {name: np.zeros(_BINS, np.int64) for name in limits}
        probe = onnx.ModelProto()
        probe.CopyFrom(self.model)
        there = {one.name for one in (*probe.graph.output, *probe.graph.input)}
        outputs = [name for name in limits if name not in there]
        probe.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs)
        session = make_session(probe)
        answered = [one.name for one in session.get_outputs()]
        for feed in self._feeds:
            values = feed | dict(zip(answered, session.run(answered, feed), strict=True))
            for name, pair in limits.items():
                counts[name] += np.histogram(values[name], _BINS, pair)[0]
        found = dict(self._ranges_of("all").items())
        for name, (low, high) in limits.items():
            edges = np.linspace(low, high, _BINS + 1, dtype=np.float32)
            below = np.cumsum(counts[name]) / counts[name].sum()
            left, right = np.searchsorted(below, ((1 - share) / 2, (1 + share) / 2))
            found[name] = TensorData(lowest=edges[left], highest=edges[right + 1])
        return TensorsData(CalibrationMethod.MinMax, found)


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
