"""A graph in half precision: fp16 or bf16, with islands in single precision where range or sums need it."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterable

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
import onnx_ir.passes.common as passes
from onnx import NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

__all__ = ["computes", "layer_of", "rounded", "to_half"]

_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_ISLANDS = (  # of sums, of quotients by them, and of what has a range wider than fp16's
    *DEFAULT_OP_BLOCK_LIST,
    *("Softmax", "LogSoftmax", "LayerNormalization", "InstanceNormalization", "GroupNormalization"),
    *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2", "ReduceLogSumExp"),
    *("Exp", "Log", "Pow", "Sqrt", "Reciprocal", "Sin", "Cos", "Erf", "Sigmoid"),
)
_MOVING = {  # values as they are: nothing is rounded
    *("Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape", "Slice"),
    *("Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where", "MaxPool", "Relu", "Max", "Min", "Neg", "Abs"),
}


def to_half(model: onnx.ModelProto, precision: str, keep: Iterable[str] = ()) -> onnx.ModelProto:
    """The graph with weights, values and arithmetic in half precision; inputs and outputs stay as they are.

    Softmax, normalisation, reductions, and functions of a wide range stay in single precision.

    Args:
        model: in single precision.
        precision: ``"fp16"`` or ``"bf16"``.
        keep: names of further nodes that stay in single precision.
    """
    half = convert_float_to_float16(
        copy.deepcopy(model), keep_io_types=True, op_block_list=list(_ISLANDS), node_block_list=list(keep)
    )
    del half.graph.value_info[:]  # some of it is of single precision
    if precision == "bf16":
        _as_bfloat(half, {one.name: one for one in model.graph.initializer})
    found = onnx_ir.from_proto(half)
    passes.TopologicalSortPass()(found)  # the converter adds casts at the end
    passes.ShapeInferencePass()(found)
    _stay_single(found)
    passes.RemoveUnusedNodesPass()(found)
    result: onnx.ModelProto = onnx_ir.to_proto(found)
    return result


def _stay_single(model: onnx_ir.Model) -> None:
    """From one island to the next, and to the graph's outputs, values go as they are, not through half precision."""
    for node in list(model.graph):
        inner = node.inputs[0].producer() if node.op_type == "Cast" and node.inputs[0] is not None else None
        if inner is None or inner.op_type != "Cast" or node.attributes["to"].as_int() != TensorProto.FLOAT:
            continue
        source, out = inner.inputs[0], node.outputs[0]
        if source is None or source.dtype != onnx_ir.DataType.FLOAT:
            continue
        if out.is_graph_output():
            node.op_type = "Identity"
            node.attributes.clear()
            node.replace_input_with(0, source)
        else:
            onnx_ir.convenience.replace_all_uses_with(out, source)


def computes(node: NodeProto) -> bool:
    """Half precision is about this node: it is no island, and does more than move values."""
    return node.op_type not in {*_ISLANDS, *_MOVING, "Cast", "Constant", "Shape"}


def layer_of(node: NodeProto) -> str:
    """The layer of the model that a node belongs to, as PyTorch calls it, or the node's own name."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"), "[]")
    modules = [scope for scope in ast.literal_eval(scopes)[:-1] if scope not in ("", "explainer")]
    return modules[-1] if modules else node.name


def rounded(half: onnx.ModelProto) -> onnx.ModelProto:
    """A graph that computes the same numbers as one in half precision, by arithmetic in single precision: every result
    is rounded to half, as by a GPU that sums in single.

    A processor's runtime has kernels for few operators in half precision; for the others it leaves the rounding out.
    """
    model = onnx.shape_inference.infer_shapes(half)
    graph = model.graph
    typed = [*graph.value_info, *graph.input, *graph.output]
    kind = {one.name: one.type.tensor_type.elem_type for one in typed}
    halves = set(_TYPES.values())
    for one in graph.initializer:
        if one.data_type in halves:
            one.CopyFrom(numpy_helper.from_array(_values(one).astype(np.float32), one.name))
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type in halves:
                single = numpy_helper.from_array(_values(attribute.t).astype(np.float32), attribute.t.name)
                attribute.t.CopyFrom(single)
        if node.op_type in _MOVING or node.op_type in ("Constant", "ConstantOfShape"):
            continue
        for place, name in enumerate(node.output):
            to = kind.get(name, 0)
            if to not in halves:
                continue
            exact, small = f"{name}.exact", f"{name}.half"
            node.output[place] = exact
            if node.op_type == "Cast":
                exact, node.output[place] = small, small
            else:
                nodes.append(helper.make_node("Cast", [exact], [small], name=f"{name}.to_half", to=to))
            nodes.append(helper.make_node("Cast", [small], [name], name=f"{name}.to_single", to=TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    return model


def _as_bfloat(model: onnx.ModelProto, originals: dict[str, TensorProto]) -> None:
    """From fp16 to bf16; weights are rounded once, from single precision."""
    graph = model.graph
    for one in graph.initializer:
        if one.data_type == TensorProto.FLOAT16:
            source = originals.get(one.name, one)
            one.CopyFrom(_bfloat(_values(source), one.name))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.BFLOAT16
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT16:
                attribute.t.CopyFrom(_bfloat(_values(attribute.t), attribute.t.name))


def _values(tensor: TensorProto) -> np.ndarray:
    return np.asarray(numpy_helper.to_array(tensor)).astype(np.float32)


def _bfloat(values: np.ndarray, name: str) -> TensorProto:
    return numpy_helper.from_array(values.astype(ml_dtypes.bfloat16), name)
