"""One connection to a server, which sends one request after the other, and costs little beside the server."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from .payload import Address, Payload

__all__ = ["Connection", "Reply"]

_MOST_HEADERS = 64 * 1024  # bytes


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
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

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
        if self._streams is not None:
            self._streams[1].close()
            with contextlib.suppress(OSError):
                await self._streams[1].wait_closed()
            self._streams = None

    async def _exchange(self, payload: Payload) -> Reply:
        if self._streams is None or self._streams[1].is_closing() or self._streams[0].at_eof():
            await self.close()
            self._streams = await asyncio.open_connection(
                self._address.host, self._address.port, limit=max(_MOST_HEADERS, 2**20)
            )
        reader, writer = self._streams
        writer.write(payload.head)
        writer.write(payload.body)
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        status = int(first.split(" ", 2)[1])
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = await _chunked(reader)
        else:
            body = await reader.readexactly(int(headers.get("content-length", 0)))
        if headers.get("connection", "").lower() == "close":
            await self.close()
        length = int(headers.get("inference-header-content-length", 0))
        return Reply(status, body[length:], document=body[:length])


async def _chunked(reader: asyncio.StreamReader) -> bytes:
    """A body in chunks."""
    parts = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return b"".join(parts)
