"""Cutting a graph down to some outputs, against what the onnx package cuts out of the same file."""

from __future__ import annotations

import hashlib
import json
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.utils import Extractor

from saccade.accel.engines import open_engine
from saccade.accel.manifest import GRAPH_FILE, MANIFEST_FILE
from saccade.accel.onnx_prune import prune_onnx, refuse_other_files
from saccade.errors import BundleError


def floats(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model_of(
    nodes: list[onnx.NodeProto], inputs: list[str], outputs: list[str], weights: dict[str, np.ndarray]
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "test",
        [floats(name, "n", 4) for name in inputs],
        [floats(name, "n", 4) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
        value_info=[floats("shared", "n", 4), floats("deep", "n", 4)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="test")
    onnx.checker.check_model(model)
    return model


@pytest.fixture
def small() -> onnx.ModelProto:
    """Two inputs, three outputs; one node is shared by all, one by two, one belongs to none."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["shared"]),
        helper.make_node("Add", ["shared", "b"], ["deep"]),
        helper.make_node("Clip", ["deep", "", "top"], ["first"]),
        helper.make_node("Mul", ["deep", "y"], ["second"]),
        helper.make_node("Neg", ["second"], ["unused"]),
        helper.make_node("Sub", ["shared", "c"], ["third"]),
    ]
    rng = np.random.default_rng(3)
    weights = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in (("w", (4, 4)), ("b", 4), ("c", 4))
    }
    return model_of(nodes, ["x", "y"], ["first", "second", "third"], {**weights, "top": np.array(0.5, np.float32)})


def subsets(names: list[str]) -> list[tuple[str, ...]]:
    return [chosen for count in range(1, len(names) + 1) for chosen in combinations(names, count)]


def answers(model: bytes, outputs: tuple[str, ...], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    taken = {value.name for value in session.get_inputs()}
    return session.run(list(outputs), {name: value for name, value in feeds.items() if name in taken})


def check_against_extractor(model: onnx.ModelProto, outputs: tuple[str, ...], feeds: dict[str, np.ndarray]) -> None:
    pruned_bytes = prune_onnx(model.SerializeToString(), outputs)
    pruned = onnx.load_from_string(pruned_bytes)
    onnx.checker.check_model(pruned)
    reference = Extractor(model).extract_model([value.name for value in model.graph.input], list(outputs))

    def serialized(entries: list[onnx.NodeProto]) -> list[bytes]:
        return sorted(entry.SerializeToString(deterministic=True) for entry in entries)

    assert serialized(pruned.graph.node) == serialized(reference.graph.node)
    assert serialized(pruned.graph.initializer) == serialized(reference.graph.initializer)
    assert {value.name for value in pruned.graph.output} == set(outputs)
    used = {name for node in pruned.graph.node for name in node.input}
    assert {value.name for value in pruned.graph.input} == used & {value.name for value in model.graph.input}
    made = {name for node in pruned.graph.node for name in node.output} | {
        weight.name for weight in pruned.graph.initializer
    }
    assert {value.name for value in pruned.graph.value_info} <= made
    assert pruned.opset_import == model.opset_import
    assert pruned.ir_version == model.ir_version

    got, whole = answers(pruned_bytes, outputs, feeds), answers(model.SerializeToString(), outputs, feeds)
    for value, expected in zip(got, whole, strict=True):
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("outputs", subsets(["probabilities", "target_class", "mask"]), ids="+".join)
def test_a_bundles_graph_is_cut_as_the_onnx_package_cuts_it(
    tiny_bundle_kept: Path, outputs: tuple[str, ...], rng: np.random.Generator
) -> None:
    feeds = {"image": rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8), "target": np.array([-1, 0, 4])}
    check_against_extractor(onnx.load(tiny_bundle_kept / GRAPH_FILE), outputs, feeds)


def test_the_classifier_alone_has_fewer_nodes_and_no_target(tiny_bundle_kept: Path) -> None:
    whole = onnx.load(tiny_bundle_kept / GRAPH_FILE)
    pruned = onnx.load_from_string(prune_onnx((tiny_bundle_kept / GRAPH_FILE).read_bytes(), ("probabilities",)))
    assert len(pruned.graph.node) < len(whole.graph.node)
    assert [value.name for value in pruned.graph.input] == ["image"]


@pytest.mark.parametrize("outputs", subsets(["first", "second", "third"]), ids="+".join)
def test_a_small_graph_is_cut_as_the_onnx_package_cuts_it(
    small: onnx.ModelProto, outputs: tuple[str, ...], rng: np.random.Generator
) -> None:
    feeds = {name: rng.standard_normal((2, 4)).astype(np.float32) for name in ("x", "y")}
    check_against_extractor(small, outputs, feeds)


def test_an_output_that_is_left_out_does_not_join_an_input_that_is_left_out(rng: np.random.Generator) -> None:
    nodes = [
        helper.make_node("Dropout", ["x"], ["other", ""]),
        helper.make_node("Clip", ["x", "", "top"], ["first"]),
    ]
    model = model_of(nodes, ["x"], ["first", "other"], {"top": np.array(0.5, np.float32)})
    check_against_extractor(model, ("first",), {"x": rng.standard_normal((2, 4)).astype(np.float32)})


def test_an_output_that_is_an_input_needs_no_node() -> None:
    model = model_of([helper.make_node("Neg", ["x"], ["minus"])], ["x"], ["minus", "x"], {})
    pruned = onnx.load_from_string(prune_onnx(model.SerializeToString(), ("x",)))
    assert len(pruned.graph.node) == 0
    assert [value.name for value in pruned.graph.input] == ["x"]


def test_fields_that_are_not_nodes_are_kept(small: onnx.ModelProto) -> None:
    helper.set_model_props(small, {"origin": "a test"})
    small.doc_string = "kept"
    pruned = onnx.load_from_string(prune_onnx(small.SerializeToString(), ("third",)))
    assert pruned.metadata_props[0].value == "a test"
    assert pruned.doc_string == "kept"
    assert pruned.graph.name == small.graph.name


def test_an_unknown_output_is_refused_with_those_there_are(small: onnx.ModelProto) -> None:
    with pytest.raises(BundleError, match=r"no output \['fourth'\].*first.*second.*third"):
        prune_onnx(small.SerializeToString(), ("first", "fourth"))


def test_a_name_inside_the_graph_is_not_an_output(small: onnx.ModelProto) -> None:
    with pytest.raises(BundleError, match="no output"):
        prune_onnx(small.SerializeToString(), ("deep",))


def test_every_prefix_of_a_file_is_refused_or_valid(small: onnx.ModelProto) -> None:
    data = small.SerializeToString()
    refusals = 0
    for length in range(len(data)):
        try:
            pruned = prune_onnx(data[:length], ("first",))
        except BundleError:
            refusals += 1
        else:
            graph = onnx.load_from_string(pruned).graph
            assert [value.name for value in graph.output] == ["first"]
            assert {node.op_type for node in graph.node} == {"MatMul", "Add", "Clip"}
    assert refusals > 0.9 * len(data)


def test_every_damaged_byte_is_refused_or_passed_on(small: onnx.ModelProto, rng: np.random.Generator) -> None:
    data = small.SerializeToString()
    refusals = 0
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= int(rng.integers(1, 256))
        try:
            prune_onnx(bytes(damaged), ("first",))
        except BundleError:
            refusals += 1
    assert refusals


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(BundleError, match="no graph"):
        prune_onnx(b"", ("first",))


def test_a_graph_that_branches_is_refused() -> None:
    def branch(name: str, operator: str) -> onnx.GraphProto:
        return helper.make_graph([helper.make_node(operator, ["x"], [name])], name, [], [floats(name, "n", 4)])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["condition"], to=TensorProto.BOOL),
        helper.make_node(
            "If", ["condition"], ["first"], then_branch=branch("yes", "Neg"), else_branch=branch("no", "Abs")
        ),
        helper.make_node("Neg", ["x"], ["second"]),
    ]
    model = model_of(nodes, ["x"], ["first", "second"], {})
    with pytest.raises(BundleError, match="branches"):
        prune_onnx(model.SerializeToString(), ("second",))


def outside(name: str) -> TensorProto:
    """Weights that lie in another file."""
    tensor = numpy_helper.from_array(np.ones(4, np.float32), name)
    onnx.external_data_helper.set_external_data(tensor, "weights.bin", 0, 16)
    tensor.ClearField("raw_data")
    return tensor


@pytest.mark.parametrize("place", ["an initializer", "a constant", "a sparse one", "a branch", "a function"])
def test_weights_in_other_files_are_refused_wherever_they_stand(small: onnx.ModelProto, place: str) -> None:
    refuse_other_files(small.SerializeToString())
    constant = helper.make_node("Constant", [], ["k"], value=outside("k"))
    if place == "an initializer":
        small.graph.initializer.append(outside("k"))
    elif place == "a constant":
        small.graph.node.append(constant)
    elif place == "a sparse one":
        indices = numpy_helper.from_array(np.arange(4), "i")
        small.graph.sparse_initializer.append(helper.make_sparse_tensor(outside("k"), indices, [8]))
    elif place == "a branch":
        branch = helper.make_graph([constant], "branch", [], [floats("k", 4)])
        small.graph.node.append(helper.make_node("If", ["x"], ["k"], then_branch=branch, else_branch=branch))
    else:
        opset = [helper.make_opsetid("", 17)]
        small.functions.append(helper.make_function("own", "Make", [], ["k"], [constant], opset))
    with pytest.raises(BundleError, match=r"has the weights 'k' in another file"):
        refuse_other_files(small.SerializeToString())


def test_a_bundle_whose_graph_takes_weights_from_elsewhere_is_refused(
    tiny_bundle_kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the file is there, and the hash is that of the graph."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle_kept, folder)
    model = onnx.load(folder / GRAPH_FILE)
    weight = next(one for one in model.graph.initializer if one.data_type == TensorProto.FLOAT and len(one.dims) == 4)
    (tmp_path / "weights.bin").write_bytes(weight.raw_data)
    onnx.external_data_helper.set_external_data(weight, "weights.bin", 0, len(weight.raw_data))
    weight.ClearField("raw_data")
    content = model.SerializeToString()
    (folder / GRAPH_FILE).write_bytes(content)
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    manifest["files"][GRAPH_FILE]["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="in another file"):
        open_engine(folder, check=False).run(np.zeros((1, 32, 32, 3), np.uint8))
