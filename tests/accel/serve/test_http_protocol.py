"""The connection, against a transport that notes each call of the system."""

from __future__ import annotations

import asyncio
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

    def is_closing(self) -> bool:
        return self.closed_after is not None


def conversation(app: Any, request: bytes) -> Noted:
    async def talk() -> Noted:
        config = Config(app, lifespan="off", log_config=None)
        config.load()
        protocol: Any = protocol_class(Limits())(config, ServerState(), {}, asyncio.get_running_loop())
        transport = Noted()
        protocol.connection_made(transport)
        protocol.data_received(request)
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
