"""The server: listens, watches, and when it is told to stop, answers what it has accepted."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import uvicorn

from ...errors import EngineError, UsageError
from ..event_loop import run
from .config import ServeConfig
from .grpc_app import make_grpc_server
from .http_app import make_app
from .http_protocol import protocol_class
from .service import Service

__all__ = ["Server", "address_of", "run_server", "set_aside"]

_LOG = logging.getLogger("saccade.serve")
_BACKLOG = 2048
_LAST_SECONDS = 3.0  # to tell those whose answer was not there in time
_SWITCH_SECONDS = 0.0005  # how long a thread that computes may keep the interpreter from the one that answers


class _Http(uvicorn.Server):
    """uvicorn without its own handling of signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Server:
    """Serves a service's models over HTTP and gRPC.

    Args:
        service: the models.

    Attributes:
        port: of HTTP, once it listens.
        grpc_port: of gRPC, once it listens; None without it.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.config: ServeConfig = service.config
        self.port = self.config.port
        self.grpc_port = self.config.grpc_port
        self._stop = asyncio.Event()

    async def serve(self, on_start: Callable[[Server], None] = lambda server: None) -> bool:
        """Listen until told to stop; whether all that was accepted was answered.

        Args:
            on_start: is called when it listens.

        Raises:
            EngineError: a port is taken or not allowed.
        """
        config, limits = self.config, self.config.limits
        listening = _listen(config.host, config.port)
        self.port = listening.getsockname()[1]
        http = _Http(
            uvicorn.Config(
                make_app(self.service),
                http=protocol_class(limits),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=limits.connections,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=math.ceil(config.drain_timeout + _LAST_SECONDS),
                backlog=_BACKLOG,
            )
        )
        grpc = None
        if config.grpc_port is not None:
            grpc = make_grpc_server(self.service)
            try:
                self.grpc_port = grpc.add_insecure_port(f"{address_of(config.host)}:{config.grpc_port}")
            except RuntimeError:
                raise _taken(config.host, config.grpc_port, "--grpc-port") from None
            await grpc.start()
        serving = asyncio.ensure_future(http.serve(sockets=[listening]))
        watching = asyncio.ensure_future(self._watch())
        with self._signals():
            while not http.started and not serving.done():
                await asyncio.sleep(0.01)
            if http.started:
                on_start(self)
            stop = asyncio.ensure_future(self._stop.wait())
            await asyncio.wait((serving, stop), return_when=asyncio.FIRST_COMPLETED)
            watching.cancel()
            stop.cancel()
            return await self._drain(http, serving, grpc)

    def stop(self) -> None:
        """Begin to stop."""
        self._stop.set()

    async def _drain(self, http: uvicorn.Server, serving: asyncio.Future[None], grpc: object) -> bool:
        """Say "not ready", wait until balancers know, end listening, and answer what was accepted."""
        service, config = self.service, self.config
        _LOG.info("stopping: %d requests wait", service.dispatcher.waiting)
        service.drains.set()
        if config.drain_delay and not serving.done():
            await asyncio.sleep(config.drain_delay)
        http.should_exit = True
        ends = [serving]
        if grpc is not None:
            grace = config.drain_timeout + _LAST_SECONDS
            ends.append(asyncio.ensure_future(grpc.stop(grace)))  # type: ignore[attr-defined]
        answered = await asyncio.to_thread(service.dispatcher.close, config.drain_timeout)
        await asyncio.wait(ends)
        serving.result()
        _LOG.info("stopped" if answered else "stopped; some requests were not answered in time")
        return answered

    async def _watch(self) -> None:
        """Look for changed bundles from time to time."""
        while self.config.watch is not None:
            await asyncio.sleep(self.config.watch)
            await asyncio.to_thread(self.service.models.load_changed)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Stop on SIGTERM and SIGINT, at once on the second; look for changed bundles on SIGHUP."""
        loop, told = asyncio.get_running_loop(), 0

        def on_signal() -> None:
            nonlocal told
            told += 1
            if told > 1:
                _LOG.warning("told twice to stop: stopping at once")
                logging.shutdown()
                os._exit(130)
            self.stop()

        def on_change() -> None:
            loop.run_in_executor(None, self.service.models.load_changed)

        handled = {signal.SIGINT: on_signal, signal.SIGTERM: on_signal}
        if hasattr(signal, "SIGHUP"):
            handled[signal.SIGHUP] = on_change
        try:
            for number, handler in handled.items():
                loop.add_signal_handler(number, handler)
        except (NotImplementedError, ValueError, RuntimeError):  # Windows, or not the main thread
            handled = {}
        try:
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)


def run_server(service: Service, on_start: Callable[[Server], None] = lambda server: None) -> bool:
    """Serve until a signal says to stop; whether all that was accepted was answered.

    Threads of this process change over more often from then on (`sys.setswitchinterval`), and what it holds is set
    aside, see `set_aside`.

    Raises:
        EngineError: a port is taken or not allowed.
    """
    sys.setswitchinterval(min(_SWITCH_SECONDS, sys.getswitchinterval()))
    server = Server(service)
    service.models.after_load = set_aside
    set_aside()
    return run(server.serve(on_start))


def set_aside() -> None:
    """Leave what lives as long as a model does out of collections of garbage, which would go through all of it and hold
    up every request for tens of milliseconds. What has become garbage since the last call is taken away first.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except OSError as error:
        raise UsageError(f"'{host}' is no address to listen on: {error.strerror or error}") from None
    # asyncio switches delays off for sockets that are said to be TCP's, and accepted ones inherit that
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise _taken(host, port, "--port", error) from None
    listening.setblocking(False)
    return listening


def _taken(host: str, port: int, option: str, error: OSError | None = None) -> EngineError:
    reason = f": {error.strerror}" if error and error.strerror else ""
    return EngineError(
        f"cannot listen on {address_of(host)}:{port}{reason}; choose another with {option}, 0 takes a free one"
    )


def address_of(host: str) -> str:
    """A host as it stands before a port."""
    return f"[{host}]" if ":" in host else host
