"""Requests whose JSON came before, against reading each of them anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.accel.bundle import open_bundle
from saccade.accel.serve.config import ServeConfig
from saccade.accel.serve.errors import BadRequest
from saccade.accel.serve.http_body import _parse
from saccade.accel.serve.repeated import RepeatedRequests, repeated_work
from saccade.accel.serve.request import InferenceRequest
from saccade.accel.serve.work import Work, make_work
from saccade.contracts import Uint8

SIDE = 4


def body_of(
    image: Uint8,
    target: list[int] | None = None,
    *,
    first: str = "image",
    binary_target: bool = True,
    more: int = 0,
    **document: Any,
) -> tuple[bytes, int]:
    """A request's body and the length of its JSON, with so many bytes more behind it, or fewer."""
    tensors = [("image", "UINT8", image)]
    if target is not None:
        tensors.append(("target", "INT64", np.array(target, dtype=np.int64)))
    if first == "target":
        tensors.reverse()
    inputs, tail = [], b""
    for name, datatype, values in tensors:
        entry: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(values.shape)}
        if name == "image" or binary_target:
            entry["parameters"] = {"binary_data_size": values.nbytes}
            tail += values.tobytes()
        else:
            entry["data"] = values.tolist()
        inputs.append(entry)
    head = json.dumps({"inputs": inputs, **document}).encode()
    tail = tail + bytes(more) if more >= 0 else tail[:more]
    return head + tail, len(head)


def noise(seed: int, count: int = 1, side: int = SIDE) -> Uint8:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def assert_same(found: Any, expected: Any) -> None:
    """All fields but `rest`, arrays by value."""
    for name in (field.name for field in fields(expected) if field.name != "rest"):
        one, other = getattr(found, name), getattr(expected, name)
        if name == "inputs":
            assert sorted(one) == sorted(other)
            for key in other:
                assert one[key].dtype == other[key].dtype
                np.testing.assert_array_equal(one[key], other[key])
        elif isinstance(other, np.ndarray):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        else:
            assert one == other


def outcome(read: Callable[[bytes, int], InferenceRequest], body: bytes, length: int) -> InferenceRequest | str:
    try:
        return read(body, length)
    except BadRequest as error:
        return str(error)


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "seed": st.integers(0, 3),
                "count": st.integers(1, 2),
                "target": st.sampled_from([None, [0], [1], [-1, 2]]),
                "first": st.sampled_from(["image", "target"]),
                "binary_target": st.booleans(),
                "more": st.sampled_from([0, 0, 0, 0, 1, 8, -1, -48]),
                "id": st.sampled_from(["", "a"]),
            }
        ),
        min_size=2,
        max_size=12,
    )
)
def test_what_is_read_is_what_reading_anew_gives(requests: list[dict[str, Any]]) -> None:
    repeated = RepeatedRequests()
    for settings in requests:
        image = noise(settings.pop("seed"), settings.pop("count"))
        body, length = body_of(image, **settings)
        found = outcome(lambda body, length: repeated.read(body, length, _parse), body, length)
        expected = outcome(_parse, body, length)
        if isinstance(expected, str) or isinstance(found, str):
            assert found == expected
        else:
            assert_same(found, expected)


def test_the_second_is_not_parsed_and_has_its_own_pixels_and_classes() -> None:
    repeated, parsed = RepeatedRequests(), []

    def parse(body: bytes, length: int) -> InferenceRequest:
        parsed.append(body)
        return _parse(body, length)

    for seed, target in ((1, [0]), (2, [0]), (3, [1]), (4, [1]), (5, [0])):
        found = repeated.read(*body_of(noise(seed), target), parse)
        np.testing.assert_array_equal(found.inputs["image"], noise(seed))
        assert found.inputs["target"].tolist() == target
    assert len(parsed) == 2


def in_json(image: Uint8) -> tuple[bytes, int]:
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(image.shape), "data": image.ravel().tolist()}
    head = json.dumps({"inputs": [tensor]}).encode()
    return head, len(head)


@pytest.mark.parametrize(
    ("body", "length"),
    [
        body_of(noise(1), parameters={f"triton_{index}": "y" * 100 for index in range(50)}),
        body_of(noise(1), [0], binary_target=False),
        in_json(noise(1)),
    ],
    ids=["long", "class in the JSON", "pixels in the JSON"],
)
def test_what_may_differ_elsewhere_or_is_long_is_read_anew(body: bytes, length: int) -> None:
    repeated, parsed = RepeatedRequests(), []

    def parse(body: bytes, length: int) -> InferenceRequest:
        parsed.append(body)
        return _parse(body, length)

    for _ in range(2):
        assert not repeated.read(body, length, parse).rest
    assert len(parsed) == 2


def test_only_so_many_are_kept_and_none_of_their_images() -> None:
    repeated = RepeatedRequests()
    for index in range(1000):
        repeated.read(*body_of(noise(index, side=64), id=str(index)), _parse)
    assert len(repeated._known) <= 64 >= len(repeated._places)
    assert all("image" not in request.inputs for request in repeated._known.values())
    for request in repeated._known.values():
        for tensor in request.inputs.values():
            assert tensor.base is None  # it would hold the whole body


def test_a_model_checks_the_first_and_gives_each_what_checking_anew_gives(tiny_bundle_kept: Path) -> None:
    manifest = open_bundle(tiny_bundle_kept).manifest
    config, outputs = ServeConfig(), {"probabilities": "FP32", "target_class": "INT64", "mask": "FP32"}
    first, other = (SimpleNamespace(works={}) for _ in range(2))
    repeated, checked = RepeatedRequests(), []

    def answered(model: Any, request: InferenceRequest) -> Work:
        def make() -> Work:
            checked.append(request)
            return make_work(request, manifest, outputs, config)

        return repeated_work(model, request, make)

    for seed in range(3):
        request = repeated.read(*body_of(noise(seed, 2, 32), id="a"), _parse)
        for model in (first, other):
            assert_same(answered(model, request), make_work(request, manifest, outputs, config))
    assert len(checked) == 2  # once for each model
    with pytest.raises(BadRequest):  # and what does not fit fails each time
        answered(first, replace(request, rest=b"another", inputs={"image": noise(1, side=5)}))
    assert b"another" not in first.works
