"""Requests for any model of any server of the Open Inference Protocol, made from what the model says of its inputs."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from ...errors import UsageError
from ..oip_client import OipClient

__all__ = ["Address", "Payload", "payloads"]

_NUMBERS = {"UINT8": np.uint8, "INT32": np.int32, "INT64": np.int64, "FP32": np.float32, "FP16": np.float16}
_OPTIONAL = ("encoded_image", "areas", "rows", "columns")  # inputs that a server of Saccade does not insist on


@dataclass(frozen=True)
class Address:
    """Where a model is served.

    Attributes:
        host: of the server.
        port: of HTTP.
        model: its name.
        key: API key, if the server wants one.
    """

    host: str
    port: int
    model: str
    key: str | None = None

    @classmethod
    def parse(cls, url: str, model: str, key: str | None = None) -> Address:
        """From ``http://host:port`` or ``host:port``.

        Raises:
            UsageError: it is no such address.
        """
        try:
            parts = urlsplit(url if "//" in url else f"//{url}")
            port = parts.port or 80
        except ValueError:
            raise UsageError(f"'{url}' is not the address of an HTTP server; write http://localhost:8000") from None
        if key is not None and not (key.isascii() and key.isprintable()):
            raise UsageError("an API key is of ASCII characters")
        if parts.scheme not in ("", "http") or not parts.hostname or not port or parts.path not in ("", "/"):
            raise UsageError(f"'{url}' is not the address of an HTTP server; write http://localhost:8000")
        return cls(parts.hostname, port, model, key)

    @property
    def headers(self) -> dict[str, str]:
        """Of every request."""
        return {} if self.key is None else {"Authorization": f"Bearer {self.key}"}

    @property
    def client(self) -> OipClient:
        """For everything else than load."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return OipClient(f"http://{host}:{self.port}", headers=self.headers)


@dataclass(frozen=True)
class Payload:
    """A request as it goes over the wire.

    Attributes:
        head: request line and headers.
        body: JSON and binary tensors.
        images: in the request.
    """

    head: bytes
    body: bytes
    images: int


def payloads(
    address: Address,
    metadata: dict[str, Any],
    *,
    files: Sequence[bytes] = (),
    batch: int = 1,
    side: int = 256,
    outputs: Sequence[str] = (),
    count: int = 4,
    seed: int = 0,
) -> list[Payload]:
    """Several different requests, each with binary tensors.

    Args:
        address: of the model.
        metadata: of the model.
        files: encoded images, for models that take those; without any, images are noise of the model's shape.
        batch: images in one request.
        side: pixels of images where the model takes any size.
        outputs: that are asked for; all that the model gives unless told otherwise.
        count: of requests.
        seed: of the noise.

    Raises:
        UsageError: the model has no input for what is given, or no output of a name.
    """
    rng = np.random.default_rng(seed)
    described = {tensor["name"]: tensor for tensor in metadata["inputs"]}
    takes_files = [name for name, tensor in described.items() if tensor["datatype"] == "BYTES"]
    if files and not takes_files:
        raise UsageError(f"the model '{address.model}' takes no encoded images; leave --image out")
    optional = set(_OPTIONAL) - (set(takes_files[:1]) if files else set())
    if files and "image" not in takes_files:
        optional.add("image")
    names = [name for name in described if name not in optional or len(described) == 1]
    known = [tensor["name"] for tensor in metadata["outputs"]]
    if unknown := [name for name in outputs if name not in known]:
        raise UsageError(f"the model '{address.model}' has no output '{unknown[0]}'; it gives {', '.join(known)}")
    made = []
    for index in range(count):
        inputs, tails = [], []
        for name in names:
            tensor = described[name]
            if tensor["datatype"] == "BYTES":
                if not files:
                    raise UsageError(f"the model '{address.model}' takes encoded images; give some with --image FILE")
                given = [files[(index * batch + place) % len(files)] for place in range(batch)]
                tail = b"".join(struct.pack("<I", len(file)) + file for file in given)
                shape = [batch, *tensor["shape"][1:]]
            else:
                free = side if len(tensor["shape"]) == 4 else 1
                shape = [batch, *(free if length < 1 else length for length in tensor["shape"][1:])]
                tail = _values(tensor["datatype"], shape, rng)
            inputs.append(
                {
                    "name": name,
                    "datatype": tensor["datatype"],
                    "shape": shape,
                    "parameters": {"binary_data_size": len(tail)},
                }
            )
            tails.append(tail)
        document: dict[str, Any] = {"inputs": inputs}
        if outputs:
            document["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
        else:
            document["parameters"] = {"binary_data_output": True}
        text = json.dumps(document).encode()
        body = b"".join([text, *tails])
        headers = address.headers | {
            "Host": f"{address.host}:{address.port}",
            "Content-Length": str(len(body)),
            "Inference-Header-Content-Length": str(len(text)),
            "Content-Type": "application/octet-stream",
        }
        head = [
            f"POST /v2/models/{quote(address.model)}/infer HTTP/1.1",
            *(f"{key}: {headers[key]}" for key in headers),
        ]
        made.append(Payload("\r\n".join([*head, "", ""]).encode("latin-1"), body, batch))
    return made


def _values(datatype: str, shape: Sequence[int], rng: np.random.Generator) -> bytes:
    """Noise for pixels; −1, the predicted class, for the rest."""
    if datatype not in _NUMBERS:
        raise UsageError(f"inputs of {datatype} cannot be made up; this model needs a client of its own")
    if datatype == "UINT8":
        return rng.integers(0, 256, math.prod(shape), dtype=np.uint8).tobytes()
    return np.full(shape, -1).astype(_NUMBERS[datatype]).tobytes()
