"""The part of an ONNX file that some of its outputs need, without the onnx package.

ONNX Runtime computes every node of a graph, whichever outputs are asked for. So that a request for probabilities
alone does not pay for the mask, the file is read at the level of protobuf's wire format, nodes that the wanted
outputs do not need are left out, and everything that stays is copied as it is, byte by byte. Field numbers:
onnx.proto3, ModelProto and GraphProto.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..errors import BundleError

__all__ = ["GraphValue", "graph_values", "output_names", "prune_onnx", "refuse_other_files"]

_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_VALUE_INFO = 1, 5, 11, 12, 13
_NODE_INPUT, _NODE_OUTPUT, _NODE_ATTRIBUTE = 1, 2, 5
_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS = 6, 11
_INITIALIZER_NAME, _VALUE_NAME, _VALUE_TYPE = 8, 1, 2
_TYPE_TENSOR, _TENSOR_ELEMENTS, _TENSOR_SHAPE = 1, 1, 2
_SHAPE_SIZE, _SIZE_VALUE, _SIZE_NAME = 1, 1, 2
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14
# Where tensors may lie: of each message the fields with messages that may hold some
_HOLDS = {
    "model": {7: "graph", 25: "function"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_LENGTH_DELIMITED = 2
_ELEMENTS = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}


@dataclass(frozen=True)
class GraphValue:
    """An input or output of a graph.

    Attributes:
        name: of it.
        dtype: of its elements, as NumPy calls it.
        shape: whole numbers, and names of what is open, such as ``"batch"``.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


def prune_onnx(model: bytes, outputs: Sequence[str]) -> bytes:
    """Keep only what the named outputs need.

    Args:
        model: a serialized ModelProto whose weights are inside.
        outputs: names of graph outputs, at least one.

    Returns:
        A serialized ModelProto with these outputs only, and with the inputs that they need.

    Raises:
        BundleError: an output is not in the graph, or the graph branches (If, Loop), which this does not follow.
    """
    view = memoryview(model)
    parts: list[bytes | memoryview] = []
    found = False
    for number, whole, payload in _fields(view):
        if number == _MODEL_GRAPH:
            found = True
            graph = _prune_graph(payload, outputs)
            parts += [_varint(_MODEL_GRAPH << 3 | _LENGTH_DELIMITED), _varint(len(graph)), graph]
        else:
            parts.append(whole)
    if not found:
        raise BundleError("the ONNX file is damaged: it has no graph")
    return b"".join(parts)


def output_names(model: bytes) -> list[str]:
    """Names of a serialized ModelProto's outputs, in order."""
    graphs = [payload for number, _, payload in _fields(memoryview(model)) if number == _MODEL_GRAPH]
    return [
        _text(payload, _VALUE_NAME)
        for graph in graphs
        for number, _, payload in _fields(graph)
        if number == _GRAPH_OUTPUT
    ]


def graph_values(model: bytes) -> tuple[list[GraphValue], list[GraphValue]]:
    """Inputs and outputs of a serialized ModelProto, in order.

    Raises:
        BundleError: the file is damaged, or a value is no tensor of a known shape and type.
    """
    inputs, outputs = list[GraphValue](), list[GraphValue]()
    for number, _, graph in _fields(memoryview(model)):
        if number == _MODEL_GRAPH:
            for field, _, payload in _fields(graph):
                if field in (_GRAPH_INPUT, _GRAPH_OUTPUT):
                    (inputs if field == _GRAPH_INPUT else outputs).append(_value(payload))
    return inputs, outputs


def refuse_other_files(model: bytes) -> None:
    """Refuse a serialized ModelProto that has weights in other files, which no hash of this one vouches for.

    Raises:
        BundleError: it has, or the file is damaged.
    """
    waiting = [("model", memoryview(model))]
    while waiting:
        kind, message = waiting.pop()
        if kind == "tensor":
            if any(number == _TENSOR_EXTERNAL for number, _, _ in _fields(message)) or _number(
                message, _TENSOR_LOCATION
            ):
                name = _text(message, _INITIALIZER_NAME)
                raise BundleError(
                    f"the graph has the weights '{name}' in another file; export again, which puts all into one"
                )
        else:
            holds = _HOLDS[kind]
            waiting += [(holds[number], payload) for number, _, payload in _fields(message) if number in holds]


