"""The server's command in a process of its own: starting, stopping, exchanging bundles, keys."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

Run = Callable[..., tuple[int, str, str]]
SECONDS = 60
PIXELS = {"name": "image", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [7] * 3072}


class Process:
    """``saccade serve`` and its log so far."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        program = "from saccade.cli.main import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "serve", *map(str, arguments), "--port", "0", "--grpc-port", "0"],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def until(self, pattern: str) -> re.Match[str]:
        end = time.monotonic() + SECONDS
        while (found := re.search(pattern, self.log)) is None:
            assert time.monotonic() < end, self.log
            assert self.process.poll() is None, self.log
            time.sleep(0.02)
        return found

    def ask(self, method: str, path: str, document: object = None, **headers: str) -> tuple[int, bytes]:
        port = int(self.until(r"http://[^:]+:(\d+)")[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
        try:
            body = b"" if document is None else json.dumps(document).encode()
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def end(self) -> int:
        code = self.process.wait(SECONDS)
        self._reader.join(SECONDS)
        return code


@contextlib.contextmanager
def started(*arguments: object, ready: str = "Ready: ", **environment: str) -> Iterator[Process]:
    process = Process(*arguments, **environment)
    try:
        process.until(ready)
        yield process
    finally:
        process.process.kill()
        process.end()
        assert process.process.stderr is not None
        process.process.stderr.close()


def test_what_was_accepted_is_answered_when_it_is_told_to_stop(tiny_bundle: Path) -> None:
    with started(tiny_bundle, "--workers", 1, "--drain-delay", 0.3, "--log-requests") as server:
        images = {"name": "image", "datatype": "UINT8", "shape": [64, 32, 32, 3], "data": [7] * 64 * 3072}
        assert server.ask("POST", "/v2/models/bundle/infer", {"inputs": [images]})[0] == 200
        statuses: list[int] = []

        def client() -> None:
            statuses.append(server.ask("POST", "/v2/models/bundle/infer", {"inputs": [images]})[0])

        threads = [threading.Thread(target=client) for _ in range(8)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        server.process.send_signal(signal.SIGTERM)
        server.until("stopping")
        assert server.ask("GET", "/v2/health/ready")[0] == 503  # balancers see it, and the door is still open
        for thread in threads:
            thread.join(SECONDS)
        assert statuses == [200] * 8
        assert server.end() == 0
        assert "stopped" in server.log
        assert len(re.findall(r"request  model=bundle  protocol=http  images=64", server.log)) == 9


def test_a_changed_bundle_is_loaded_while_requests_go_on(
    tiny_bundle: Path, tiny_own_bundle_kept: Path, tmp_path: Path
) -> None:
    with started(tiny_bundle, "--watch", 0.1, "--model-control") as server:
        first = server.ask("POST", "/v2/models/bundle/infer", {"inputs": [PIXELS]})
        failures: list[int] = []
        done = threading.Event()

        def client() -> None:
            while not done.is_set():
                status, _ = server.ask("POST", "/v2/models/bundle/infer", {"inputs": [PIXELS]})
                if status != 200:
                    failures.append(status)

        thread = threading.Thread(target=client)
        thread.start()
        replacement = shutil.copytree(tiny_own_bundle_kept, tmp_path / "other")
        tiny_bundle.rename(tmp_path / "old")
        replacement.rename(tiny_bundle)
        server.until(r"(?s)is ready.*is ready")
        end = time.monotonic() + SECONDS

        def mask(answer: tuple[int, bytes]) -> list[float]:
            return next(out["data"] for out in json.loads(answer[1])["outputs"] if out["name"] == "mask")  # type: ignore[no-any-return]

        while mask(server.ask("POST", "/v2/models/bundle/infer", {"inputs": [PIXELS]})) == mask(first):
            assert time.monotonic() < end
        (tiny_bundle / "explainer.onnx").write_bytes(b"damaged")
        code, said = server.ask("POST", "/v2/repository/models/bundle/load")
        assert (code, b"damaged" in said) == (500, True)
        assert server.ask("POST", "/v2/models/bundle/infer", {"inputs": [PIXELS]})[0] == 200
        assert not failures  # neither the exchange nor the damage was noticed by anyone
        assert server.ask("POST", "/v2/repository/models/bundle/unload")[0] == 200
        done.set()
        thread.join(SECONDS)
        assert set(failures) <= {503}  # after it was unloaded
        code, said = server.ask("POST", "/v2/models/bundle/infer", {"inputs": [PIXELS]})
        assert (code, b"it was unloaded" in said) == (503, True)
        assert server.ask("GET", "/v2/health/ready")[0] == 503


def test_who_does_not_show_the_key_is_not_served(tiny_bundle: Path) -> None:
    with started(tiny_bundle, SACCADE_API_KEY="open sesame") as server:
        assert server.ask("GET", "/v2/health/live")[0] == 200
        for path in ("/v2", "/metrics", "/v2/models/bundle"):
            assert server.ask("GET", path)[0] == 401
            assert server.ask("GET", path, Authorization="Bearer open sesam")[0] == 401
            assert server.ask("GET", path, Authorization="Bearer open sesame")[0] == 200
            assert server.ask("GET", path, **{"X-API-Key": "open sesame"})[0] == 200
        assert server.ask("POST", "/v2/models/bundle/infer", {"inputs": [PIXELS]})[0] == 401
        client = tritonclient.grpc.InferenceServerClient(server.until(r"gRPC: (\S+)")[1])
        assert client.is_server_live()
        with pytest.raises(InferenceServerException, match="wants an API key"):
            client.get_server_metadata()
        shown = {"authorization": "Bearer open sesame"}
        assert client.get_server_metadata(headers=shown).name == "saccade"
        tensor = tritonclient.grpc.InferInput("image", [1, 32, 32, 3], "UINT8")
        tensor.set_data_from_numpy(np.full((1, 32, 32, 3), 7, np.uint8))
        with pytest.raises(InferenceServerException) as refused:
            client.infer("bundle", [tensor])
        assert refused.value.status() == str(grpc.StatusCode.UNAUTHENTICATED)
        assert client.infer("bundle", [tensor], headers=shown).as_numpy("mask").shape == (1, 1, 32, 32)
        client.close()
        assert "open sesame" not in server.log


def test_several_bundles_have_names_and_a_log_for_programs(tiny_bundle: Path, tiny_own_bundle_kept: Path) -> None:
    arguments = (f"cats={tiny_bundle}", f"dogs={tiny_own_bundle_kept}", "--json-logs", "--no-grpc")
    with started(*arguments, ready='"listening"') as server:
        assert server.ask("POST", "/v2/models/birds/infer", {"inputs": [PIXELS]})[0] == 404
        _, said = server.ask("POST", "/v2/repository/index")
        assert [(model["name"], model["state"]) for model in json.loads(said)] == [("cats", "READY"), ("dogs", "READY")]
        server.process.send_signal(signal.SIGINT)
        assert server.end() == 0
        lines = [json.loads(line) for line in server.lines]
        assert {"time", "level", "message"} <= set.intersection(*(set(line) for line in lines))
        assert [line["message"] for line in lines][-1] == "stopped"


def test_what_cannot_be_served_is_said(saccade_command: Run, tiny_bundle: Path, tmp_path: Path) -> None:
    code, _, err = saccade_command("serve", tmp_path)
    assert (code, "is not a bundle" in err) == (1, True)
    code, _, err = saccade_command("serve", tiny_bundle, tmp_path / ".." / tmp_path.name / "bundle")
    assert (code, "two bundles are called 'bundle'" in err) == (1, True)
    code, _, err = saccade_command("serve", f"a b={tiny_bundle}")
    assert (code, "cannot be a model's name" in err) == (1, True)
    with started(tiny_bundle) as server:
        port = server.until(r"http://\S+:(\d+)")[1]
        code, _, err = saccade_command("serve", tiny_bundle, "--port", port)
        assert (code, f"cannot listen on 127.0.0.1:{port}" in err) == (1, True)
    code, _, err = saccade_command("serve", tiny_bundle, "--host", "no.such.host.invalid")
    assert (code, "is no address to listen on" in err) == (1, True)
