"""Answers over HTTP: JSON, and binary tensors behind it."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from .dispatcher import Finished
from .model import VERSION, ServedModel
from .service import classification
from .tensors import datatype_of, to_json, to_wire
from .work import Work

__all__ = ["json_bytes", "response_parts"]

_MANY = 100_000  # values


async def response_parts(
    model: ServedModel, work: Work, finished: Finished
) -> tuple[list[bytes | memoryview], int | None]:
    """The parts of an answer's body, and the length of its JSON where binary tensors follow. Much JSON is written in a
    thread, so that other requests are not held up.
    """
    values = sum(finished.outputs[output.name].size for output in work.outputs if not output.binary)
    if values > _MANY:
        return await asyncio.to_thread(_parts, model, work, finished)
    return _parts(model, work, finished)


def _parts(model: ServedModel, work: Work, finished: Finished) -> tuple[list[bytes | memoryview], int | None]:
    described, tails = [], []
    for output in work.outputs:
        tensor, text = finished.outputs[output.name], False
        if output.classification:
            tensor, text = classification(tensor, output.classification, model.manifest.class_names), True
        entry: dict[str, Any] = {
            "name": output.name,
            "datatype": datatype_of(tensor),
            "shape": list(tensor.shape),
        }
        if output.binary:
            tails.append(to_wire(tensor))
            entry["parameters"] = {"binary_data_size": len(tails[-1])}
        elif tensor.dtype.kind in "fiub" and not text:
            entry["data"] = tensor.reshape(-1)
        else:
            entry["data"] = to_json(tensor, text=text)
        described.append(entry)
    document: dict[str, Any] = {"model_name": model.name, "model_version": VERSION}
    if work.id:
        document["id"] = work.id
    document["parameters"] = {
        "queue_ms": round(finished.queue_seconds * 1e3, 3),
        "compute_ms": round(finished.compute_seconds * 1e3, 3),
    }
    document["outputs"] = described
    head = json_bytes(document)
    return [head, *tails], len(head) if tails else None


def json_bytes(document: Any) -> bytes:
    """JSON; arrays of numbers as lists of the shortest decimals that read back as the same float32."""
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
