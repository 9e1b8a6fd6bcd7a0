"""The cut and the antialiased resize as ONNX operators, in front of a graph that takes images of the model's size.

The rule is `ImageSpec.box` and Pillow's filters: `Resize` with ``antialias=1`` is defined after Pillow's, so the
graph gives the pixels that Pillow gives to within one grey level. ONNX Runtime has this operator; TensorRT refuses it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..contracts import ImageSpec

__all__ = ["prepend_resize"]


def prepend_resize(model: onnx.ModelProto, spec: ImageSpec) -> onnx.ModelProto:
    """A copy of the model whose input `image` is uint8 (N, height, width, 3) of any height and width."""
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def constant(name: str, value: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> str:
        constants.append(numpy_helper.from_array(value, f"resize/{name}"))
        return f"resize/{name}"

    def node(operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        output = f"resize/{name}"
        nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    channels_first = node("Transpose", ["image"], "channels_first", perm=[0, 3, 1, 2])
    source = channels_first if spec.resize == "squash" else _centre_box(channels_first, spec, constant, node)
    height, width = spec.size
    batch = node("Shape", [source], "batch", start=0, end=2)
    sizes = node("Concat", [batch, constant("size", np.array([height, width], dtype=np.int64))], "sizes", axis=0)
    resized = node(
        "Resize",
        [source, "", "", sizes],
        "resized",
        mode="linear" if spec.interpolation == "bilinear" else "cubic",
        antialias=1,
        coordinate_transformation_mode="half_pixel",
        cubic_coeff_a=-0.5,
        exclude_outside=1,
    )
    inner = node("Transpose", [resized], "image", perm=[0, 2, 3, 1])

    combined = onnx.ModelProto()
    combined.CopyFrom(model)
    graph = combined.graph
    for existing in graph.node:
        for index, name in enumerate(existing.input):
            if name == "image":
                existing.input[index] = inner
    body = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *body])
    graph.initializer.extend(constants)
    shape = next(value for value in graph.input if value.name == "image").type.tensor_type.shape
    for axis, name in ((1, "height"), (2, "width")):
        shape.dim[axis].ClearField("dim_value")
        shape.dim[axis].dim_param = name
    return combined


def _centre_box(source: str, spec: ImageSpec, constant: Callable[..., str], node: Callable[..., str]) -> str:
    """Cut the centred box of `ImageSpec.box`, in whole pixels, for a height and width known only when it runs."""
    size = constant("crop_size", np.array(spec.size, dtype=np.float64))
    whole = node("Shape", [source], "whole", start=2, end=4)
    whole_float = node("Cast", [whole], "whole_float", to=TensorProto.DOUBLE)
    ratio = node("Div", [whole_float, size], "ratio")
    smallest = node("ReduceMin", [ratio], "smallest", keepdims=1)
    scale = node("Mul", [smallest, constant("crop", np.array([spec.crop], dtype=np.float64))], "scale")
    wanted = node("Add", [node("Mul", [size, scale], "scaled"), constant("half", np.array([0.5]))], "wanted")
    wanted_int = node("Cast", [node("Floor", [wanted], "floor")], "wanted_int", to=TensorProto.INT64)
    bounded = node(
        "Min", [node("Max", [wanted_int, constant("one", np.array([1], dtype=np.int64))], "positive"), whole], "box"
    )
    margin = node("Sub", [whole, bounded], "margin")
    begin = node("Div", [margin, constant("two", np.array([2], dtype=np.int64))], "begin")
    end = node("Add", [begin, bounded], "end")
    axes = constant("axes", np.array([2, 3], dtype=np.int64))
    return node("Slice", [source, begin, end, axes], "cut")
