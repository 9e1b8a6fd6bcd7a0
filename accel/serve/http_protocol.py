"""uvicorn's connection, which also ends those that send or take too slowly, or send too much."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .config import Limits

__all__ = ["LOST", "TOGETHER", "GatheringTransport", "protocol_class"]

# of an ASGI scope
LOST = "saccade.lost"  # what is called when the connection is lost
TOGETHER = "saccade.together"  # a context in which what is written is gathered, and sent at its end

_SAID = b'{"error":"the line and the headers of the request are longer than the server allows"}'
_TOO_LONG = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_SAID), _SAID)
)


class GatheringTransport:
    """A transport that can send several writes with one call of the system.

    Each call wakes the client, which has no use for the first piece alone.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._gathered: list[bytes | memoryview] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes | memoryview) -> None:
        """Send, or gather."""
        if self._gathered is None:
            self._transport.write(data)
        else:
            self._gathered.append(data)

    def close(self) -> None:
        """Close, after what was gathered is sent."""
        self._send_gathered()
        self._transport.close()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Until the block ends, gather."""
        self._gathered = []
        try:
            yield
        finally:
            self._send_gathered()
            self._gathered = None

    def _send_gathered(self) -> None:
        if self._gathered:
            self._transport.writelines(self._gathered)
            self._gathered = []


def protocol_class(limits: Limits) -> type[asyncio.Protocol]:
    """A protocol whose connections are closed if a request's line and headers, once begun, or the first ones of a
    connection, do not arrive in time or are too long, or if the client takes nothing of an answer for too long.

    uvicorn has a time limit for connections that lie idle after an answer, and none for these.
    """

    class BoundedHttp(HttpToolsProtocol):
        _headers_wait: asyncio.TimerHandle | None = None
        _writing_waits: asyncio.TimerHandle | None = None
        _header_bytes = 0
        _in_headers = True  # from a connection's beginning
        _lost: list[Callable[[], None]]

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            self._lost = []
            super().connection_made(GatheringTransport(transport))  # type: ignore[arg-type]
            self._await_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._end_headers()
            self._end_writing()
            super().connection_lost(exc)
            for tell in list(self._lost):
                tell()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if not self._in_headers:
                return
            self._await_headers()
            self._header_bytes += len(data)
            if self._header_bytes > limits.header_bytes:
                self.transport.write(_TOO_LONG)
                self._give_up()

        def on_message_begin(self) -> None:
            self._in_headers, self._header_bytes = True, 0
            super().on_message_begin()
            self.scope[LOST] = self._lost  # type: ignore[literal-required]
            self.scope[TOGETHER] = self.transport.together  # type: ignore[attr-defined, literal-required]

        def on_headers_complete(self) -> None:
            self._end_headers()
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            """Hand on a body that comes in one piece as it is; it would be copied twice on its way."""
            cycle: Any = self.cycle
            if cycle is not None and not cycle.response_complete:
                if not cycle.body:
                    cycle.body, body = body, b""
                elif isinstance(cycle.body, bytes):
                    cycle.body = bytearray(cycle.body)
            super().on_body(body)

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._writing_waits is None:
                self._writing_waits = self.loop.call_later(limits.body_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            self._end_writing()
            super().resume_writing()

        def _await_headers(self) -> None:
            """Those that come with the bytes at hand are not waited for."""
            if self._headers_wait is None:
                self._headers_wait = self.loop.call_later(limits.header_seconds, self._give_up)

        def _end_headers(self) -> None:
            self._in_headers = False
            if self._headers_wait is not None:
                self._headers_wait.cancel()
                self._headers_wait = None

        def _end_writing(self) -> None:
            if self._writing_waits is not None:
                self._writing_waits.cancel()
                self._writing_waits = None

        def _give_up(self) -> None:
            self._end_headers()
            if not self.transport.is_closing():
                self.transport.close()

    return BoundedHttp
