from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from saccade.errors import ModelError
from saccade.evaluate.randomise import randomise_weights


def tensors(graph: bytes) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load_from_string(graph).graph.initializer}


@pytest.fixture
def graph(tiny_bundle_kept: Path) -> bytes:
    return (tiny_bundle_kept / "explainer.onnx").read_bytes()


def test_learned_weights_are_shuffled_within_themselves(graph: bytes) -> None:
    before, after = tensors(graph), tensors(randomise_weights(graph))
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    convolutions = {name for name, values in before.items() if values.ndim == 4 and values.size > 8}
    assert convolutions <= changed
    assert any(name.endswith("head.weight") for name in changed)
    for name in changed:
        np.testing.assert_array_equal(np.sort(before[name], axis=None), np.sort(after[name], axis=None))


def test_the_geometry_and_the_biases_stay(graph: bytes) -> None:
    before, after = tensors(graph), tensors(randomise_weights(graph))
    kept = [name for name, values in before.items() if "upsample" in name or values.ndim < 2]
    assert any("upsample" in name for name in kept)
    for name in kept:
        np.testing.assert_array_equal(before[name], after[name])


def test_a_tensor_that_the_graph_holds_twice_is_shuffled_equally(rng: np.random.Generator) -> None:
    weights = rng.normal(size=(4, 4)).astype(np.float32)
    kind, value = onnx.TensorProto.FLOAT, onnx.helper.make_tensor_value_info
    nodes = [onnx.helper.make_node("MatMul", ["x", "one"], ["h"]), onnx.helper.make_node("MatMul", ["h", "two"], ["y"])]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [value("x", kind, [1, 4])],
        [value("y", kind, [1, 4])],
        [onnx.numpy_helper.from_array(weights, name) for name in ("one", "two")],
    )
    after = tensors(randomise_weights(onnx.helper.make_model(graph).SerializeToString()))
    assert not np.array_equal(after["one"], weights)
    np.testing.assert_array_equal(after["one"], after["two"])


def test_another_seed_shuffles_otherwise(graph: bytes) -> None:
    assert randomise_weights(graph) == randomise_weights(graph)
    assert randomise_weights(graph, 1) != randomise_weights(graph, 2)


def test_a_graph_without_weights_is_refused() -> None:
    value = onnx.helper.make_tensor_value_info
    nodes = [onnx.helper.make_node("Relu", ["x"], ["y"])]
    kind = onnx.TensorProto.FLOAT
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [value("x", kind, [1])], [value("y", kind, [1])]))
    with pytest.raises(ModelError, match="no weights"):
        randomise_weights(model.SerializeToString())
