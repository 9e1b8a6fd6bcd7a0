"""Requests that differ from an earlier one in the pixels of their image alone, as nearly all of a client's do.

What was read and checked of the first holds for the others, and need not be done again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .model import ServedModel
from .request import InferenceRequest
from .work import Work

__all__ = ["RepeatedRequests", "repeated_work"]

_MOST, _LONGEST = 64, 4096  # that are known at once, and bytes of each but its pixels


class RepeatedRequests:
    """Requests by what of them is not the image's pixels."""

    def __init__(self) -> None:
        self._places: dict[bytes, tuple[int, int, tuple[int, ...]]] = {}  # by the JSON: where the pixels are, and shape
        self._known: dict[bytes, InferenceRequest] = {}

    def read(self, body: bytes, length: int, parse: Callable[[bytes, int], InferenceRequest]) -> InferenceRequest:
        """A request from a body of JSON of so many bytes and binary tensors behind it.

        Args:
            body: of the request.
            length: of its JSON.
            parse: reads and checks it all.

        Raises:
            BadRequest: as `parse`.
        """
        head = body[:length]
        if (place := self._places.get(head)) is not None:
            start, stop, shape = place
            rest = body[:start] + body[stop:]
            if len(body) == len(rest) + stop - start and (known := self._known.get(rest)) is not None:
                image = np.frombuffer(body, np.uint8, stop - start, start).reshape(shape)
                return replace(known, inputs={**known.inputs, "image": image})
        request = parse(body, length)
        if (place := _place_of_image(request, length, len(body))) is None:
            return request
        start, stop, _ = place
        rest = body[:start] + body[stop:]
        if len(rest) > _LONGEST:
            return request
        if len(self._known) >= _MOST:
            self._known.clear()
            self._places.clear()
        others = {name: tensor.copy() for name, tensor in request.inputs.items() if name != "image"}
        self._places[head] = place
        self._known[rest] = replace(request, inputs=others, rest=rest)
        return replace(request, rest=rest)


def _place_of_image(request: InferenceRequest, begin: int, end: int) -> tuple[int, int, tuple[int, ...]] | None:
    """Where its pixels begin and end, and their shape; None where its tensors are not all there as bytes."""
    found = None
    for name, tensor in request.inputs.items():
        if tensor.dtype.kind not in "iuf":
            return None
        if name == "image" and tensor.dtype == np.uint8 and tensor.nbytes:
            found = begin, begin + tensor.nbytes, tensor.shape
        begin += tensor.nbytes
    return found if begin == end else None


def repeated_work(model: ServedModel, request: InferenceRequest, make: Callable[[], Work]) -> Work:
    """What a request means to a model.

    Args:
        model: that is asked.
        request: a checked one.
        make: checks the request against the model.

    Raises:
        RequestError: as `make`.
    """
    if not request.rest:
        return make()
    if (known := model.works.get(request.rest)) is not None:
        return replace(known, images=request.inputs["image"])
    work = make()
    if len(model.works) >= _MOST:
        model.works.clear()
    model.works[request.rest] = replace(work, images=None)
    return work
