"""Tensors of the Open Inference Protocol: as JSON, and as the bytes of its binary extension."""

from __future__ import annotations

import base64
import binascii
import itertools
import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BadRequest

__all__ = [
    "DATATYPES",
    "MOST_ELEMENTS",
    "Tensor",
    "bytes_to_wire",
    "datatype_of",
    "from_json",
    "from_wire",
    "to_json",
    "to_wire",
]

Tensor = NDArray[Any]  # BYTES are an object array of bytes

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_WRITTEN: dict[str, set[type]] = {
    "b": {bool},
    "u": {int},
    "i": {int},
    "f": {int, float},
}  # what JSON may write a datatype as
MOST_ELEMENTS = 4096  # of a tensor of BYTES
_MOST_DIMENSIONS = 8


def datatype_of(tensor: Tensor) -> str:
    """The protocol's name of a tensor's type."""
    return _NAMES[tensor.dtype]


def from_wire(raw: memoryview, datatype: str, shape: Sequence[int], name: str) -> Tensor:
    """A tensor from the bytes of the binary extension; not a copy, but of BYTES.

    Raises:
        BadRequest: the bytes are not as many as the shape says.
    """
    count = math.prod(shape)
    if datatype == "BYTES":
        return _elements(raw, count, name).reshape(shape)
    dtype = DATATYPES[datatype]
    if len(raw) != count * dtype.itemsize:
        raise BadRequest(
            f"input '{name}' has {len(raw)} bytes, and {datatype} {list(shape)} takes {count * dtype.itemsize}"
        )
    if datatype == "BOOL":
        return np.frombuffer(raw, dtype=np.uint8).astype(np.bool_).reshape(shape)
    return np.frombuffer(raw, dtype=dtype.newbyteorder("<")).reshape(shape)


def _elements(raw: memoryview, count: int, name: str) -> Tensor:
    """BYTES: each element after its length, four bytes, little-endian."""
    if count > len(raw) // 4:
        raise BadRequest(f"input '{name}' has {len(raw)} bytes, too few for {count} elements of BYTES")
    _check_count(count, name)
    found = np.empty(count, dtype=np.object_)
    place = 0
    for index in range(count):
        if place + 4 > len(raw):
            raise BadRequest(f"input '{name}' ends before element {index} of {count}")
        (length,) = struct.unpack_from("<I", raw, place)
        place += 4
        if place + length > len(raw):
            raise BadRequest(
                f"input '{name}': element {index} says that it has {length} bytes, and {len(raw) - place} are left"
            )
        found[index] = bytes(raw[place : place + length])
        place += length
    if place != len(raw):
        raise BadRequest(f"input '{name}' has {len(raw) - place} bytes after its {count} elements")
    return found


def from_json(data: Any, datatype: str, shape: Sequence[int], name: str) -> Tensor:
    """A tensor from a JSON list, flat or nested; BYTES are base64 there, since JSON holds text.

    Raises:
        BadRequest: the values are not of the type, out of its range, or not as many as the shape says.
    """
    if not isinstance(data, list):
        raise BadRequest(f"the data of input '{name}' is a list, not {type(data).__name__}")
    flat = _flattened(data, name)
    if len(flat) != math.prod(shape):
        raise BadRequest(f"input '{name}' has {len(flat)} values, and the shape {list(shape)} takes {math.prod(shape)}")
    if datatype != "BYTES":
        return _numbers(flat, DATATYPES[datatype], datatype, name).reshape(shape)
    _check_count(len(flat), name)
    values = np.empty(len(flat), dtype=np.object_)
    values[:] = [_from_base64(text, name) for text in flat]
    return values.reshape(shape)


def _flattened(data: list[Any], name: str) -> list[Any]:
    """The innermost items of nested lists of equal lengths, without a step of Python's for each."""
    for _ in range(_MOST_DIMENSIONS):
        if list not in set(map(type, data)):
            return data
        if set(map(type, data)) != {list} or len(set(map(len, data))) > 1:
            raise BadRequest(f"the data of input '{name}' is not a regular list: lists in it differ in length")
        data = list(itertools.chain.from_iterable(data))
    raise BadRequest(f"the data of input '{name}' is nested more than {_MOST_DIMENSIONS} deep")


def _numbers(flat: list[Any], dtype: np.dtype[Any], datatype: str, name: str) -> Tensor:
    """Numbers of one type; their types are looked at first, since numpy makes of numbers beside a long text as many
    long texts.
    """
    found = set(map(type, flat))
    if not found <= _WRITTEN[dtype.kind]:
        raise BadRequest(f"the data of input '{name}' is not all {datatype}")
    if dtype.kind in "ui":
        bounds = np.iinfo(dtype)
        if flat and not (bounds.min <= min(flat) and max(flat) <= bounds.max):
            raise BadRequest(f"the data of input '{name}' is not all {datatype}: {bounds.min} to {bounds.max}")
        return np.array(flat, dtype=dtype)
    try:
        with np.errstate(over="ignore"):
            values = np.array(flat, dtype=dtype)
        finite = dtype.kind != "f" or bool(np.isfinite(values).all())
    except OverflowError:  # an integer that no float holds
        finite = False
    if not finite:
        raise BadRequest(f"the data of input '{name}' is not all {datatype}: a number is too large")
    return values


def _check_count(count: int, name: str) -> None:
    if count > MOST_ELEMENTS:
        raise BadRequest(f"input '{name}' has {count} elements of BYTES; no model takes more than {MOST_ELEMENTS}")


def _from_base64(text: Any, name: str) -> bytes:
    if not isinstance(text, str):
        raise BadRequest(f"input '{name}' is BYTES: in JSON a list of strings in base64")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest(
            f"input '{name}' is not base64, as BYTES are in JSON; the binary extension takes them as they are"
        ) from None


def to_wire(tensor: Tensor) -> bytes | memoryview:
    """The bytes of the binary extension."""
    if tensor.dtype == np.object_:
        return bytes_to_wire(tensor.ravel().tolist())
    contiguous = np.ascontiguousarray(tensor)
    if contiguous.dtype.byteorder == ">":
        contiguous = contiguous.astype(contiguous.dtype.newbyteorder("<"))
    return contiguous.reshape(-1).view(np.uint8).data if contiguous.size else b""


def bytes_to_wire(elements: Sequence[bytes]) -> bytes:
    """BYTES as the binary extension has them."""
    return b"".join(part for element in elements for part in (struct.pack("<I", len(element)), element))


def to_json(tensor: Tensor, *, text: bool = False) -> list[Any]:
    """A flat JSON list; BYTES in base64, or as the text that they are."""
    if tensor.dtype == np.object_:
        return [element.decode() if text else base64.b64encode(element).decode() for element in tensor.ravel().tolist()]
    flat: list[Any] = tensor.ravel().tolist()
    return flat
