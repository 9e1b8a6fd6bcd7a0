"""Requests that are almost right, and requests that are nonsense, against a server of models.

    saccade serve bundle --port 8000 &
    python benchmarks/fuzz_server.py localhost:8000 --models bundle --requests 10000

Exits with 1 if the server answers any of them with an error of its own (5xx other than 503), does not answer, or does
not answer a right request afterwards.
"""

from __future__ import annotations

import argparse
import base64
import copy
import gzip
import http.client
import io
import json
import random
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

from PIL import Image

__all__ = ["Fuzzer"]

Request = tuple[str, str, bytes, dict[str, str]]
_ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 2**64, 1e308, 0.5, "", "x", "1,2,3,4", "\x00", "💥" * 50,
    [], [[]], {}, [None], {"": {}}, [1, 2, [3]], "image", "a" * 5000, ["b" * 50_000, *[0] * 3071], [[]] * 5000,
]  # fmt: skip
_KEYS = [
    "inputs", "outputs", "id", "parameters", "name", "shape", "datatype", "data", "binary_data_size", "binary_data",
    "classification", "explain", "explain_below", "timeout", "size", "box", "parts", "binary_data_output", "mask",
]  # fmt: skip


class Fuzzer:
    """Makes requests from a right one, by small and large mistakes, and sends them.

    Args:
        address: host and port.
        models: names of models that are served.
        seed: the same seed makes the same requests.
        side: pixels a side that the models take.

    Attributes:
        last_bad: the last request that the server failed on, and its answer.
    """

    def __init__(self, address: tuple[str, int], models: list[str], seed: int = 0, side: int = 32) -> None:
        self._address = address
        self._models = models
        self._random = random.Random(seed)
        self._connection: http.client.HTTPConnection | None = None
        self.last_bad: tuple[Request, bytes] | None = None
        pixels = bytes(self._random.randrange(256) for _ in range(side * side * 3))
        self._pixels, self._side = pixels, side
        self._files = []
        for form in ("PNG", "JPEG", "WEBP", "GIF"):
            stream = io.BytesIO()
            Image.frombytes("RGB", (side, side), pixels).save(stream, form)
            self._files.append(stream.getvalue())

    def run(self, count: int, on_progress: Callable[[int], None] = lambda done: None) -> Counter[int]:
        """Send so many requests; how many had which status, 0 for none."""
        seen: Counter[int] = Counter()
        for done in range(count):
            request = self.request()
            status, said = self.send(request)
            seen[status] += 1
            if status == 0 or (status >= 500 and status != 503):
                self.last_bad = request, said
            on_progress(done + 1)
        return seen

    def send(self, request: Request) -> tuple[int, bytes]:
        """Status and body of the answer; 0 and the reason where there is none."""
        method, path, body, headers = request
        for last in (False, True):  # the server may have closed a connection that was open; a new one it may not
            last = last or self._connection is None
            if self._connection is None:
                self._connection = http.client.HTTPConnection(*self._address, timeout=60)
            try:
                self._connection.request(method, path, body, headers)
                response = self._connection.getresponse()
                status, said = response.status, response.read()
                if response.will_close:
                    self.close()
                return status, said
            except (OSError, http.client.HTTPException) as error:
                self.close()
                reason = repr(error).encode()
                if last:
                    break
        return 0, reason

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def request(self) -> Request:
        """The next request."""
        draw = self._random
        model = draw.choice(self._models)
        path = f"/v2/models/{model}/infer"
        document, tail = self._right()
        for _ in range(draw.choice([0, 1, 1, 1, 2, 3])):
            self._spoil(document)
        text = json.dumps(document).encode()
        headers: dict[str, str] = {}
        if tail or draw.random() < 0.1:
            headers["Inference-Header-Content-Length"] = str(len(text))
        body = text + tail
        kind = draw.random()
        if kind < 0.25:
            body = self._corrupted(body)
        elif kind < 0.3:
            length = draw.choice([0, 1, len(body), len(body) + 1, -1, "x", 10**15])
            headers["Inference-Header-Content-Length"] = str(length)
        elif kind < 0.35:
            headers["Content-Encoding"] = coding = draw.choice(["gzip", "deflate", "br", "gzip, gzip"])
            if draw.random() < 0.7:
                body = zlib.compress(body) if coding == "deflate" else gzip.compress(body, mtime=0)
        elif kind < 0.4:
            nonsense = "/" + "".join(chr(draw.randrange(33, 126)) for _ in range(12)).replace("?", "")
            ends = [path.replace("infer", end) for end in ("", "ready", "config", "%00", "%F0")]
            path = draw.choice([path + "/x", nonsense, *ends])
        method = "POST"
        if kind >= 0.4 and draw.random() < 0.05:
            method = draw.choice(["GET", "PUT", "DELETE", "OPTIONS", "HEAD"])
        return method, path, body, headers

    def _right(self) -> tuple[dict[str, Any], bytes]:
        """A request as it should be, and its binary tensors."""
        draw = self._random
        if draw.random() < 0.5:
            tensor: dict[str, Any] = {"name": "image", "datatype": "UINT8", "shape": [1, self._side, self._side, 3]}
            raw = self._pixels
            data: Any = list(raw)
        else:
            file = self._corrupted(draw.choice(self._files)) if draw.random() < 0.5 else draw.choice(self._files)
            tensor = {"name": "encoded_image", "datatype": "BYTES", "shape": [1]}
            raw = len(file).to_bytes(4, "little") + file
            data = [base64.b64encode(file).decode()]
        if draw.random() < 0.7:
            tensor["parameters"] = {"binary_data_size": len(raw)}
        else:
            tensor["data"], raw = data, b""
        document: dict[str, Any] = {"inputs": [tensor]}
        if draw.random() < 0.4:
            name, datatype, values = draw.choice(
                [
                    ("target", "INT64", [draw.randrange(-2, 6) for _ in range(draw.choice([1, 1, 2, 500]))]),
                    ("areas", "FP32", [draw.random() * 1.1 for _ in range(draw.choice([1, 3, 2000]))]),
                    ("rows", "FP32", [draw.uniform(-2, 2) for _ in range(draw.choice([1, 16, 3000]))]),
                    ("columns", "FP32", [draw.uniform(-2, 2) for _ in range(draw.choice([1, 16, 3000]))]),
                ]
            )
            shape = [1, len(values)] if name == "target" else [len(values)]
            document["inputs"].append({"name": name, "datatype": datatype, "shape": shape, "data": values})
        if draw.random() < 0.2:
            key, value = draw.choice([("size", 64), ("size", "9000x9000"), ("box", "0,0,0.5,0.5"), ("parts", 2)])
            document["parameters"] = {key: value}
        if draw.random() < 0.3:
            document["outputs"] = [{"name": draw.choice(["mask", "probabilities", "target_class", "mask_png"])}]
        return document, raw

    def _spoil(self, document: Any) -> None:
        """One mistake somewhere in a document."""
        draw = self._random
        place = document
        for _ in range(draw.randrange(4)):
            inner = list(place.values()) if isinstance(place, dict) else place
            inner = [item for item in inner if isinstance(item, (dict, list)) and len(item) < 100]
            if not inner:
                break
            place = draw.choice(inner)
        if isinstance(place, dict):
            if place and draw.random() < 0.4:
                del place[draw.choice(list(place))]
            else:
                key = draw.choice([*_KEYS, *place]) if draw.random() < 0.9 else "".join(draw.choices("ab\x00é", k=3))
                place[key] = copy.deepcopy(draw.choice(_ODD))
        elif isinstance(place, list):
            if place and draw.random() < 0.5:
                place[draw.randrange(len(place))] = copy.deepcopy(draw.choice(_ODD))
            else:
                place.append(copy.deepcopy(draw.choice([*_ODD, *place])))

    def _corrupted(self, data: bytes) -> bytes:
        """The same bytes with some changed, cut off, doubled or put in."""
        draw, changed = self._random, bytearray(data)
        for _ in range(draw.choice([1, 1, 2, 8])):
            place = draw.randrange(len(changed) + 1)
            kind = draw.random()
            if kind < 0.4 and place < len(changed):
                changed[place] = draw.randrange(256)
            elif kind < 0.6:
                del changed[place:]
            elif kind < 0.8:
                changed[place:place] = bytes(draw.randrange(256) for _ in range(draw.randrange(20)))
            else:
                changed[place:place] = changed[: draw.randrange(200)]
        return bytes(changed)


_READY: Request = ("GET", "/v2/health/ready", b"", {})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="host:port")
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", type=int, default=32, help="pixels a side that the models take")
    arguments = parser.parse_args()
    host, _, port = arguments.address.rpartition(":")
    fuzzer = Fuzzer((host, int(port)), arguments.models, arguments.seed, arguments.side)

    if fuzzer.send(_READY)[0] != 200:
        print(f"there is no server that is ready at {arguments.address}", file=sys.stderr)
        return 1

    def tell(done: int) -> None:
        if done % 1000 == 0:
            print(f"{done} requests", file=sys.stderr)

    seen = fuzzer.run(arguments.requests, tell)
    print(json.dumps({str(status): count for status, count in sorted(seen.items())}))
    live = fuzzer.send(_READY)[0]
    bad = {status: count for status, count in seen.items() if status == 0 or (status >= 500 and status != 503)}
    if bad or live != 200:
        print(
            f"errors of the server: {bad}; ready afterwards: {live}; the last: {fuzzer.last_bad!r:.2000}",
            file=sys.stderr,
        )
    return 1 if bad or live != 200 else 0


if __name__ == "__main__":
    sys.exit(main())
