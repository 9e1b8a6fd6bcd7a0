"""What strangers, bad networks and too many clients do to a server."""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
from fuzz_server import Fuzzer
from PIL import Image
from running_server import RunningServer, running

from saccade.accel.engine import Engine
from saccade.accel.engines import open_engine
from saccade.accel.memory import peak_mib, reset_peak
from saccade.accel.serve.config import Limits, ServeConfig

pytestmark = pytest.mark.xdist_group("served")  # one process makes the bundles

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
        for _ in range(3):  # each says that it has 90,000 bytes, and keeps the last one
            connection = socket.create_connection(("127.0.0.1", small.server.port), timeout=20)
            connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n".encode())
            connection.sendall(b"x" * 89_999)
            waiting.append(connection)
        until(lambda: small.service.bodies.held >= 3 * 89_999)
        status, headers, body = small.ask("POST", INFER, b"x" * 60_000)
        assert status == 503
        assert headers["retry-after"] == "1"
        assert b"as its memory allows" in body
    finally:
        for connection in waiting:
            connection.close()
    until(lambda: answers(small))  # what they held is free again
    waiting = []
    for _ in range(10):  # a claim alone holds nothing
        connection = socket.create_connection(("127.0.0.1", small.server.port), timeout=20)
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n".encode())
        waiting.append(connection)
    assert answers(small)
    for connection in waiting:
        connection.close()
    until(lambda: small.service.bodies.held == 0)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_long_text_among_numbers_takes_no_more_memory_than_it_is_long(small: RunningServer) -> None:
    """numpy would make as many such texts."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 32, 32, 3]}
    reset_peak()
    before = peak_mib()
    status, answer = small.infer({"inputs": [tensor | {"data": ["x" * 60_000, *[0] * 3071]}]})
    assert (status, "is not all UINT8" in answer["error"]) == (400, True)
    after = peak_mib()
    if before is not None and after is not None:
        assert after - before < 100


def test_long_headers_and_much_json_are_refused(small: RunningServer, server: RunningServer) -> None:
    head = b"GET /v2 HTTP/1.1\r\nHost: x\r\n"
    assert small.raw(head + b"X-Long: " + b"x" * 2_000_000).startswith(b"HTTP/1.1 431 ")
    assert small.raw(b"GET /" + b"x" * 2_000_000).startswith(b"HTTP/1.1 431 ")
    status, _, said = server.ask("POST", INFER, b" " * (8 * 2**20 + 1))
    assert (status, b"the JSON of the request" in said) == (413, True)
    assert answers(small)


def test_a_list_of_models_is_not_a_way_to_fill_the_memory(small: RunningServer) -> None:
    chunk = b"%x\r\n" % 2000 + b" " * 2000 + b"\r\n"
    head = b"POST /v2/repository/index HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert small.raw(head + chunk).startswith(b"HTTP/1.1 413 ")
    assert json.loads(small.ask("POST", "/v2/repository/index", b'{"ready": true}')[2])[0]["name"] == "tiny"
    assert small.ask("POST", "/v2/repository/index", b"[]")[0] == 400


def test_an_answer_that_nobody_takes_is_dropped(small: RunningServer) -> None:
    pixels = [0] * 3072
    document = json.dumps({"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": pixels}]})
    whole = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(document)}\r\n\r\n{document}".encode()
    with socket.socket() as idle:
        idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        idle.settimeout(20)
        idle.connect(("127.0.0.1", small.server.port))
        with contextlib.suppress(OSError):  # answers of 30 kB, many of them, and none is read
            for _ in range(300):
                idle.sendall(whole)
        until(lambda: small.service.bodies.held == 0)
        with contextlib.suppress(OSError):  # the connection is reset
            while idle.recv(65536):
                pass
    assert answers(small)


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
    many = {"name": "encoded_image", "datatype": "BYTES", "shape": [4], "data": [_base64(white.getvalue())] * 4}
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
    until(lambda: small.ask("GET", "/v2/health/live")[0] == 200)


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


def test_more_than_it_can_carry_is_refused_and_the_rest_is_answered_right(tiny_bundle_kept: Path) -> None:
    engine = open_engine(tiny_bundle_kept, threads=1)
    expected = {seed: engine.run(_pixels(seed)).mask.tobytes() for seed in range(40)}

    def slow(folder: Path) -> Engine:
        return Slow(engine, 0.05)  # type: ignore[return-value]

    config = ServeConfig(port=0, grpc_port=None, workers=2, queue=4)
    with running({"tiny": tiny_bundle_kept}, config, slow) as server:
        found: list[tuple[int, bool]] = []

        def client(seed: int) -> None:
            body, headers = request_of(seed=seed)
            status, said, answer = server.ask("POST", INFER, body, headers)
            right = False
            if status == 200:
                document = json.loads(answer)
                mask = next(tensor for tensor in document["outputs"] if tensor["name"] == "mask")
                right = np.array(mask["data"], dtype=np.float32).tobytes() == expected[seed]
            found.append((status, right or said.get("retry-after") == "1"))

        threads = [threading.Thread(target=client, args=(seed,)) for seed in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(found) == 40
        assert {status for status, _ in found} == {200, 503}
        assert all(right for _, right in found)
        assert sum(status == 200 for status, _ in found) >= 6  # two under way and four in the queue
        assert answers(server)


def _pixels(seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)


def test_a_client_that_leaves_frees_its_place(tiny_bundle_kept: Path) -> None:
    engine = open_engine(tiny_bundle_kept, threads=1)
    config = ServeConfig(port=0, grpc_port=None, workers=1, queue=1)

    def slow(folder: Path) -> Engine:
        return Slow(engine, 1.0)  # type: ignore[return-value]

    with running({"tiny": tiny_bundle_kept}, config, slow) as server:
        body, headers = request_of()
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        whole = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode() + body
        first, second = (socket.create_connection(("127.0.0.1", server.server.port), timeout=20) for _ in range(2))
        first.sendall(whole)
        until(lambda: server.service.dispatcher.busy == 1)
        second.sendall(whole)
        until(lambda: server.service.dispatcher.full)
        assert server.ask("POST", INFER, body, headers)[0] == 503
        second.close()
        until(lambda: not server.service.dispatcher.full)
        first.setblocking(False)
        with pytest.raises(BlockingIOError):
            first.recv(1)  # which is still computed
        first.settimeout(20)
        assert first.recv(12) == b"HTTP/1.1 200"
        first.close()
        text = server.ask("GET", "/metrics")[2].decode()
        assert 'saccade_requests_total{model="tiny",outcome="cancelled",protocol="http"} 1.0' in text
        assert server.service.metrics.totals("tiny").times["success"][0] == 1


def test_a_server_that_must_stop_says_so_to_those_that_still_wait(tiny_bundle_kept: Path) -> None:
    engine = open_engine(tiny_bundle_kept, threads=1)

    def slow(folder: Path) -> Engine:
        return Slow(engine, 2.0)  # type: ignore[return-value]

    config = ServeConfig(port=0, grpc_port=0, workers=1, drain_timeout=0.2)
    answered: list[tuple[int, bytes]] = []
    with running({"tiny": tiny_bundle_kept}, config, slow) as server:
        body, headers = request_of()

        def client() -> None:
            status, _, said = server.ask("POST", INFER, body, headers)
            answered.append((status, said))

        stream = tritonclient.grpc.InferenceServerClient(server.grpc_url)
        stream.start_stream(lambda result, error: None)  # asks nothing, and is not waited for
        threads = [threading.Thread(target=client) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: server.service.dispatcher.busy == 1 and server.service.dispatcher.waiting == 2)
        server.loop.call_soon_threadsafe(server.server.stop)
        for thread in threads:
            thread.join(20)
        stream.close()
    assert [status for status, _ in answered] == [503] * 3
    assert all(b"the server stopped" in json.loads(said)["error"].encode() for _, said in answered)


def test_the_fuzzer_is_the_same_for_the_same_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", itertools.count(1e9).__next__)  # whenever it runs
    first, second = (Fuzzer(("127.0.0.1", 1), ["tiny"], seed=3) for _ in range(2))
    assert [first.request() for _ in range(50)] == [second.request() for _ in range(50)]
