"""uvicorn's connection, which also ends those that take too long to send a request."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["protocol_class"]


def protocol_class(seconds: float) -> type[asyncio.Protocol]:
    """A protocol whose connections are closed if a request's line and headers, once begun, or the first ones of a
    connection, do not arrive in so many seconds.

    uvicorn has a time limit for connections that lie idle after an answer, and none for these.
    """

    class HeaderTimeout(HttpToolsProtocol):
        _waits: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._begin()

        def connection_lost(self, exc: Exception | None) -> None:
            self._end()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            self._begin()
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._end()
            super().on_headers_complete()

        def _begin(self) -> None:
            if self._waits is None:
                self._waits = self.loop.call_later(seconds, self._give_up)

        def _end(self) -> None:
            if self._waits is not None:
                self._waits.cancel()
                self._waits = None

        def _give_up(self) -> None:
            transport: Any = self.transport
            if not transport.is_closing():
                transport.close()

    return HeaderTimeout
