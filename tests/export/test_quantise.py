"""What int8 keeps: means of channels, against PyTorch in float64, and small values beside large ones, against NumPy."""

from __future__ import annotations

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
    "second": RNG.normal(size=(5, 6, 1, 1)),
    "second.bias": RNG.normal(size=5),
    "last": RNG.normal(size=(5, 3)),
    "last.bias": RNG.normal(size=3),
}
FEEDS = [{"x": RNG.normal(1, 1, (1, 4, 9, 9)).astype(np.float32)} for _ in range(7)]


@pytest.fixture
def model() -> onnx.ModelProto:
    """Two convolutions, the first in groups and without a bias, and a linear layer."""
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], "one", group=2, strides=[2, 2], pads=[1, 1, 1, 1]),
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
    a = F.conv2d(x, have["first"], stride=2, padding=1, groups=2)
    other = F.conv2d(x, rough["one"], bias["one"], stride=2, padding=1, groups=2)
    torch.testing.assert_close(other.mean((0, 2, 3)), a.mean((0, 2, 3)), atol=1e-5, rtol=0)
    assert (other - bias["one"][:, None, None] - a).mean((0, 2, 3)).abs().min() > 0.01  # which they had not

    c = F.conv2d(a.relu(), have["second"], have["second.bias"])
    other = F.conv2d(a.relu(), rough["two"], bias["two"])
    torch.testing.assert_close(other.mean((0, 2, 3)), c.mean((0, 2, 3)), atol=1e-5, rtol=0)

    d = c.mean((2, 3))
    y, other = d @ have["last"] + have["last.bias"], d @ rough["three"] + bias["three"]
    torch.testing.assert_close(other.mean(0), y.mean(0), atol=1e-5, rtol=0)


def test_layers_whose_bias_is_computed_or_scaled_stay_as_they_are(model: onnx.ModelProto) -> None:
    model.graph.node[2].input[2] = "x.bias"
    model.graph.node.insert(0, helper.make_node("ReduceMax", ["last", "none"], ["x.bias"], "computed", keepdims=0))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "none"))
    model.graph.node[-1].attribute.append(helper.make_attribute("beta", 0.5))
    rounded = {node: np.zeros_like(WEIGHTS[name], np.float32) for node, name in [("two", "second"), ("three", "last")]}
    assert mean_shifts(model, rounded, FEEDS) == {}


@pytest.mark.parametrize("bits", [7, 8])
def test_a_quantised_graph_keeps_means_of_layers_in_int8_only(model: onnx.ModelProto, bits: int) -> None:
    quantiser = Quantiser(model, FEEDS)
    graph = quantiser.to_int8("products", weight_bits=bits)  # type: ignore[arg-type]
    weights = rounded_weights(graph)
    assert set(weights) == {"one", "two", "three"}
    for name, node in (("first", "one"), ("second", "two"), ("last", "three")):
        largest = np.abs(WEIGHTS[name]).max()
        assert 0 < np.abs(weights[node] - WEIGHTS[name]).max() <= 0.51 * largest / (2 ** (bits - 1) - 1)
    kept = quantiser.to_int8("products", ["two"], weight_bits=bits)  # type: ignore[arg-type]
    biases = [node.input[2] for node in kept.graph.node if node.name == "two"]
    assert np.array_equal(stored(kept)[biases[0]].numpy(), WEIGHTS["second.bias"].astype(np.float32))


def test_values_are_told_apart_more_finely_where_the_farthest_are_cut_off() -> None:
    weight, values = RNG.normal(size=(3, 2, 1, 1)), RNG.normal(size=(1, 2, 500, 500))
    values[0, 0, 7, 7], values[0, 1, 9, 9] = 1000, -1000
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], "one")],
        "far",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [None, 2, 500, 500])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None, 3, 500, 500])],
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
    assert errors["all"] > 0.5
    assert errors["most"] < 0.05


def test_in_int8_the_mean_answer_is_nearer(model: onnx.ModelProto) -> None:
    quantiser = Quantiser(model, FEEDS)
    answers = []
    for graph in (
        model,
        quantiser.to_int8("products"),
        quantiser._quantised(quantiser.model, "products", (), "all", 7),
    ):
        session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        answers.append(np.mean([session.run(None, feed)[0][0] for feed in FEEDS], axis=0))
    exact, corrected, plain = answers
    assert np.linalg.norm(corrected - exact) < 0.5 * np.linalg.norm(plain - exact)
