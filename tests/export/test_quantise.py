"""What int8 keeps: means of channels, against PyTorch in float64, and small values beside large ones, against NumPy."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper

from saccade.export.bias_correction import mean_shifts, rounded_weights, with_biases
from saccade.export.quantise import RANGES, Quantiser

RNG = np.random.default_rng(4)
WEIGHTS = {
    "first": RNG.normal(size=(6, 2, 3, 3)),
    "first.bias": RNG.normal(size=6),
    "second": RNG.normal(size=(5, 6, 1, 1)),
    "second.bias": RNG.normal(size=5),
    "last": RNG.normal(size=(5, 3)),
    "last.bias": RNG.normal(size=3),
}
FEEDS = [{"x": RNG.normal(1, 1, (1, 4, 9, 9)).astype(np.float32)} for _ in range(7)]


@pytest.fixture
def model() -> onnx.ModelProto:
    """Two convolutions, the first in groups, and a linear layer."""
    nodes = [
        helper.make_node(
            "Conv", ["x", "first", "first.bias"], ["a"], "one", group=2, strides=[2, 2], pads=[1, 1, 1, 1]
        ),
        helper.make_node("Relu", ["a"], ["b"], "kink"),
        helper.make_node("Conv", ["b", "second", "second.bias"], ["c"], "two"),
        helper.make_node("ReduceMean", ["c", "axes"], ["d"], "mean", keepdims=0),
        helper.make_node("Gemm", ["d", "last", "last.bias"], ["y"], "three"),
    ]
    stored = [numpy_helper.from_array(values.astype(np.float32), name) for name, values in WEIGHTS.items()]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, 4, 9, 9])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None, 3])],
        [*stored, numpy_helper.from_array(np.array([2, 3]), "axes")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


def stored(model: onnx.ModelProto) -> dict[str, torch.Tensor]:
    return {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()).double() for one in model.graph.initializer}


def test_channels_keep_their_means(model: onnx.ModelProto) -> None:
    names = {"one": "first", "two": "second", "three": "last"}
    rounded = {node: np.round(WEIGHTS[name], 0).astype(np.float32) for node, name in names.items()}
    corrected = with_biases(model, mean_shifts(model, rounded, FEEDS))
    onnx.checker.check_model(corrected, full_check=True)
    have, found = stored(model), stored(corrected)
    bias = {node.name: found[node.input[2]] for node in corrected.graph.node if node.name in names}
    rough = {node: torch.from_numpy(values).double() for node, values in rounded.items()}

    x = torch.from_numpy(np.concatenate([feed["x"] for feed in FEEDS])).double()
    a = F.conv2d(x, have["first"], have["first.bias"], stride=2, padding=1, groups=2)
    other = F.conv2d(x, rough["one"], bias["one"], stride=2, padding=1, groups=2)
    torch.testing.assert_close(other.mean((0, 2, 3)), a.mean((0, 2, 3)), atol=1e-5, rtol=0)
    assert (other + (have["first.bias"] - bias["one"])[:, None, None] - a).mean(
        (0, 2, 3)
    ).abs().min() > 0.01  # which they had not

    c = F.conv2d(a.relu(), have["second"], have["second.bias"])
    other = F.conv2d(a.relu(), rough["two"], bias["two"])
    torch.testing.assert_close(other.mean((0, 2, 3)), c.mean((0, 2, 3)), atol=1e-5, rtol=0)

    d = c.mean((2, 3))
    y, other = d @ have["last"] + have["last.bias"], d @ rough["three"] + bias["three"]
    torch.testing.assert_close(other.mean(0), y.mean(0), atol=1e-5, rtol=0)


def test_layers_whose_bias_is_not_there_or_computed_or_scaled_stay_as_they_are(model: onnx.ModelProto) -> None:
    del model.graph.node[0].input[2]
    model.graph.node[2].input[2] = "x.bias"
    model.graph.node.insert(0, helper.make_node("ReduceMax", ["last", "none"], ["x.bias"], "computed", keepdims=0))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "none"))
    model.graph.node[-1].attribute.append(helper.make_attribute("beta", 0.5))
    names = {"one": "first", "two": "second", "three": "last"}
    assert mean_shifts(model, {node: WEIGHTS[name] * 0 for node, name in names.items()}, FEEDS) == {}


@pytest.mark.parametrize("dimensions", [1, 3])
def test_convolutions_along_one_axis_and_three(dimensions: int, rng: np.random.Generator) -> None:
    weight, bias = rng.normal(size=(4, 3, *(2,) * dimensions)), rng.normal(size=4)
    feeds = [{"x": rng.normal(1, 1, (1, 3, *(6,) * dimensions)).astype(np.float32)} for _ in range(3)]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], "one")],
        "other",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, feeds[0]["x"].shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.astype(np.float32), name) for value, name in ((weight, "w"), (bias, "b"))],
    )
    rounded = np.round(weight).astype(np.float32)
    (shift,) = mean_shifts(helper.make_model(graph, ir_version=10), {"one": rounded}, feeds).values()
    x = torch.from_numpy(np.concatenate([feed["x"] for feed in feeds])).double()
    convolution = {1: F.conv1d, 3: F.conv3d}[dimensions]
    expected = convolution(x, torch.from_numpy(rounded - weight)).transpose(0, 1).flatten(1).mean(1)
    np.testing.assert_allclose(shift, expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("bits", [7, 8])
def test_weights_are_rounded_by_channels_and_biases_of_layers_in_int8_are_corrected(
    model: onnx.ModelProto, bits: Literal[7, 8]
) -> None:
    quantiser = Quantiser(model, FEEDS)
    weights = rounded_weights(quantiser.to_int8("products", weight_bits=bits))
    highest = {7: 64, 8: 127}[bits]
    for name, node, axes in (("first", "one", (1, 2, 3)), ("second", "two", (1, 2, 3)), ("last", "three", (0,))):
        step = np.abs(WEIGHTS[name]).max(axes, keepdims=True) / highest
        np.testing.assert_allclose(weights[node], np.round(WEIGHTS[name] / step) * step, atol=1e-6)
    kept = stored(quantiser.to_int8("products", ["two"], weight_bits=bits))
    assert torch.equal(kept["second.bias"].float(), torch.from_numpy(WEIGHTS["second.bias"]).float())
    assert "two.corrected_bias" not in " ".join(kept)
    x = torch.from_numpy(np.concatenate([feed["x"] for feed in FEEDS])).double()
    error = torch.from_numpy(weights["one"] - WEIGHTS["first"])
    shift = F.conv2d(x, error, stride=2, padding=1, groups=2).mean((0, 2, 3)).numpy()
    scale, whole = kept["one.corrected_bias_quantized_scale"], kept["one.corrected_bias_quantized"]
    np.testing.assert_allclose((scale * whole).numpy(), WEIGHTS["first.bias"] - shift, atol=2e-3)
    assert np.abs(shift).max() > 4e-3


def test_a_layer_in_single_precision_that_shares_rounded_weights_is_corrected(rng: np.random.Generator) -> None:
    weight, biases = rng.normal(size=(3, 3)), rng.normal(size=(2, 3))
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b0"], ["h"], "there"),
        helper.make_node("Relu", ["h"], ["k"], "kink"),
        helper.make_node("Gemm", ["k", "w", "b1"], ["y"], "again"),
    ]
    graph = helper.make_graph(
        nodes,
        "shared",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 3])],
        [
            numpy_helper.from_array(values.astype(np.float32), name)
            for values, name in ((weight, "w"), (biases[0], "b0"), (biases[1], "b1"))
        ],
    )
    feeds = [{"x": rng.normal(1, 1, (1, 3)).astype(np.float32)} for _ in range(20)]
    quantiser = Quantiser(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10), feeds)
    quantised = quantiser.to_int8("products", ["again"])
    (again,) = (node for node in quantised.graph.node if node.name == "again")
    rounded = again.input[1] not in {one.name for one in quantised.graph.initializer}
    assert rounded == again.input[2].startswith("again.corrected_bias")


def test_ranges_hold_what_they_say_on_each_side(rng: np.random.Generator) -> None:
    values = np.concatenate([rng.normal(scale=scale, size=(1, 2, 300, 300)) for scale in (0.001, 1, 30)])
    values = np.maximum(values, -4).astype(np.float32)  # many at the smallest
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], "one")],
        "ranges",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 2, 300, 300])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 2, 300, 300])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    quantiser = Quantiser(model, [{"x": value[None]} for value in values])
    for name, seen in (("x", values), ("y", np.maximum(values, 0))):
        low, high = quantiser._ranges_of("most")[name].range_value
        assert (seen < low).mean() <= 5e-6
        assert (seen > high).mean() <= 5e-6
        width = np.ptp(seen) / 8192
        assert (seen > high - 2 * width).mean() > 5e-6  # and no more than that
        assert low == pytest.approx(seen.min(), abs=1e-5)


def test_values_are_told_apart_more_finely_where_the_farthest_are_cut_off(rng: np.random.Generator) -> None:
    weight, values = rng.normal(size=(3, 2, 1, 1)), rng.normal(size=(1, 2, 700, 700))
    values[0, 0, 7, 7], values[0, 1, 9, 9] = 1000, -1000
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], "one")],
        "far",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, 2, 700, 700])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None, 3, 700, 700])],
        [numpy_helper.from_array(weight.astype(np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    feeds = [{"x": values.astype(np.float32)}]
    quantiser, exact = Quantiser(model, feeds), np.einsum("oi,nihw->nohw", weight[:, :, 0, 0], values)
    errors = {}
    for ranges in RANGES:
        quantised = quantiser.to_int8("products", ranges=ranges).SerializeToString()
        session = onnxruntime.InferenceSession(quantised, providers=["CPUExecutionProvider"])
        errors[ranges] = np.median(np.abs(session.run(None, feeds[0])[0] - exact))
    assert errors["most"] < 0.1 * errors["all"]
