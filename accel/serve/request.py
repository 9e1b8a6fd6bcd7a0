"""A request for predictions and explanations, as both protocols carry it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import BadRequest
from .tensors import DATATYPES, Tensor, from_json, from_wire

__all__ = ["MOST_ID", "InferenceRequest", "OutputRequest", "checked_shape", "request_from_http"]

Parameter = bool | int | float | str
MOST_ID = 256
_MOST_TENSORS = 32
_MOST_DIMENSIONS = 8


@dataclass(frozen=True, kw_only=True)
class OutputRequest:
    """An output that is asked for.

    Attributes:
        name: of the output.
        binary: as bytes behind the JSON, over HTTP.
        classification: in place of the values, so many of the largest as ``value:index:class name``; 0 for the values.
    """

    name: str
    binary: bool = False
    classification: int = 0


@dataclass(frozen=True, kw_only=True)
class InferenceRequest:
    """What a client sends.

    Attributes:
        id: given back with the answer.
        inputs: tensors by name.
        outputs: what is asked for; empty for the model's usual outputs.
        parameters: settings of the request.
        binary: outputs that do not say are sent as bytes behind the JSON.
        rest: all of it but the pixels of its image, as it was sent; empty where it is not kept.
    """

    id: str = ""
    inputs: Mapping[str, Tensor]
    outputs: tuple[OutputRequest, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    binary: bool = False
    rest: bytes = b""


def request_from_http(document: Any, tail: memoryview) -> InferenceRequest:
    """A request from the JSON of its header, parsed, and the bytes behind it.

    Raises:
        BadRequest: it does not follow the protocol.
    """
    if not isinstance(document, dict):
        raise BadRequest("the request is a JSON object with a list of 'inputs'")
    described = document.get("inputs")
    if not isinstance(described, list) or not described:
        raise BadRequest("the request has no 'inputs'")
    if len(described) > _MOST_TENSORS:
        raise BadRequest(f"the request has {len(described)} inputs; no model takes more than {_MOST_TENSORS}")
    inputs: dict[str, Tensor] = {}
    for tensor in described:
        name, read, tail = _input(tensor, tail)
        if name in inputs:
            raise BadRequest(f"input '{name}' is there twice")
        inputs[name] = read
    if len(tail):
        raise BadRequest(f"there are {len(tail)} bytes behind the last binary input")
    identity = document.get("id", "")
    if not isinstance(identity, str) or len(identity) > MOST_ID:
        raise BadRequest(f"the request's 'id' is a string of at most {MOST_ID} characters")
    parameters = _parameters(document.get("parameters"), "the request")
    return InferenceRequest(
        id=identity,
        inputs=inputs,
        outputs=_outputs(document.get("outputs"), parameters.get("binary_data_output", False)),
        parameters=parameters,
        binary=parameters.get("binary_data_output", False) is True,
    )


def _input(tensor: Any, tail: memoryview) -> tuple[str, Tensor, memoryview]:
    """One input's name and tensor, and the bytes that are left behind it."""
    name = _named(tensor, "input")
    _check_own_memory(tensor, f"input '{name}'")
    datatype, shape = tensor.get("datatype"), checked_shape(tensor.get("shape"), name)
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise BadRequest(f"input '{name}' has no datatype that is known: {', '.join(DATATYPES)}")
    size = _parameters(tensor.get("parameters"), f"input '{name}'").get("binary_data_size")
    if size is None:
        return name, from_json(tensor.get("data"), datatype, shape, name), tail
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise BadRequest(f"'binary_data_size' of input '{name}' is a number of bytes, not {size!r}")
    if "data" in tensor:
        raise BadRequest(f"input '{name}' has data in JSON and in binary; send one of them")
    if size > len(tail):
        raise BadRequest(f"input '{name}' says that it has {size} bytes, and {len(tail)} are left")
    return name, from_wire(tail[:size], datatype, shape, name), tail[size:]


def checked_shape(shape: Any, name: str) -> tuple[int, ...]:
    """A shape as integers.

    Raises:
        BadRequest: it is none.
    """
    regular = isinstance(shape, Sequence) and all(type(size) is int and 0 <= size < 2**40 for size in shape)
    if not regular or len(shape) > _MOST_DIMENSIONS or math.prod(shape) >= 2**62:
        raise BadRequest(
            f"the shape of input '{name}' is a list of at most {_MOST_DIMENSIONS} sizes that a tensor can have"
        )
    return tuple(shape)


def _outputs(described: Any, binary: Any) -> tuple[OutputRequest, ...]:
    if described is None:
        return ()
    if not isinstance(described, list) or len(described) > _MOST_TENSORS:
        raise BadRequest(f"'outputs' is a list of at most {_MOST_TENSORS} outputs")
    found = []
    for output in described:
        name = _named(output, "output")
        _check_own_memory(output, f"output '{name}'")
        parameters = _parameters(output.get("parameters"), f"output '{name}'")
        classes = parameters.get("classification", 0)
        if type(classes) is not int or classes < 0:
            raise BadRequest(f"'classification' of output '{name}' is a number of classes")
        sent = parameters.get("binary_data", binary)
        if not isinstance(sent, bool):
            raise BadRequest(f"'binary_data' of output '{name}' is true or false")
        found.append(OutputRequest(name=name, binary=sent, classification=classes))
    return tuple(found)


def _check_own_memory(tensor: dict[str, Any], where: str) -> None:
    if isinstance(given := tensor.get("parameters"), dict) and "shared_memory_region" in given:
        raise BadRequest(f"{where} is in shared memory, which this server has not; send the tensor itself")


def _named(tensor: Any, kind: str) -> str:
    name = tensor.get("name") if isinstance(tensor, dict) else None
    if not isinstance(name, str):
        raise BadRequest(f"every {kind} is a JSON object with a 'name'")
    return name


def _parameters(found: Any, where: str) -> dict[str, Parameter]:
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(value, (bool, int, float, str)) for value in found.values()):
        raise BadRequest(f"the parameters of {where} are numbers, strings, true or false, by name")
    return found
