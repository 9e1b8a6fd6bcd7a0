"""A server of bundles in a thread of the test's process, on free ports."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from saccade.accel.engine import Engine
from saccade.accel.engines import open_engine
from saccade.accel.serve.config import ServeConfig
from saccade.accel.serve.server import Server
from saccade.accel.serve.service import Service

SECONDS = 30


class RunningServer:
    """Where it listens, and a few ways to ask it."""

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self.service = server.service
        self.loop = loop
        self.url = f"127.0.0.1:{server.port}"
        self.grpc_url = f"127.0.0.1:{server.grpc_port}"

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers in lower case, body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=SECONDS)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        finally:
            connection.close()

    def infer(self, document: Any, model: str = "tiny", headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Status and JSON of the answer to a request in JSON."""
        status, _, body = self.ask("POST", f"/v2/models/{model}/infer", json.dumps(document).encode(), headers)
        return status, json.loads(body)

    def raw(self, sent: bytes, *, half_close: bool = False, wait: float = SECONDS) -> bytes:
        """What comes back over a plain connection until the server ends it.

        Raises:
            TimeoutError: it does not, in so many seconds.
        """
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=wait) as connection:
            connection.sendall(sent)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            received = b""
            with contextlib.suppress(ConnectionError):
                while part := connection.recv(65536):
                    received += part
            return received


@contextlib.contextmanager
def running(
    bundles: dict[str, Path],
    config: ServeConfig | None = None,
    open_bundle_engine: Callable[[Path], Engine] | None = None,
) -> Iterator[RunningServer]:
    """Serve bundles until the block ends."""
    settings = config or ServeConfig(port=0, grpc_port=0)
    service = Service(bundles, open_bundle_engine or (lambda folder: open_engine(folder, threads=1)), settings)
    started = threading.Event()
    found: list[RunningServer] = []
    ended: list[object] = []

    async def serve() -> None:
        server = Server(service)

        def on_start(listening: Server) -> None:
            found.append(RunningServer(listening, asyncio.get_running_loop()))
            started.set()

        await server.serve(on_start)

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            ended.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(SECONDS), "the server did not start"
    assert found, f"the server did not start: {ended}"
    try:
        yield found[0]
    finally:
        found[0].loop.call_soon_threadsafe(found[0].server.stop)
        thread.join(SECONDS)
        assert not thread.is_alive(), "the server did not stop"
        assert not ended, f"the server failed: {ended}"
