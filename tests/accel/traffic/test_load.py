"""The load generator against servers whose behaviour is known, and its requests against the official client's."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
import tritonclient.http

from saccade.accel.traffic.connection import Connection
from saccade.accel.traffic.load import LoadRow, closed_loop, expected_answers, open_loop
from saccade.accel.traffic.payload import Address, payloads
from saccade.errors import EngineError, UsageError

METADATA = {
    "name": "m",
    "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 4, 4, 3]}],
    "outputs": [{"name": "mask", "datatype": "FP32", "shape": [-1, 1, 4, 4]}],
}
Answer = Callable[[int, bytes], Awaitable[tuple[int, bytes, bool]]]


class Known:
    """A server that answers as it is told: the number of the request and its body to status, tensors, and whether the
    connection is kept.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.count = 0
        self.connections = 0
        self.most = 0
        self.under_way = 0

    async def __aenter__(self) -> Known:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.address = Address("127.0.0.1", self.server.sockets[0].getsockname()[1], "m")
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.server.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                body = await reader.readexactly(int(head.split("content-length: ")[1].split("\r\n")[0]))
                number, self.count = self.count, self.count + 1
                self.under_way += 1
                self.most = max(self.most, self.under_way)
                status, tensors, keep = await self.answer(number, body)
                self.under_way -= 1
                text = b'{"parameters": {"n": %d}}' % number if status == 200 else b""
                sent = (
                    f"HTTP/1.1 {status} X\r\nContent-Length: {len(text) + len(tensors)}\r\n"
                    f"Inference-Header-Content-Length: {len(text)}\r\n"
                )
                writer.write(sent.encode() + (b"\r\n" if keep else b"Connection: close\r\n\r\n") + text + tensors)
                await writer.drain()
                if not keep:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def measured(answer: Answer, run: Callable[[Known], Awaitable[LoadRow]]) -> tuple[LoadRow, Known]:
    async def both() -> tuple[LoadRow, Known]:
        async with Known(answer) as known:
            return await run(known), known

    return asyncio.run(both())


async def after_ten_ms(number: int, body: bytes) -> tuple[int, bytes, bool]:
    await asyncio.sleep(0.01)
    return 200, body[-48:], True


async def silent(number: int, body: bytes) -> tuple[int, bytes, bool]:
    await asyncio.sleep(30)
    return 200, b"", True


def test_clients_wait_for_their_answers() -> None:
    async def run(known: Known) -> LoadRow:
        requests = payloads(known.address, METADATA)
        expected = [reply.tensors for reply in await expected_answers(known.address, requests, 10)]
        return await closed_loop(known.address, requests, expected, clients=3, seconds=0.8, timeout=10)

    row, known = measured(after_ten_ms, run)
    assert known.most == 3
    assert known.connections == 4  # one of them learned what is expected
    assert row.p50_ms is not None
    assert row.p50_ms >= 10
    assert (row.refused, row.failed, row.wrong, row.unsent) == (0, 0, 0, 0)
    assert 0 < row.answered <= known.count
    assert row.images_per_second == pytest.approx(row.answered / row.seconds, rel=0.01)
    assert row.images_per_second <= 3 / 0.01


def test_throughput_is_what_the_server_does_however_many_wait_for_it() -> None:
    free, done = asyncio.Semaphore(2), list[float]()

    async def two_at_a_time(number: int, body: bytes) -> tuple[int, bytes, bool]:
        async with free:
            await asyncio.sleep(0.05)
        done.append(time.perf_counter())
        return 200, b"", True

    async def run(known: Known) -> LoadRow:
        requests = payloads(known.address, METADATA)
        return await closed_loop(known.address, requests, [], clients=16, seconds=2.0, timeout=10)

    row, _ = measured(two_at_a_time, run)
    times = np.array(done)
    starts = times[times <= times[-1] - row.seconds]
    in_a_window = [np.count_nonzero((times >= start) & (times < start + row.seconds)) for start in starts]
    # by the server's own clock, since a busy machine makes it slower; the 16 that wait are a quarter of all
    assert 0.95 * min(in_a_window) <= row.answered <= 1.05 * max(in_a_window)
    assert row.images_per_second <= 1.1 * 2 / 0.05
    assert row.images_per_second == pytest.approx(row.answered / row.seconds, rel=0.01)
    assert row.p50_ms == pytest.approx(1e3 * float(np.median(times[16:] - times[:-16])), rel=0.1)
    assert row.p50_ms is not None
    assert row.p50_ms >= 0.9 * 16 / 2 * 50


def test_what_goes_wrong_after_the_end_is_told_too() -> None:
    async def run(known: Known) -> LoadRow:
        requests = payloads(known.address, METADATA)
        return await closed_loop(known.address, requests, [], clients=2, seconds=0.5, timeout=0.8)

    row, _ = measured(silent, run)
    assert row.reasons == {"no answer within 0.8 s": 2}
    assert row.answered == 0
    assert row.p50_ms is None


