"""The connection, against a transport that notes each call of the system."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from saccade.accel.serve.config import Limits
from saccade.accel.serve.http_protocol import TOGETHER, GatheringTransport, protocol_class

HEAD = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"


class Noted(asyncio.Transport):
    """A transport that sends nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bytes] = []
        self.closed_after: int | None = None

    def write(self, data: Any) -> None:
        self.calls.append(bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        self.calls.append(b"".join(list_of_data))

    def close(self) -> None:
        self.closed_after = len(self.calls)

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed_after is not None


def conversation(app: Any, *pieces: bytes) -> Noted:
    async def talk() -> Noted:
        config = Config(app, lifespan="off", log_config=None)
        config.load()
        protocol: Any = protocol_class(Limits())(config, ServerState(), {}, asyncio.get_running_loop())
        transport = Noted()
        protocol.connection_made(transport)
        for piece in pieces:
            protocol.data_received(piece)
        while protocol.tasks:
            await asyncio.gather(*protocol.tasks)
        closed = transport.closed_after
        protocol.connection_lost(None)
        transport.closed_after = closed
        return transport

    return asyncio.run(talk())


async def start_and_body(send: Any, body: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.mark.parametrize("kept", [True, False])
def test_an_answer_that_is_gathered_is_one_call(kept: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        with scope[TOGETHER]():
            await start_and_body(send, b"mask")

    transport = conversation(app, HEAD + (b"\r\n" if kept else b"Connection: close\r\n\r\n") + b"{}")
    (call,) = transport.calls
    head, _, body = call.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert body == b"mask"
    assert transport.closed_after == (None if kept else 1)  # closed once it was sent


def test_what_is_not_gathered_is_sent_as_it_comes() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await start_and_body(send, b"mask")

    first, second = conversation(app, HEAD + b"\r\n{}").calls
    assert first.startswith(b"HTTP/1.1 200 ")
    assert second == b"mask"


def test_what_was_gathered_when_something_fails_is_sent_before_what_follows() -> None:
    noted = Noted()
    transport = GatheringTransport(noted)

    def fail() -> None:
        with transport.together():
            transport.write(b"a")
            transport.write(memoryview(b"b"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    transport.write(b"c")
    with transport.together():
        pass
    assert noted.calls == [b"ab", b"c"]


async def received(receive: Any) -> bytes:
    """All of a request's body."""
    parts, more = [], True
    while more:
        message = await receive()
        assert message["type"] == "http.request"
        assert type(message["body"]) is bytes
        parts.append(message["body"])
        more = message["more_body"]
    return b"".join(parts)


@pytest.mark.parametrize("cuts", [(), (9,), (0, 1, 9), (3, 8)])
def test_a_body_arrives_whole_however_it_is_cut(cuts: tuple[int, ...]) -> None:
    came = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        came.append(await received(receive))
        await start_and_body(send, b"")

    ends = (*cuts, 10)
    pieces = [b"0123456789"[start:end] for start, end in zip((0, *cuts), ends, strict=True)]
    request = HEAD.replace(b"Length: 2", b"Length: 10") + b"\r\n"
    conversation(app, request + pieces[0], *pieces[1:])
    conversation(app, request, *pieces)
    assert came == [b"0123456789"] * 2


def test_requests_one_behind_the_other_keep_their_bodies() -> None:
    came = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        came.append(await received(receive))
        await start_and_body(send, b"ok")
        await asyncio.sleep(0)

    conversation(app, HEAD + b"\r\nab" + HEAD + b"\r\n1", b"2" + HEAD + b"\r\nxy")
    assert came == [b"ab", b"12", b"xy"]


def test_a_body_in_one_piece_is_held_once() -> None:
    size = 8 << 20
    peaks = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await received(receive)
        peaks.append(tracemalloc.get_traced_memory()[1])
        await start_and_body(send, b"")

    request = HEAD.replace(b"Length: 2", b"Length: %d" % size) + b"\r\n" + bytes(size)
    tracemalloc.start()
    try:
        conversation(app, request)
    finally:
        tracemalloc.stop()
    assert size < peaks[0] < 1.5 * size  # beside the request itself, which was there before
