"""A client of the Open Inference Protocol v2 over HTTP, which Triton, KServe and `saccade serve` speak.

Tensors travel as they are in memory (the protocol's binary extension); what a server answers as JSON is read as well.
"""

from __future__ import annotations

import http.client
import json
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, UsageError

__all__ = ["OipClient"]

_TYPES = {
    "BOOL": np.bool_, "UINT8": np.uint8, "INT8": np.int8, "INT32": np.int32, "INT64": np.int64,
    "FP16": np.float16, "FP32": np.float32, "FP64": np.float64,
}  # fmt: skip
_NAMES = {np.dtype(kind): name for name, kind in _TYPES.items()}
_LENGTH = "Inference-Header-Content-Length"


class OipClient:
    """One connection to a server; of one thread.

    Args:
        url: of the server, such as ``http://localhost:8000``; a path before ``/v2`` is kept.
        headers: sent with every request, for servers that ask for a key.
        timeout: seconds that an answer may take.

    Raises:
        UsageError: the URL is none, or holds a password.
    """

    def __init__(self, url: str, *, headers: Mapping[str, str] | None = None, timeout: float = 120) -> None:
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        whole = url if "://" in url else f"http://{url}"
        if "@" in re.split("[/?#]", whole.partition("://")[2], maxsplit=1)[0]:
            raise UsageError(
                "the URL of the server holds a user's name or password, which would be printed; leave it out, "
                "and send it with --header 'Authorization: Basic …'"
            )
        try:
            parts = urllib.parse.urlsplit(whole)
            port, host = parts.port, parts.hostname
        except ValueError:
            host = None
        if not host or parts.scheme not in kinds:
            raise UsageError(f"'{url}' is no URL of a server; write for example http://localhost:8000")
        self.url = urllib.parse.urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
        self._path = parts.path.rstrip("/")
        self._headers = dict(headers or {})
        try:
            self._connection = kinds[parts.scheme](host, port, timeout=timeout)
        except http.client.InvalidURL:
            raise UsageError(f"'{url}' is no URL of a server: '{host}' cannot be the name of one") from None

    def close(self) -> None:
        """Close the connection; the next request opens it again."""
        self._connection.close()

    def __enter__(self) -> OipClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def is_ready(self, model: str) -> bool:
        """The server has the model, and it can be asked."""
        return self._ask("GET", f"/v2/models/{urllib.parse.quote(model)}/ready")[0] == 200

    def metadata(self, model: str) -> dict[str, Any]:
        """Inputs and outputs of a model: lists of tensors, each with its name, its datatype and its shape.

        Raises:
            EngineError: the server does not answer, or has no such model.
        """
        found = self._json(f"/v2/models/{urllib.parse.quote(model)}")
        if not all(_are_tensors(found.get(which, [])) for which in ("inputs", "outputs")):
            raise EngineError(
                f"the server at {self.url} does not speak the Open Inference Protocol v2: it does not tell the inputs "
                f"and outputs of '{model}' as names, datatypes and shapes"
            )
        return found

    def models(self) -> list[str]:
        """Names of the models that the server lists; servers need not.

        Raises:
            EngineError: the server does not answer, or does not tell.
        """
        status, _, body = self._ask("POST", "/v2/repository/index", b"{}")
        if status != 200:
            raise EngineError(f"the server at {self.url} does not tell its models: {_reason(status, body)}")
        try:
            return sorted({str(entry["name"]) for entry in json.loads(body)})
        except (ValueError, KeyError, TypeError, RecursionError):
            raise EngineError(f"the server at {self.url} does not speak the Open Inference Protocol v2") from None

    def max_batch_size(self, model: str) -> int | None:
        """Images per request at most, which Triton tells of its models; None where there is no saying."""
        status, _, body = self._ask("GET", f"/v2/models/{urllib.parse.quote(model)}/config")
        if status != 200:
            return None
        try:
            return int(json.loads(body).get("max_batch_size", 0)) or None
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            return None

    def infer(self, model: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Outputs by name, for inputs by name.

        Raises:
            EngineError: the server does not answer, or answers with an error.
        """
        arrays = {name: np.ascontiguousarray(value) for name, value in inputs.items()}
        header = json.dumps(
            {
                "inputs": [
                    {
                        "name": name,
                        "shape": list(value.shape),
                        "datatype": _NAMES[value.dtype],
                        "parameters": {"binary_data_size": value.nbytes},
                    }
                    for name, value in arrays.items()
                ],
                "outputs": [{"name": name, "parameters": {"binary_data": True}} for name in outputs],
            }
        ).encode()
        status, fields, body = self._ask(
            "POST",
            f"/v2/models/{urllib.parse.quote(model)}/infer",
            b"".join([header, *(value.tobytes() for value in arrays.values())]),
            {"Content-Type": "application/octet-stream", _LENGTH: str(len(header))},
        )
        if status != 200:
            raise EngineError(f"the server at {self.url} refused a request to '{model}': {_reason(status, body)}")
        try:
            return _tensors(body, fields.get(_LENGTH))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise EngineError(
                f"the server at {self.url} answered with something else than tensors ({error}); "
                "does it speak the Open Inference Protocol v2?"
            ) from None

    def _json(self, path: str) -> dict[str, Any]:
        status, _, body = self._ask("GET", path)
        if status != 200:
            raise EngineError(f"the server at {self.url} refused {path}: {_reason(status, body)}")
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise EngineError(f"the server at {self.url} does not speak the Open Inference Protocol v2")
        return found

    def _ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        for again in (True, False):
            try:
                self._connection.request(method, self._path + path, body, {**self._headers, **(headers or {})})
                answer = self._connection.getresponse()
                return answer.status, answer.headers, answer.read()
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as error:
                self.close()  # the server may have closed a connection that was idle
                if not again:
                    raise EngineError(f"the server at {self.url} closed the connection: {error}") from None
            except http.client.HTTPException:
                self.close()
                raise EngineError(f"the server at {self.url} does not answer in HTTP; is this its HTTP port?") from None
            except (OSError, UnicodeError) as error:  # the latter of hosts that cannot be
                self.close()
                raise EngineError(
                    f"the server at {self.url} cannot be reached: {getattr(error, 'strerror', None) or error}; "
                    "is it running, and is this its HTTP port?"
                ) from None
        raise AssertionError("the second try returns or raises")


def _are_tensors(found: Any) -> bool:
    """Whether a server told tensors as the protocol has them."""
    return isinstance(found, list) and all(
        isinstance(tensor, dict)
        and isinstance(tensor.get("name"), str)
        and isinstance(tensor.get("datatype"), str)
        and isinstance(tensor.get("shape"), list)
        and all(type(size) is int for size in tensor["shape"])
        for tensor in found
    )


def _tensors(body: bytes, length: str | None) -> dict[str, NDArray[Any]]:
    split = len(body) if length is None else int(length)
    at, found = split, {}
    for output in json.loads(body[:split])["outputs"]:
        kind, shape = np.dtype(_TYPES[output["datatype"]]), tuple(output["shape"])
        size = (output.get("parameters") or {}).get("binary_data_size")
        if size is None:
            value = np.array(output["data"], dtype=kind)
        else:
            value = np.frombuffer(body[at : at + size], dtype=kind)
            at += size
        found[output["name"]] = value.reshape(shape)
    return found


def _reason(status: int, body: bytes) -> str:
    """What a server says of an error, as one line."""
    try:
        said = str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        said = body.decode(errors="replace")
    lines = said.strip().splitlines()
    return f"{lines[0][:300]} (HTTP {status})" if lines else f"HTTP {status}"
