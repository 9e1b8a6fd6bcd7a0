"""The client of inference servers, against a server that answers as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from saccade.accel.oip_client import OipClient
from saccade.errors import EngineError, UsageError

Answer = tuple[int, dict[str, str], bytes]
LENGTH = "Inference-Header-Content-Length"


class Server:
    """Keeps what it was asked, and answers by a function of it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.answer: Callable[[], Answer | None] = lambda: (200, {}, b"{}")
        keeper = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                keeper.asked.append((self.command, self.path, dict(self.headers), body))
                found = keeper.answer()
                if found is None:
                    self.close_connection = True
                    return
                status, headers, content = found
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = _any

            def log_message(self, *arguments: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.http.shutdown()
    made.http.server_close()
    thread.join()


@pytest.fixture
def client(server: Server) -> Iterator[OipClient]:
    made = OipClient(f"{server.url}/behind/a/path/", headers={"Authorization": "Bearer key"}, timeout=10)
    yield made
    made.close()


def test_tensors_travel_as_they_are_in_memory(server: Server, client: OipClient) -> None:
    image, target = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)[:, ::-1], np.array([-1, 5])
    mask = np.linspace(0, 1, 4, dtype=np.float32).reshape(2, 1, 1, 2)
    header = json.dumps(
        {
            "outputs": [
                {"name": "target_class", "datatype": "INT64", "shape": [2], "data": [3, 5]},
                {"name": "mask", "datatype": "FP32", "shape": [2, 1, 1, 2], "parameters": {"binary_data_size": 16}},
            ]
        }
    ).encode()
    server.answer = lambda: (200, {LENGTH: str(len(header))}, header + mask.tobytes())
    found = client.infer("a model", {"image": image, "target": target}, ["mask", "target_class"])
    np.testing.assert_array_equal(found["mask"], mask)
    assert found["target_class"].tolist() == [3, 5]
    ((method, path, headers, body),) = server.asked
    assert (method, path, headers["Authorization"]) == (
        "POST",
        "/behind/a/path/v2/models/a%20model/infer",
        "Bearer key",
    )
    length = int(headers[LENGTH])
    said = json.loads(body[:length])
    assert [(one["name"], one["datatype"], one["shape"]) for one in said["inputs"]] == [
        ("image", "UINT8", [2, 2, 2, 3]),
        ("target", "INT64", [2]),
    ]
    assert [one["name"] for one in said["outputs"]] == ["mask", "target_class"]
    assert body[length:] == image.tobytes() + target.tobytes()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((400, {}, b'{"error": "wrong shape\\nsecond line"}'), r"refused a request to 'm': wrong shape \(HTTP 400\)$"),
        ((503, {}, b""), r"refused a request to 'm': HTTP 503$"),
        ((502, {}, b"<html>bad gateway</html>"), r"<html>bad gateway</html> \(HTTP 502\)$"),
        ((200, {}, b"{}"), "something else than tensors"),
        ((200, {}, b"hello"), "something else than tensors"),
        (
            (200, {}, b'{"outputs": [{"name": "m", "datatype": "FP32", "shape": [3], "data": [1, 2]}]}'),
            "something else than tensors",
        ),
        ((200, {LENGTH: "999"}, b'{"outputs": [{"name": "m", "datatype": "BF16", "shape": [1]}]}'), "something else"),
        (None, "closed the connection"),
    ],
    ids=["error", "nothing", "a proxy", "no outputs", "no JSON", "too few", "unknown type", "closed"],
)
def test_answers_that_are_none_are_one_sentence(
    server: Server, client: OipClient, answer: Answer | None, message: str
) -> None:
    server.answer = lambda: answer
    with pytest.raises(EngineError, match=message):
        client.infer("m", {"image": np.zeros(3, np.uint8)}, ["m"])


def test_a_connection_that_was_closed_is_opened_again(server: Server, client: OipClient) -> None:
    answers: list[Answer | None] = [(200, {}, b'{"name": "m"}'), None, (200, {}, b'{"name": "n"}')]
    server.answer = lambda: answers.pop(0)
    assert client.metadata("m") == {"name": "m"}
    assert client.metadata("n") == {"name": "n"}
    assert len(server.asked) == 3


def test_what_a_server_does_not_tell_is_left_open(server: Server, client: OipClient) -> None:
    server.answer = lambda: (404, {}, b"not found")
    assert client.max_batch_size("m") is None
    assert not client.is_ready("m")
    with pytest.raises(EngineError, match=r"refused /v2/models/m: not found \(HTTP 404\)"):
        client.metadata("m")
    server.answer = lambda: (200, {}, b'{"max_batch_size": 16}')
    assert client.max_batch_size("m") == 16
    server.answer = lambda: (200, {}, b"[1]")
    with pytest.raises(EngineError, match="does not speak"):
        client.metadata("m")


def test_nobody_there_and_no_url(server: Server) -> None:
    with pytest.raises(EngineError, match=r"cannot be reached: Connection refused; is it running"):
        OipClient("127.0.0.1:9").metadata("m")
    for url in ("ftp://host", "http://", "http://host:port", "http://[1::2"):
        with pytest.raises(UsageError, match="is no URL of a server"):
            OipClient(url)
