"""Tensors of the Open Inference Protocol: as JSON, and as the bytes of its binary extension."""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BadRequest

__all__ = ["DATATYPES", "Tensor", "bytes_to_wire", "datatype_of", "from_json", "from_wire", "to_json", "to_wire"]

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
_KINDS = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}  # of a datatype, what JSON may write it as
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
    found = np.empty(count, dtype=np.object_) if count <= len(raw) // 4 else None
    if found is None:
        raise BadRequest(f"input '{name}' has {len(raw)} bytes, too few for {count} elements of BYTES")
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
    if datatype == "BYTES":
        flat = list(_flattened(data, name))
        values = np.empty(len(flat), dtype=np.object_)
        values[:] = [_from_base64(text, name) for text in flat]
    else:
        values = _numbers(data, DATATYPES[datatype], datatype, name)
    if values.size != math.prod(shape):
        raise BadRequest(
            f"input '{name}' has {values.size} values, and the shape {list(shape)} takes {math.prod(shape)}"
        )
    return values.reshape(shape)


def _numbers(data: list[Any], dtype: np.dtype[Any], datatype: str, name: str) -> Tensor:
    try:
        values = np.asarray(data)
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"the data of input '{name}' is not a regular list of numbers: {error}") from None
    if values.size == 0:
        return np.empty(0, dtype=dtype)
    if dtype.kind == "u" and values.dtype.kind == "f":  # numpy reads integers on both sides of 2⁶³ as floats
        exact = np.asarray(data, dtype=np.object_)
        if all(type(value) is int for value in exact.ravel()):
            values = exact.astype(np.uint64) if 0 <= exact.min() and exact.max() < 2**64 else np.array([-1])
    if values.dtype.kind not in _KINDS[dtype.kind]:
        raise BadRequest(f"the data of input '{name}' is not all {datatype}")
    if dtype.kind in "ui":
        bounds = np.iinfo(dtype)
        if int(values.min()) < bounds.min or int(values.max()) > bounds.max:
            raise BadRequest(f"the data of input '{name}' is not all {datatype}: {bounds.min} to {bounds.max}")
    with np.errstate(over="ignore"):
        cast = values.astype(dtype)
    if dtype.kind == "f" and not np.isfinite(cast).all():
        raise BadRequest(f"the data of input '{name}' is not all {datatype}: a number is too large")
    return cast.ravel()


def _flattened(data: list[Any], name: str, depth: int = 0) -> Any:
    for item in data:
        if isinstance(item, list):
            if depth >= _MOST_DIMENSIONS:
                raise BadRequest(f"the data of input '{name}' is nested more than {_MOST_DIMENSIONS} deep")
            yield from _flattened(item, name, depth + 1)
        else:
            yield item


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
