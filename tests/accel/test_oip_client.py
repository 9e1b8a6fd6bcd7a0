"""The client of inference servers, against a server that answers as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saccade.accel.bundle import open_bundle
from saccade.accel.oip_client import OipClient
from saccade.accel.remote_engine import RemoteEngine
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
        ((200, {}, b'{"outputs": [{"name": "m", "datatype": "FP32", "shape": [1], "parameters": []}]}'), "else than"),
        ((200, {}, b'{"outputs": [{"name": "m", "datatype": "FP32", "shape": [1], "parameters": 3}]}'), "else than"),
        ((200, {}, b'{"outputs": [{"name": "m", "datatype": "UINT8", "shape": [1], "data": [300]}]}'), "else than"),
        (None, "closed the connection"),
    ],
    ids=[
        "error",
        "nothing",
        "a proxy",
        "no outputs",
        "no JSON",
        "too few",
        "unknown type",
        "list",
        "number",
        "too large",
        "closed",
    ],
)
def test_answers_that_are_none_are_one_sentence(
    server: Server, client: OipClient, answer: Answer | None, message: str
) -> None:
    server.answer = lambda: answer
    with pytest.raises(EngineError, match=message):
        client.infer("m", {"image": np.zeros(3, np.uint8)}, ["m"])


def test_parameters_may_be_null(server: Server, client: OipClient) -> None:
    server.answer = lambda: (
        200, {}, b'{"outputs": [{"name": "m", "datatype": "FP32", "shape": [1], "parameters": null, "data": [2.5]}]}'
    )  # fmt: skip
    assert client.infer("m", {"image": np.zeros(3, np.uint8)}, ["m"])["m"].tolist() == [2.5]


@pytest.mark.parametrize("which", ["inputs", "outputs"])
@pytest.mark.parametrize(
    "told",
    [
        None, {}, "image", [None], [{}], [{"name": "image", "datatype": "UINT8"}],
        [{"name": "image", "datatype": "UINT8", "shape": None}], [{"name": "image", "shape": [1]}],
        [{"name": "image", "datatype": "UINT8", "shape": ["1"]}], [{"name": 1, "datatype": "UINT8", "shape": [1]}],
    ],
    ids=str,
)  # fmt: skip
def test_what_a_server_tells_of_a_model_is_one_sentence_where_it_is_odd(
    server: Server, client: OipClient, which: str, told: Any
) -> None:
    server.answer = lambda: (200, {}, json.dumps({"name": "m", which: told}).encode())
    with pytest.raises(EngineError, match="does not speak the Open Inference Protocol v2: it does not tell the inputs"):
        client.metadata("m")


def tensors(**shapes: tuple[str, list[int]]) -> list[dict[str, Any]]:
    return [{"name": name, "datatype": kind, "shape": shape} for name, (kind, shape) in shapes.items()]


INPUTS = {"image": ("UINT8", [-1, 32, 32, 3]), "target": ("INT64", [-1, 1])}
OUTPUTS = {"probabilities": ("FP32", [-1, 5]), "mask": ("FP32", [-1, 1, 32, 32]), "target_class": ("INT64", [-1, 1])}


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ({**INPUTS, "image": ("UINT8", [])}, OUTPUTS),
        ({**INPUTS, "image": ("UINT8", [-1, 3])}, OUTPUTS),
        (INPUTS, {**OUTPUTS, "probabilities": ("FP32", [])}),
    ],
    ids=["no shape", "flat", "a number"],
)
def test_a_model_of_other_shapes_is_no_explainer(
    server: Server, client: OipClient, tiny_bundle_kept: Path, inputs: Any, outputs: Any
) -> None:
    document = {"inputs": tensors(**inputs), "outputs": tensors(**outputs)}
    server.answer = lambda: (200, {}, json.dumps(document).encode())
    with pytest.raises(UsageError, match="does not take pixels and give masks"):
        RemoteEngine(open_bundle(tiny_bundle_kept), client)


def test_odd_answers_of_a_server_are_one_sentence(server: Server, client: OipClient, tiny_bundle_kept: Path) -> None:
    explainer = {"inputs": tensors(**INPUTS), "outputs": tensors(**OUTPUTS)}
    classifier = {"inputs": tensors(image=("UINT8", [-1, 32, 32, 3]), clip=("FP32", [-1])), "outputs": []}
    answers: dict[str, Any] = {"": explainer, "/config": {}, "_classifier": classifier, "_classifier/ready": {}}

    def answer() -> Answer:
        path = server.asked[-1][1].rpartition("/tiny")[2]
        return (200, {}, json.dumps(answers[path]).encode()) if path in answers else (404, {}, b"")

    server.answer = answer
    images = np.zeros((2, 32, 32, 3), np.uint8)
    engine = RemoteEngine(open_bundle(tiny_bundle_kept), client, model="tiny")
    with pytest.raises(EngineError, match=r"'tiny_classifier' at .* wants 'clip', of which the bundle"):
        engine.probabilities(images)
    good = {"probabilities": [2, 5], "mask": [2, 1, 32, 32], "target_class": [2, 1]}
    for shapes, message in (
        ({"mask": []}, "answered without 'mask' for 2 images"),
        ({"mask": [2, 1, 16, 32]}, r"answered with 'mask' of the shape \[2, 1, 16, 32\]"),
        ({"probabilities": [2, 4]}, r"answered with 'probabilities' of the shape \[2, 4\]"),
        ({"target_class": [2, 3]}, r"answered with 'target_class' of the shape \[2, 3\]"),
    ):
        document = tensors(**{name: ("FP32", shape) for name, shape in {**good, **shapes}.items()})
        answers["/infer"] = {"outputs": [one | {"data": np.zeros(one["shape"]).ravel().tolist()} for one in document]}
        with pytest.raises(EngineError, match=message):
            engine.run(images)


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
    with pytest.raises(EngineError, match="cannot be reached"):
        OipClient(f"http://{'ü' * 70}").metadata("m")


@pytest.mark.parametrize("url", ["http://user:secret@host", "user:secret@host:8000/a", "http://user:secret@[1::2"])
def test_a_password_in_the_url_is_neither_taken_nor_printed(url: str) -> None:
    with pytest.raises(UsageError, match="--header 'Authorization: Basic") as refused:
        OipClient(url)
    assert "secret" not in str(refused.value)
