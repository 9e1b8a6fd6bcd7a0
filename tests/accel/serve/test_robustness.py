"""What strangers, bad networks and too many clients do to a server."""

from __future__ import annotations

import gzip
import io
import json
import random
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fuzz_server import Fuzzer
from PIL import Image
from running_server import RunningServer, running

from saccade.accel.engine import Engine
from saccade.accel.engines import open_engine
from saccade.accel.serve.config import Limits, ServeConfig

INFER = "/v2/models/tiny/infer"


def request_of(images: int = 1, seed: int = 0) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request with binary tensors."""
    pixels = np.random.default_rng(seed).integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape)}
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": pixels.nbytes}}]}).encode()
    return head + pixels.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


def answers(server: RunningServer) -> bool:
    body, headers = request_of()
    return server.ask("POST", INFER, body, headers)[0] == 200


@pytest.fixture(scope="module")
def small(tiny_bundle_kept: Path) -> Iterator[RunningServer]:
    """A server with little patience and little room."""
    limits = Limits(
        body_bytes=100_000, bodies_bytes=300_000, pixels=4_000_000, connections=50, header_seconds=0.3, body_seconds=0.4
    )
    with running({"tiny": tiny_bundle_kept}, ServeConfig(port=0, grpc_port=0, limits=limits)) as started:
        yield started


def test_a_request_that_trickles_in_is_given_up(small: RunningServer) -> None:
    with socket.create_connection(("127.0.0.1", small.server.port), timeout=20) as slow:
        slow.sendall(b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\n")
        for _ in range(200):
            time.sleep(0.02)
            try:
                slow.sendall(b"X-Slow: 1\r\n")
            except OSError:
                break
        else:
            pytest.fail("headers may take forever")
    assert small.raw(b"", wait=20) == b""  # nothing at all was sent
    body, _ = request_of()
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    assert small.raw(head + body[:100]).startswith(b"HTTP/1.1 408 ")
    assert answers(small)


def test_half_closed_and_broken_connections_do_no_harm(small: RunningServer) -> None:
    body, headers = request_of()
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    whole = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode() + body
    assert small.raw(whole[:-100], half_close=True) == b""
    for end in (10, 60, len(whole) - 1, len(whole)):
        with socket.create_connection(("127.0.0.1", small.server.port), timeout=20) as broken:
            broken.sendall(whole[:end])
            broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset at its end
    assert answers(small)


def test_bodies_are_bounded_alone_and_together(small: RunningServer) -> None:
    assert small.ask("POST", INFER, b"x" * 100_001)[0] == 413
    claimed = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n".encode()
    refused = small.raw(claimed)
    assert refused.startswith(b"HTTP/1.1 413 ")  # and the connection was closed, or raw() had waited
    chunk = b"%x\r\n" % 60_000 + b"x" * 60_000 + b"\r\n"
    chunked = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    assert small.raw(chunked + 2 * chunk).startswith(b"HTTP/1.1 413 ")
    waiting = []
    try:
        for _ in range(3):  # each claims 90,000 bytes and sends none
            connection = socket.create_connection(("127.0.0.1", small.server.port), timeout=20)
            connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n".encode())
            waiting.append(connection)
        time.sleep(0.1)
        status, headers, body = small.ask("POST", INFER, b"x" * 60_000)
        assert status == 503
        assert headers["retry-after"] == "1"
        assert b"as its memory allows" in body
    finally:
        for connection in waiting:
            connection.close()
    end = time.monotonic() + 20
    while not answers(small):  # what they held is free again
        assert time.monotonic() < end


def test_bombs_do_not_go_off(small: RunningServer) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    assert len(bomb) < 100_000
    status, _, said = small.ask("POST", INFER, bomb, {"Content-Encoding": "gzip"})
    assert (status, b"unpacks to more than" in said) == (413, True)
    status, _, said = small.ask("POST", INFER, gzip.compress(b"{}")[:-4], {"Content-Encoding": "gzip"})
    assert (status, b"ends early" in said) == (400, True)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8_000, 8_000, 1, 0, 0, 0, 0)
    huge = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    status, answer = small.infer(
        {"inputs": [{"name": "encoded_image", "datatype": "BYTES", "shape": [1], "data": [_base64(huge)]}]}
    )
    assert status == 400
    assert "64 megapixels and the limit is 4" in answer["error"]
    white = io.BytesIO()  # each within the limit, together beyond it, and all are kept for the overlays
    Image.new("L", (1500, 1500)).save(white, "PNG")
    many = {"name": "encoded_image", "datatype": "BYTES", "shape": [3], "data": [_base64(white.getvalue())] * 3}
    status, answer = small.infer({"inputs": [many], "outputs": [{"name": "overlay_png"}]})
    assert status in (400, 413)
    assert "megapixels" in answer["error"]
    assert answers(small)


def _base64(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode()


def test_connections_are_bounded(small: RunningServer) -> None:
    crowd = [socket.create_connection(("127.0.0.1", small.server.port), timeout=20) for _ in range(60)]
    try:
        for connection in crowd:
            connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        statuses = {connection.recv(15)[9:12] for connection in crowd}
        assert b"503" in statuses
    finally:
        for connection in crowd:
            connection.close()
    end = time.monotonic() + 20
    while small.ask("GET", "/v2/health/live")[0] != 200:
        assert time.monotonic() < end


def test_nonsense_is_refused_and_never_an_error_of_the_server(server: RunningServer) -> None:
    fuzzer = Fuzzer(("127.0.0.1", server.server.port), ["tiny", "classes", "areas"], seed=7)
    seen = fuzzer.run(600)
    fuzzer.close()
    assert sum(seen.values()) == 600
    assert not {status for status in seen if status >= 500 and status != 503}, fuzzer.last_bad
    assert seen[200] > 20, "the fuzzer must also send what is right"
    assert seen[400] > 200
    assert answers(server)


class Slow:
    """An engine whose every call takes a while."""

    def __init__(self, engine: Engine, seconds: float) -> None:
        self._engine = engine
        self._seconds = seconds

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    def run(self, *arguments: object) -> object:
        time.sleep(self._seconds)
        return self._engine.run(*arguments)  # type: ignore[arg-type]

    def probabilities(self, *arguments: object) -> object:
        return self._engine.probabilities(*arguments)  # type: ignore[arg-type]


def test_more_than_it_can_carry_is_refused_at_once_and_the_rest_is_answered_right(tiny_bundle_kept: Path) -> None:
    engine = open_engine(tiny_bundle_kept, threads=1)
    expected = {seed: engine.run(_pixels(seed)).mask.tobytes() for seed in range(40)}

    def slow(folder: Path) -> Engine:
        return Slow(engine, 0.05)  # type: ignore[return-value]

    config = ServeConfig(port=0, grpc_port=None, workers=2, queue=4)
    with running({"tiny": tiny_bundle_kept}, config, slow) as server:
        found: list[tuple[int, bool, float]] = []

        def client(seed: int) -> None:
            body, headers = request_of(seed=seed)
            began = time.monotonic()
            status, said, answer = server.ask("POST", INFER, body, headers)
            right = False
            if status == 200:
                document = json.loads(answer)
                mask = next(tensor for tensor in document["outputs"] if tensor["name"] == "mask")
                right = np.array(mask["data"], dtype=np.float32).tobytes() == expected[seed]
            found.append((status, right or said.get("retry-after") == "1", time.monotonic() - began))

        threads = [threading.Thread(target=client, args=(seed,)) for seed in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(found) == 40
        assert {status for status, _, _ in found} == {200, 503}
        assert all(right for _, right, _ in found)
        answered = [seconds for status, _, seconds in found if status == 200]
        assert len(answered) >= 6  # two under way and four in the queue
        assert answers(server)


def _pixels(seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)


def test_a_client_that_leaves_frees_its_place(tiny_bundle_kept: Path) -> None:
    engine = open_engine(tiny_bundle_kept, threads=1)
    config = ServeConfig(port=0, grpc_port=None, workers=1, queue=1)
    with running({"tiny": tiny_bundle_kept}, config, lambda folder: Slow(engine, 0.4)) as server:  # type: ignore[arg-type, return-value]
        body, headers = request_of()
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        whole = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode() + body
        first, second = (socket.create_connection(("127.0.0.1", server.server.port), timeout=20) for _ in range(2))
        first.sendall(whole)
        time.sleep(0.1)  # the first is computed, the second waits, and there is no more room
        second.sendall(whole)
        end = time.monotonic() + 20
        while not server.service.dispatcher.full:
            assert time.monotonic() < end
        assert server.ask("POST", INFER, body, headers)[0] == 503
        second.close()
        assert first.recv(12) == b"HTTP/1.1 200"
        first.close()
        began = server.service.metrics.totals("tiny")["success"][0]
        assert server.ask("POST", INFER, body, headers)[0] == 200
        assert server.service.metrics.totals("tiny")["success"][0] - began == 1
        text = server.ask("GET", "/metrics")[2].decode()
        assert 'saccade_requests_total{model="tiny",outcome="cancelled",protocol="http"} 1.0' in text


def test_the_fuzzer_is_the_same_for_the_same_seed() -> None:
    first, second = (Fuzzer(("127.0.0.1", 1), ["tiny"], seed=3) for _ in range(2))
    assert [first.request() for _ in range(50)] == [second.request() for _ in range(50)]
    assert random.Random(3).random() == random.Random(3).random()