def test_requests_arrive_whoever_waits_and_are_timed_from_when_they_were_due() -> None:
    ends: list[float] = []

    async def stalls(number: int, body: bytes) -> tuple[int, bytes, bool]:
        if 20 <= number < 60:  # a server that answers nothing for a while, then everything
            now = asyncio.get_running_loop().time()
            ends.append(now + 0.4)
            await asyncio.sleep(max(0.0, ends[0] - now))
        return 200, b"", True

    async def run(known: Known) -> LoadRow:
        requests = payloads(known.address, METADATA)
        return await open_loop(known.address, requests, [], rate=100, seconds=1.0, timeout=10)

    row, known = measured(stalls, run)
    assert 60 <= known.count <= 145  # a Poisson process of 100
    assert row.answered + row.unsent == pytest.approx(0.8 * known.count, rel=0.4)
    assert row.p99_ms is not None
    assert row.p99_ms > 200  # those that came early in the stall have waited through it
    assert known.most >= 10  # and nobody waited to send them


def test_requests_under_way_are_bounded() -> None:
    async def never(number: int, body: bytes) -> tuple[int, bytes, bool]:
        await asyncio.sleep(0.5)
        return 200, b"", True

    async def run(known: Known) -> LoadRow:
        requests = payloads(known.address, METADATA)
        return await open_loop(known.address, requests, [], rate=300, seconds=0.6, timeout=10, most=5)

    row, known = measured(never, run)
    assert known.most == 5
    assert row.unsent > 50


def test_refusals_failures_and_wrong_answers_are_told_apart() -> None:
    async def mixed(number: int, body: bytes) -> tuple[int, bytes, bool]:
        await asyncio.sleep(0.001)
        kinds = [(200, b"right", True), (503, b"busy", True), (200, b"wrong", True), (500, b"broken", False)]
        return kinds[number % 4]

    async def run(known: Known) -> LoadRow:
        requests = payloads(known.address, METADATA, count=1)
        return await closed_loop(known.address, requests, [b"right"], clients=1, seconds=1.0, timeout=10)

    row, known = measured(mixed, run)
    assert row.answered > 0
    assert abs(row.answered - 2 * row.refused) <= 2
    assert abs(row.failed - row.refused) <= 1
    assert abs(row.wrong - row.refused) <= 1
    assert row.reasons == {"500: broken": row.failed}
    assert known.connections >= row.failed  # each of those ended its connection


def test_each_refusal_is_told_with_its_times() -> None:
    told: list[tuple[float, float]] = []

    async def busy(number: int, body: bytes) -> tuple[int, bytes, bool]:
        await asyncio.sleep(0.05 if number % 2 else 0.0)
        return (503 if number % 2 else 200), b"", True

    async def run(known: Known) -> LoadRow:
        requests = payloads(known.address, METADATA)
        return await open_loop(
            known.address, requests, [], rate=100, seconds=0.5, timeout=10, on_refusal=lambda *times: told.append(times)
        )

    began = time.perf_counter()
    row, _ = measured(busy, run)
    assert len(told) == row.refused > 0
    assert all(began < due < now - 0.05 < time.perf_counter() for due, now in told)
    assert row.refusal_max_ms == pytest.approx(max(now - due for due, now in told) * 1e3)


def test_a_server_that_is_silent_or_gone_is_a_failure_in_words() -> None:
    async def asked() -> None:
        async with Known(silent) as known:
            (request,) = payloads(known.address, METADATA, count=1)
            connection = Connection(known.address, 0.1)
            reply = await connection.send(request)
            assert (reply.status, reply.reason) == (0, "no answer within 0.1 s")
            await connection.close()
        connection = Connection(Address("127.0.0.1", 1, "m"), 5)
        assert "ConnectionRefusedError" in (await connection.send(request)).reason

    asyncio.run(asked())


@pytest.mark.parametrize("batch", [1, 3])
def test_a_request_is_the_one_that_the_official_client_makes(batch: int) -> None:
    (made,) = payloads(Address("h", 80, "m"), METADATA, batch=batch, count=1, seed=5)
    pixels = np.random.default_rng(5).integers(0, 256, (batch, 4, 4, 3), dtype=np.uint8)
    tensor = tritonclient.http.InferInput("image", [batch, 4, 4, 3], "UINT8")
    tensor.set_data_from_numpy(pixels)
    body, length = tritonclient.http.InferenceServerClient.generate_request_body([tensor])
    head = made.head.decode()
    own = int(head.split("Inference-Header-Content-Length: ")[1].split("\r\n")[0])
    assert json.loads(made.body[:own]) == json.loads(body[:length])
    assert made.body[own:] == body[length:]
    assert made.images == batch


def test_addresses_and_inputs_that_cannot_be_are_said() -> None:
    assert Address.parse("http://localhost:8000/", "m") == Address.parse("localhost:8000", "m")
    assert Address.parse("[::1]:9", "m").host == "::1"
    for bad in ("https://localhost:1", "localhost:x", "http://", "localhost:1/v2"):
        with pytest.raises(UsageError, match="is not the address of an HTTP server"):
            Address.parse(bad, "m")
    with pytest.raises(EngineError, match="cannot be reached"):
        Address("127.0.0.1", 1, "m").client.models()
    address = Address("h", 80, "m")
    with pytest.raises(UsageError, match="takes no encoded images"):
        payloads(address, METADATA, files=[b"x"])
    with pytest.raises(UsageError, match="has no output 'heat'; it gives mask"):
        payloads(address, METADATA, outputs=["heat"])
    files = METADATA | {"inputs": [{"name": "jpeg", "datatype": "BYTES", "shape": [-1, 1]}]}
    with pytest.raises(UsageError, match="give some with --image"):
        payloads(address, files)
    (made,) = payloads(address, files, files=[b"abc"], count=1)
    assert made.body.endswith(b"\x03\x00\x00\x00abc")
