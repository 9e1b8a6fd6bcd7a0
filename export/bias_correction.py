"""What rounded weights shift the mean of each channel by, taken off the layer's bias."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

__all__ = ["make_session", "mean_shifts", "rounded_weights", "with_biases"]

_OPERATORS = ("Conv", "Gemm")
_WEIGHT, _BIAS = 1, 2  # places among their inputs

Arrays = dict[str, NDArray[np.float32]]


def rounded_weights(quantised: onnx.ModelProto) -> Arrays:
    """The weights that a graph in int8 computes with, of layers by name."""
    stored = {one.name: one for one in quantised.graph.initializer}
    sources = {node.output[0]: node for node in quantised.graph.node if node.op_type == "DequantizeLinear"}
    found: Arrays = {}
    for node in quantised.graph.node:
        source = sources.get(node.input[_WEIGHT]) if node.op_type in _OPERATORS else None
        if source is None or any(name not in stored for name in source.input):
            continue
        values, scale, zero = (numpy_helper.to_array(stored[name]).astype(np.float32) for name in source.input)
        shape = [1] * values.ndim
        if scale.ndim:
            shape[next((one.i for one in source.attribute if one.name == "axis"), 1)] = -1
        found[node.name] = (values - zero.reshape(shape)) * scale.reshape(shape)
    return found


def mean_shifts(model: onnx.ModelProto, rounded: Mapping[str, NDArray[np.float32]], feeds: Iterable[Any]) -> Arrays:
    """By how much other weights shift the mean of each channel of convolutions and linear layers with a bias.

    Rounding changes a weight by ε, and so an output by ε · x. Its mean over images and places, ε · E[x], is no noise
    that averages out: it grows from layer to layer, and is known (Nagel et al. 2019, Data-Free Quantization Through
    Weight Equalization and Bias Correction, section 4.2; E[x] is taken on images here). Layers without a bias are left
    out: those of a backward pass have none, and what they give grows with a gradient, as a constant does not.

    Args:
        model: in single precision.
        rounded: weights of layers by name.
        feeds: inputs of single images.

    Returns:
        Of layers by name, (channels,).
    """
    weights = {one.name: one for one in model.graph.initializer}
    names = Counter(node.name for node in model.graph.node)
    layers = [
        node
        for node in model.graph.node
        if node.name in rounded and names[node.name] == 1 and _adds_stored_bias(node, weights)
    ]
    if not layers:
        return {}
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    graph = probe.graph
    for node in layers:
        mean = f"{node.name}.mean_shift"
        error = rounded[node.name] - numpy_helper.to_array(weights[node.input[_WEIGHT]])
        axes = [0] if node.op_type == "Gemm" else [0, *range(2, error.ndim)]
        graph.initializer.append(numpy_helper.from_array(error, f"{mean}.weight"))
        graph.initializer.append(numpy_helper.from_array(np.array(axes), f"{mean}.axes"))
        layer = graph.node.add()
        layer.CopyFrom(node)
        layer.name = f"{mean}.layer"
        layer.input[:] = [node.input[0], f"{mean}.weight"]
        layer.output[:] = [layer.name]
        graph.node.append(helper.make_node("ReduceMean", [layer.name, f"{mean}.axes"], [mean], mean, keepdims=0))
        graph.output.append(helper.make_tensor_value_info(mean, onnx.TensorProto.FLOAT, None))
    session = make_session(probe)
    outputs = [f"{node.name}.mean_shift" for node in layers]
    rows = [session.run(outputs, feed) for feed in feeds]
    return {node.name: np.mean(values, axis=0) for node, values in zip(layers, zip(*rows, strict=True), strict=True)}


def make_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the processor, without what it says of a graph that is only asked for its values."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def with_biases(model: onnx.ModelProto, shifts: Mapping[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """A copy of a graph whose layers, by name, have these shifts taken off their biases."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    weights = {one.name: one for one in model.graph.initializer}
    for node in result.graph.node:
        if node.op_type in _OPERATORS and node.name in shifts:
            before = numpy_helper.to_array(weights[node.input[_BIAS]])
            node.input[_BIAS] = f"{node.name}.corrected_bias"
            result.graph.initializer.append(numpy_helper.from_array(before - shifts[node.name], node.input[_BIAS]))
    return result


def _adds_stored_bias(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether a layer has a bias that is stored, and added as it is."""
    scaled = any(one.name in ("alpha", "beta") and one.f != 1 for one in node.attribute)
    return node.op_type in _OPERATORS and not scaled and len(node.input) > _BIAS and node.input[_BIAS] in weights
