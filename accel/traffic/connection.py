"""One connection to a server, which sends one request after the other, and costs little beside the server."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from .payload import Address, Payload

__all__ = ["Connection", "Reply"]

_MOST_HEADERS = 64 * 1024  # bytes
_ROOM = 256 * 1024  # bytes that are received at once, more for larger answers
_END = b"\r\n\r\n"


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        status: of HTTP; 0 where the connection failed.
        tensors: the bytes behind the JSON; of errors the body.
        reason: why the connection failed.
        document: the JSON before the tensors; empty where the server does not tell where it ends.
    """

    status: int
    tensors: bytes
    reason: str = ""
    document: bytes = b""


class Connection:
    """A connection that is kept open between requests, and opened again when the server has closed it."""

    def __init__(self, address: Address, timeout: float) -> None:
        self._address = address
        self._timeout = timeout
        self._wire: _Wire | None = None

    async def send(self, payload: Payload) -> Reply:
        """Send a request and wait for its answer."""
        try:
            async with asyncio.timeout(self._timeout):
                return await self._exchange(payload)
        except TimeoutError:
            await self.close()
            return Reply(0, b"", f"no answer within {self._timeout:g} s")
        except (OSError, EOFError, ValueError) as error:
            await self.close()
            return Reply(0, b"", f"{type(error).__name__}: {error}")

    async def close(self) -> None:
        """End the connection."""
        if self._wire is not None:
            self._wire.transport.abort()  # what is not sent yet need not be
            await self._wire.closed
            self._wire = None

    async def _exchange(self, payload: Payload) -> Reply:
        if self._wire is None or not self._wire.usable:
            await self.close()
            loop = asyncio.get_running_loop()
            _, self._wire = await loop.create_connection(_Wire, self._address.host, self._address.port)
        reply = await self._wire.exchange(payload)
        if self._wire.last:
            await self.close()
        return reply


class _Wire(asyncio.BufferedProtocol):
    """What is received, taken apart as it comes: an answer is whole with the bytes that end it, and whoever waits for
    it is woken once.

    Attributes:
        closed: is done when the connection is.
        last: the server said that it answers nothing more.
    """

    transport: asyncio.Transport

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.last = False
        self._loop = loop
        self._buffer = bytearray(_ROOM)
        self._received = 0  # bytes of the buffer
        self._needed = 0  # bytes before which it is of no use to look
        self._head: tuple[int, dict[str, str], int] | None = None  # status, headers, where the body begins
        self._waiting: asyncio.Future[Reply] | None = None

    @property
    def usable(self) -> bool:
        """Whether a request can be sent: the connection is open, and nothing came that nobody asked for."""
        return not (self.last or self.transport.is_closing() or self._received)

    async def exchange(self, payload: Payload) -> Reply:
        """Send a request and wait for its answer.

        Raises:
            EOFError: the connection ended before it.
            OSError: it broke.
            ValueError: what came is no answer.
        """
        self._needed, self._head = 0, None
        self._waiting = self._loop.create_future()
        self.transport.writelines([payload.head, payload.body])  # at once, so that the server is woken once
        try:
            return await self._waiting
        finally:
            self._waiting = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._received == len(self._buffer):
            self._buffer = self._buffer + bytes(max(self._received, self._needed - self._received))
        return memoryview(self._buffer)[self._received :]

    def buffer_updated(self, nbytes: int) -> None:
        self._received += nbytes
        if self._waiting is None or self._waiting.done() or self._received < self._needed:
            return
        try:
            reply = self._taken()
        except (ValueError, IndexError) as error:
            self._waiting.set_exception(ValueError(f"what came is no answer of HTTP: {error}"))
            return
        if reply is not None:
            self._waiting.set_result(reply)

    def eof_received(self) -> None:
        self._end(EOFError("the server closed the connection before its answer"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc or EOFError("the server closed the connection before its answer"))
        if not self.closed.done():
            self.closed.set_result(None)

    def _end(self, error: Exception) -> None:
        self.last = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)

    def _taken(self) -> Reply | None:
        """The answer, out of what was received, once it is whole."""
        if self._head is None:
            end = self._buffer.find(_END, 0, self._received)
            if end < 0:
                if self._received > _MOST_HEADERS:
                    raise ValueError(f"its headers are longer than {_MOST_HEADERS} bytes")
                return None
            self._head = _read_head(bytes(self._buffer[:end]), end + len(_END))
        status, headers, start = self._head
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body, end = _chunked(self._buffer[: self._received], start)
            if body is None:
                return None
        else:
            self._needed = end = start + int(headers.get("content-length", 0))
            if self._received < end:
                return None
            body = memoryview(self._buffer)[start:end]
        length = int(headers.get("inference-header-content-length", 0))
        reply = Reply(status, bytes(body[length:]), document=bytes(body[:length]))
        self.last = headers.get("connection", "").lower() == "close"
        self._received -= end  # what is left is nobody's
        return reply


def _read_head(text: bytes, end: int) -> tuple[int, dict[str, str], int]:
    first, *lines = text.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split(" ", 2)[1]), headers, end


def _chunked(received: bytearray, place: int) -> tuple[memoryview | None, int]:
    """A body in chunks and where it ends; None while it is not whole."""
    parts: list[bytes] = []
    while (line := received.find(b"\r\n", place)) >= 0:
        size = int(received[place:line].split(b";")[0], 16)
        place = line + 2 + size + 2
        if len(received) < place:
            break
        if not size:
            return memoryview(b"".join(parts)), place
        parts.append(bytes(received[line + 2 : line + 2 + size]))
    return None, 0
