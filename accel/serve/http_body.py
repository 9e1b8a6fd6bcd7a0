"""Bodies of HTTP requests: received within limits of size and time, unpacked, and taken apart."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

import orjson

from .config import Limits
from .errors import BadRequest, BodyTimeout, ClientGone, Overloaded, TooLarge
from .repeated import RepeatedRequests
from .request import InferenceRequest, request_from_http

__all__ = ["Bodies", "Body", "Receive"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_LARGE = 64 * 1024  # bytes of JSON
_WINDOW_BITS = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}


class Bodies:
    """What all requests and answers together hold in memory, so that many large ones do not fill it.

    Args:
        limits: of requests.

    Attributes:
        held: bytes.
        repeated: requests that were read before.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.held = 0
        self.repeated = RepeatedRequests()

    def hold(self, size: int) -> None:
        """Count so many more bytes, if there is room for them; whoever does subtracts them again.

        Raises:
            Overloaded: there is no room.
        """
        if self.held + size > self.limits.bodies_bytes:
            raise Overloaded("the server holds as many requests as its memory allows; try again later")
        self.held += size

    @contextlib.contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Count so many bytes until the block ends.

        Raises:
            Overloaded: there is no room for them.
        """
        self.hold(size)
        try:
            yield
        finally:
            self.held -= size

    def body(self, headers: dict[bytes, bytes], receive: Receive) -> Body:
        """The body of one request, to be read."""
        return Body(self, headers, receive)


class Body:
    """One request's body, which counts as held from its reading until the block ends."""

    def __init__(self, bodies: Bodies, headers: dict[bytes, bytes], receive: Receive) -> None:
        self._bodies = bodies
        self._headers = headers
        self._receive = receive
        self._held = 0

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bodies.held -= self._held

    async def request(self) -> InferenceRequest:
        """Receive and parse it.

        Raises:
            TooLarge: it is larger than one may be.
            Overloaded: with all others it is larger than they may be together.
            BodyTimeout: it did not arrive in time.
            ClientGone: it will not arrive.
            BadRequest: it cannot be unpacked, or does not follow the protocol.
        """
        limits = self._bodies.limits
        _check_size(_content_length(self._headers), limits)  # a claim; what counts is what comes
        try:
            async with asyncio.timeout(limits.body_seconds):
                body = await self._received()
        except TimeoutError:
            raise BodyTimeout(f"the body did not arrive within {limits.body_seconds:g} s") from None
        if coding := self._headers.get(b"content-encoding", b"").decode("latin-1").lower():
            body = await asyncio.to_thread(_unpacked, body, coding, limits.body_bytes)
            self._hold(len(body))
        length = _json_length(body, self._headers.get(b"inference-header-content-length"), limits.json_bytes)
        if length > _LARGE:  # it would hold up other requests
            return await asyncio.to_thread(_parse, body, length)
        return self._bodies.repeated.read(body, length, _parse)

    async def _received(self) -> bytes:
        parts: list[bytes] = []
        arrived, more = 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone("the client left before its request was whole")
            part: bytes = message.get("body", b"")
            arrived += len(part)
            self._hold(arrived)
            parts.append(part)
            more = message.get("more_body", False)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _hold(self, size: int) -> None:
        """Count so many bytes, if there is room for them."""
        _check_size(size, self._bodies.limits)
        self._bodies.hold(added := max(0, size - self._held))
        self._held += added


def _check_size(size: int, limits: Limits) -> None:
    if size > limits.body_bytes:
        raise TooLarge(
            f"the body has more than {limits.body_bytes} bytes, which is the limit; send fewer images at once, or "
            "encoded ones"
        )


def _content_length(headers: dict[bytes, bytes]) -> int:
    try:
        return max(0, int(headers.get(b"content-length", b"0")))
    except ValueError:
        raise BadRequest("the header Content-Length is not a number") from None


def _unpacked(body: bytes, coding: str, most: int) -> bytes:
    """A compressed body, but no more of it than is allowed."""
    if coding == "identity":
        return body
    if coding not in _WINDOW_BITS:
        raise BadRequest(f"the content encoding '{coding}' is not known here; there are: gzip, deflate, identity")
    unpack = zlib.decompressobj(_WINDOW_BITS[coding])
    try:
        unpacked = unpack.decompress(body, most + 1)
    except zlib.error as error:
        raise BadRequest(f"the body is not {coding}: {error}") from None
    if len(unpacked) > most:
        raise TooLarge(f"the body unpacks to more than {most} bytes, which is the limit")
    if not unpack.eof:
        raise BadRequest(f"the body is not whole: its {coding} data ends early")
    return unpacked


def _json_length(body: bytes, header_length: bytes | None, most: int) -> int:
    """How many bytes of a body are JSON: all of it, or as many as the header says, with binary tensors behind them."""
    length = len(body)
    if header_length is not None:
        text = header_length.decode("latin-1").strip()
        if not text.isdecimal() or len(text) > 12 or int(text) > len(body):
            raise BadRequest(
                f"the header Inference-Header-Content-Length is '{text[:20]}', and the body has {len(body)} bytes"
            )
        length = int(text)
    if length > most:
        raise TooLarge(
            f"the JSON of the request has more than {most} bytes, which is the limit; send large tensors with the "
            "binary extension"
        )
    return length


def _parse(body: bytes, length: int) -> InferenceRequest:
    view = memoryview(body)
    try:
        document = orjson.loads(view[:length])
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the request is not JSON: {error}") from None
    return request_from_http(document, view[length:])