def _value(value: memoryview) -> GraphValue:
    name = _text(value, _VALUE_NAME)
    tensor = _inside(_inside(value, _VALUE_TYPE), _TYPE_TENSOR)
    elements = _ELEMENTS.get(_number(tensor, _TENSOR_ELEMENTS) or 0)
    if elements is None or not any(number == _TENSOR_SHAPE for number, _, _ in _fields(tensor)):
        raise BundleError(f"the graph's '{name}' is not a tensor of a known shape and type")
    sizes = [payload for number, _, payload in _fields(_inside(tensor, _TENSOR_SHAPE)) if number == _SHAPE_SIZE]
    shape = tuple(_text(size, _SIZE_NAME) or (_number(size, _SIZE_VALUE) or 0) for size in sizes)
    return GraphValue(name, elements, shape)


def _inside(message: memoryview, field: int) -> memoryview:
    """The message in a field, or an empty one."""
    return next((payload for number, _, payload in _fields(message) if number == field), memoryview(b""))


def _number(message: memoryview, field: int) -> int | None:
    return next((_read_varint(payload, 0)[0] for number, _, payload in _fields(message) if number == field), None)


def _prune_graph(graph: memoryview, outputs: Sequence[str]) -> bytes:
    entries = list(_fields(graph))
    available = {_text(payload, _VALUE_NAME) for number, _, payload in entries if number == _GRAPH_OUTPUT}
    if missing := set(outputs) - available:
        raise BundleError(f"the graph has no output {sorted(missing)}; it has {sorted(available)}")

    nodes = [payload for number, _, payload in entries if number == _GRAPH_NODE]
    producer: dict[str, int] = {}
    inputs: list[list[str]] = []
    for index, node in enumerate(nodes):
        inputs.append(_texts(node, _NODE_INPUT))
        producer.update(dict.fromkeys(_texts(node, _NODE_OUTPUT), index))
        for number, _, attribute in _fields(node):
            if number == _NODE_ATTRIBUTE and any(
                n in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS) for n, _, _ in _fields(attribute)
            ):
                raise BundleError("the graph branches (If, Loop or Scan); its outputs cannot be separated")

    needed: set[str] = set()
    kept: set[int] = set()
    waiting = list(outputs)
    while waiting:
        name = waiting.pop()
        if not name or name in needed:  # "" stands for an optional input or output that is left out
            continue
        needed.add(name)
        if (source := producer.get(name)) is not None and source not in kept:
            kept.add(source)
            waiting += inputs[source]

    parts: list[memoryview] = []
    position = 0
    for number, whole, payload in entries:
        keep = True
        if number == _GRAPH_NODE:
            keep, position = position in kept, position + 1
        elif number == _GRAPH_INITIALIZER:
            keep = _text(payload, _INITIALIZER_NAME) in needed
        elif number == _GRAPH_OUTPUT:
            keep = _text(payload, _VALUE_NAME) in outputs
        elif number in (_GRAPH_INPUT, _GRAPH_VALUE_INFO):
            keep = _text(payload, _VALUE_NAME) in needed
        if keep:
            parts.append(whole)
    return b"".join(parts)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """(field number, tag and value as stored, value) of each field, in order."""
    at = 0
    while at < len(message):
        start = at
        tag, at = _read_varint(message, at)
        kind = tag & 7
        begin = at
        if kind == 0:
            _, at = _read_varint(message, at)
        elif kind == 1:
            at += 8
        elif kind == _LENGTH_DELIMITED:
            length, begin = _read_varint(message, at)
            at = begin + length
        elif kind == 5:
            at += 4
        else:
            raise BundleError("the ONNX file is damaged: unknown protobuf wire type")
        if at > len(message):
            raise BundleError("the ONNX file is damaged: a protobuf field ends after its message")
        yield tag >> 3, message[start:at], message[begin:at]


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message):
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise BundleError("the ONNX file is damaged: a protobuf number ends after its message")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _texts(message: memoryview, field: int) -> list[str]:
    try:
        return [bytes(payload).decode() for number, _, payload in _fields(message) if number == field]
    except UnicodeDecodeError:
        raise BundleError("the ONNX file is damaged: a name is not UTF-8") from None


def _text(message: memoryview, field: int) -> str:
    return next(iter(_texts(message, field)), "")
