"""Tensors on the wire against the official client's own coding of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tritonclient.utils import deserialize_bytes_tensor, np_to_triton_dtype, serialize_byte_tensor

from saccade.accel.serve.errors import BadRequest
from saccade.accel.serve.tensors import DATATYPES, datatype_of, from_json, from_wire, to_json, to_wire

NUMBERS = sorted(set(DATATYPES) - {"BYTES"})


def values(datatype: str, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    dtype = DATATYPES[datatype]
    if dtype.kind == "b":
        return rng.integers(0, 2, (2, 3)).astype(dtype)
    if dtype.kind == "f":
        return rng.normal(0, 100, (2, 3)).astype(dtype)
    bounds = np.iinfo(dtype)
    return rng.integers(bounds.min, bounds.max, (2, 3), dtype=dtype, endpoint=True)


@pytest.mark.parametrize("datatype", NUMBERS)
def test_numbers_survive_both_ways(datatype: str, rng: np.random.Generator) -> None:
    tensor = values(datatype, rng)
    assert datatype_of(tensor) == datatype == np_to_triton_dtype(tensor.dtype)
    assert bytes(to_wire(tensor)) == tensor.tobytes()
    assert bytes(to_wire(tensor.T)) == tensor.T.tobytes()
    np.testing.assert_array_equal(from_wire(memoryview(tensor.tobytes()), datatype, (2, 3), "x"), tensor)
    np.testing.assert_array_equal(from_json(to_json(tensor), datatype, (2, 3), "x"), tensor)
    np.testing.assert_array_equal(from_json(tensor.tolist(), datatype, (2, 3), "x"), tensor)


def test_bytes_are_coded_as_the_official_client_codes_them() -> None:
    tensor = np.array([b"", b"\x00\xff", b"a" * 300, "ü".encode()], dtype=np.object_)
    official = serialize_byte_tensor(tensor)
    assert official is not None
    assert to_wire(tensor) == official.item()
    np.testing.assert_array_equal(deserialize_bytes_tensor(bytes(to_wire(tensor))), tensor)
    np.testing.assert_array_equal(from_wire(memoryview(official.item()), "BYTES", (2, 2), "x"), tensor.reshape(2, 2))
    np.testing.assert_array_equal(from_json(to_json(tensor), "BYTES", (4,), "x"), tensor)


@pytest.mark.parametrize(
    ("raw", "datatype", "shape", "said"),
    [
        (b"123", "FP32", (1,), "has 3 bytes, and FP32"),
        (b"1234", "FP32", (2,), "takes 8"),
        (b"", "BYTES", (1,), "too few for 1 elements"),
        (b"\x05\x00\x00\x00abc", "BYTES", (1,), "says that it has 5 bytes, and 3 are left"),
        (b"\xff\xff\xff\xffabc", "BYTES", (1,), "says that it has 4294967295 bytes"),
        (b"\x01\x00\x00\x00abc", "BYTES", (1,), "has 2 bytes after its 1 elements"),
        (b"\x01\x00\x00\x00abcd", "BYTES", (2,), "ends before element 1 of 2"),
        (b"\x04\x00\x00\x00abcd", "BYTES", (2,), "ends before element 1 of 2"),
        (b"\x00" * 8, "BYTES", (10**9,), "too few for 1000000000 elements"),
    ],
)
def test_bytes_that_do_not_fit_the_shape_are_refused(
    raw: bytes, datatype: str, shape: tuple[int, ...], said: str
) -> None:
    with pytest.raises(BadRequest, match=said):
        from_wire(memoryview(raw), datatype, shape, "x")


@pytest.mark.parametrize(
    ("data", "datatype"),
    [
        ([2**64], "UINT64"),
        ([-(2**63) - 1], "INT64"),
        ([1e39], "FP32"),
        ([70000.0], "FP16"),
        ([1], "BOOL"),
        ([None], "FP32"),
        ([{}], "INT8"),
        ([[[[[[[[[[[0]]]]]]]]]]], "BYTES"),
        ([128], "INT8"),
    ],
)
def test_json_beyond_the_type_is_refused(data: list[Any], datatype: str) -> None:
    with pytest.raises(BadRequest, match="'x'"):
        from_json(data, datatype, (1,), "x")
