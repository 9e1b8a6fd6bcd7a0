"""One connection of the load generator, against servers that send what the test says, as it says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from saccade.accel.event_loop import run
from saccade.accel.traffic.connection import Connection, Reply
from saccade.accel.traffic.payload import Address, Payload

REQUEST = Payload(b"POST / HTTP/1.1\r\nContent-Length: 300000\r\n\r\n", bytes(300_000), 1)
PLAIN = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\nInference-Header-Content-Length:4\r\n\r\njsonbytes"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\ninference-header-content-length: 4\r\n\r\n"
    b"3;note=x\r\njso\r\n6\r\nnbytes\r\n0\r\n\r\n"
)
LOOPS = pytest.mark.parametrize("in_loop", [asyncio.run, run], ids=["asyncio", "uvloop"])
InLoop = Callable[[Coroutine[Any, Any, list[Reply]]], list[Reply]]


async def answered(pieces: Sequence[bytes], requests: int, timeout: float = 10.0) -> list[Reply]:
    """What a connection makes of requests that are each answered with these pieces; after one of no bytes the server
    closes the connection.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, EOFError):
            while True:
                assert await reader.readexactly(len(REQUEST.head) + len(REQUEST.body)) == REQUEST.head + REQUEST.body
                for piece in pieces:
                    if not piece:
                        return
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.001 if len(pieces) > 1 else 0)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    connection = Connection(Address("127.0.0.1", server.sockets[0].getsockname()[1], "m"), timeout)
    replies = [await connection.send(REQUEST) for _ in range(requests)]
    await connection.close()
    server.close()
    return replies


@LOOPS
@pytest.mark.parametrize("answer", [PLAIN, CHUNKED], ids=["with a length", "in chunks"])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_answer_is_whole_however_it_is_cut(in_loop: InLoop, answer: bytes, size: int) -> None:
    pieces = [answer[start : start + size] for start in range(0, len(answer), size)]

    replies = in_loop(answered(pieces, requests=3))

    assert replies == [Reply(200, b"bytes", document=b"json")] * 3


@LOOPS
@pytest.mark.parametrize("kept", [0, 5, len(PLAIN) - 1])
def test_an_answer_that_ends_early_is_none(in_loop: InLoop, kept: int) -> None:
    replies = in_loop(answered([PLAIN[:kept], b""], requests=2))

    assert [reply.status for reply in replies] == [0, 0]
    assert all("closed the connection" in reply.reason for reply in replies)


@LOOPS
@pytest.mark.parametrize(
    "answer",
    [b"no HTTP\r\n\r\n", b"\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n", b"x" * 70_000],
    ids=["words", "nothing", "no number", "no end"],
)
def test_what_is_no_answer_is_said_to_be_none(in_loop: InLoop, answer: bytes) -> None:
    replies = in_loop(answered([answer], requests=2))

    assert [reply.status for reply in replies] == [0, 0]
    assert all(reply.reason.startswith("ValueError") for reply in replies)


@LOOPS
def test_bytes_that_nobody_asked_for_are_not_taken_for_the_next_answer(in_loop: InLoop) -> None:
    replies = in_loop(answered([PLAIN + b"HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n"], requests=3))

    assert [reply.status for reply in replies] == [200] * 3


@LOOPS
def test_a_server_that_says_nothing_is_not_waited_for(in_loop: InLoop) -> None:
    replies = in_loop(answered([], requests=2, timeout=0.05))

    assert [reply.reason for reply in replies] == ["no answer within 0.05 s"] * 2
