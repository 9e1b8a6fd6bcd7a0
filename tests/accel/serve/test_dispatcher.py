"""The queue: bounded, in order, with deadlines, and batches where one call costs as much as another.

The model here sleeps for a fixed time per call, as a GPU does, and counts.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, wait
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from saccade.accel.serve.dispatcher import Dispatcher, Job
from saccade.accel.serve.errors import BadRequest, DeadlineExceeded, Overloaded, Unavailable
from saccade.accel.serve.model import Answer
from saccade.accel.serve.work import Work
from saccade.contracts import Uint8

SECONDS = 30.0


class SleepingModel:
    """Doubles each image's first pixel, one call at a time where it takes batches."""

    def __init__(self, batch: int = 1, seconds: float = 0.0) -> None:
        self.name = "sleeping"
        self.batch = batch
        self.seconds = seconds
        self.lock = threading.Lock()
        self.calls: list[int] = []
        self.order: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.manifest = SimpleNamespace(any_size=False)

    def decode(self, work: Work, wanted: Callable[[], bool]) -> list[Uint8]:
        if work.encoded == (b"unlucky",):
            raise MemoryError("of an image")
        if work.encoded == (b"bad",):
            raise BadRequest("image 0: no image")
        if work.images is not None:
            return list(work.images)
        return [np.full((1, 1, 3), int(file), np.uint8) for file in work.encoded]

    def answer(self, works: Sequence[Work], decoded: Sequence[list[Uint8]]) -> list[Answer]:
        assert self.gate.wait(SECONDS)
        if any(int(image[0, 0, 0]) == 13 for images in decoded for image in images):
            raise RuntimeError("unlucky")
        self.calls.append(sum(work.count for work in works))
        self.order += [int(images[0][0, 0, 0]) for images in decoded]
        time.sleep(self.seconds)
        return [Answer({"doubled": 2 * np.array([int(i[0, 0, 0]) for i in images])}, 0) for images in decoded]


def work(value: int, *, count: int = 1, timeout: float = SECONDS, encoded: tuple[bytes, ...] = ()) -> Work:
    images = None if encoded else np.full((count, 1, 1, 3), value, np.uint8)
    return Work(
        id="",
        images=images,
        encoded=encoded,
        target=None,
        query=None,
        outputs=(),
        explain=True,
        explain_below=None,
        timeout=timeout,
        binary=False,
    )


@pytest.fixture
def dispatchers() -> Iterator[list[Dispatcher]]:
    made: list[Dispatcher] = []
    yield made
    for dispatcher in made:
        dispatcher.close(SECONDS)


def job(model: Any, *arguments: Any, **settings: Any) -> Job:
    return Job(model, work(*arguments, **settings))


def until(condition: Any) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.001)


def test_each_request_gets_its_own_answer(dispatchers: list[Dispatcher]) -> None:
    for batch in (1, 4):
        model = SleepingModel(batch)
        dispatcher = Dispatcher(3, 200)
        dispatchers.append(dispatcher)
        futures = {}
        for value in range(100):
            if value != 13:
                files = (str(value).encode(),) if value % 3 == 0 else ()
                futures[value] = dispatcher.submit(job(model, value, count=1 + value % 2, encoded=files))
        for value, future in futures.items():
            doubled = future.result(SECONDS).outputs["doubled"]
            assert doubled.tolist() == [2 * value] * (1 if value % 3 == 0 else 1 + value % 2)


def test_the_oldest_request_is_next(dispatchers: list[Dispatcher]) -> None:
    model = SleepingModel()
    dispatcher = Dispatcher(1, 50)
    dispatchers.append(dispatcher)
    futures = [dispatcher.submit(job(model, value)) for value in range(20, 40)]
    wait(futures, SECONDS)
    assert model.order == list(range(20, 40))


def test_batches_make_a_model_faster_whose_calls_cost_the_same(dispatchers: list[Dispatcher]) -> None:
    calls = {}
    for batch in (1, 8):
        model = SleepingModel(batch, seconds=0.005)
        dispatcher = Dispatcher(4, 100)
        dispatchers.append(dispatcher)
        model.gate.clear()
        futures = [dispatcher.submit(job(model, value)) for value in range(20, 84)]
        until(lambda dispatcher=dispatcher: dispatcher.waiting <= 60)
        model.gate.set()
        done, _ = wait(futures, SECONDS)
        assert len(done) == 64
        assert max(model.calls) <= batch
        assert sum(model.calls) == 64
        calls[batch] = len(model.calls)
    assert calls[1] == 64
    assert calls[8] <= 8 + 5  # full batches, but for what the threads had taken before the first could begin


def test_a_batch_holds_no_more_images_than_it_may_and_only_those_that_go_together(
    dispatchers: list[Dispatcher],
) -> None:
    model = SleepingModel(4)
    dispatcher = Dispatcher(1, 100)
    dispatchers.append(dispatcher)
    model.gate.clear()
    first = dispatcher.submit(job(model, 1))
    until(lambda: dispatcher.waiting == 0)
    large = [dispatcher.submit(job(model, 30 + index, count=3)) for index in range(4)]
    other = job(model, 50)
    other.work = work(50).within(5.0)
    asked = Work(**{**vars(other.work), "explain": False})
    other.work = asked
    large.append(dispatcher.submit(other))
    model.gate.set()
    wait([first, *large], SECONDS)
    assert sorted(model.calls) == [1, 1, 3, 3, 3, 3]


def test_a_batch_that_is_not_full_waits_for_more_when_told(dispatchers: list[Dispatcher]) -> None:
    model = SleepingModel(2)
    dispatcher = Dispatcher(2, 100, delay=SECONDS)
    dispatchers.append(dispatcher)
    first = dispatcher.submit(job(model, 1))
    time.sleep(0.05)
    assert not first.done()
    second = dispatcher.submit(job(model, 2))
    assert first.result(SECONDS).batch == second.result(SECONDS).batch == 2


def test_what_the_queue_cannot_hold_is_refused_at_once(dispatchers: list[Dispatcher]) -> None:
    model = SleepingModel()
    dispatcher = Dispatcher(2, 3)
    dispatchers.append(dispatcher)
    model.gate.clear()
    taken = [dispatcher.submit(job(model, value)) for value in range(2)]
    until(lambda: dispatcher.waiting == 0)
    taken += [dispatcher.submit(job(model, value)) for value in range(3)]
    assert dispatcher.full
    with pytest.raises(Overloaded, match="3 requests wait"):
        dispatcher.submit(job(model, 9))
    model.gate.set()
    done, _ = wait(taken, SECONDS)
    assert len(done) == 5
    assert dispatcher.submit(job(model, 9)).result(SECONDS).outputs["doubled"].tolist() == [18]


def test_a_request_that_waited_too_long_is_not_computed(dispatchers: list[Dispatcher]) -> None:
    model = SleepingModel()
    dispatcher = Dispatcher(1, 10)
    dispatchers.append(dispatcher)
    model.gate.clear()
    first = dispatcher.submit(job(model, 1))
    late = dispatcher.submit(job(model, 2, timeout=0.01))
    time.sleep(0.05)
    model.gate.set()
    first.result(SECONDS)
    with pytest.raises(DeadlineExceeded, match="longer than its"):
        late.result(SECONDS)
    assert model.order == [1]


def test_a_request_whose_client_left_is_not_computed(dispatchers: list[Dispatcher]) -> None:
    model = SleepingModel()
    dispatcher = Dispatcher(1, 10)
    dispatchers.append(dispatcher)
    model.gate.clear()
    first = dispatcher.submit(job(model, 1))
    gone = dispatcher.submit(job(model, 2))
    until(lambda: dispatcher.waiting == 1)
    assert gone.cancel()
    last = dispatcher.submit(job(model, 3))
    model.gate.set()
    first.result(SECONDS)
    last.result(SECONDS)
    assert model.order == [1, 3]
    with pytest.raises(CancelledError):
        gone.result(0)


@pytest.mark.parametrize("batch", [1, 8])
def test_one_request_s_failure_is_its_own(dispatchers: list[Dispatcher], batch: int) -> None:
    model = SleepingModel(batch)
    dispatcher = Dispatcher(1, 100)
    dispatchers.append(dispatcher)
    model.gate.clear()
    futures = {value: dispatcher.submit(job(model, value)) for value in (1, 2, 13, 4)}
    bad = dispatcher.submit(job(model, 0, encoded=(b"bad",)))
    model.gate.set()
    for value, future in futures.items():
        if value == 13:
            with pytest.raises(RuntimeError, match="unlucky"):
                future.result(SECONDS)
        else:
            assert future.result(SECONDS).outputs["doubled"].tolist() == [2 * value]
    with pytest.raises(BadRequest, match="no image"):
        bad.result(SECONDS)


def test_closing_answers_what_was_accepted_and_accepts_no_more() -> None:
    model = SleepingModel(seconds=0.002)
    dispatcher = Dispatcher(2, 100)
    futures = [dispatcher.submit(job(model, value)) for value in range(20, 60)]
    assert dispatcher.close(SECONDS)
    assert all(future.done() and future.exception() is None for future in futures)
    with pytest.raises(Unavailable):
        dispatcher.submit(job(model, 1))


@pytest.mark.parametrize("batch", [1, 8])
def test_closing_in_a_hurry_says_so_to_those_that_are_left(batch: int) -> None:
    model = SleepingModel(batch)
    dispatcher = Dispatcher(3, 100)
    model.gate.clear()
    futures = [dispatcher.submit(job(model, value)) for value in range(7)]
    until(lambda: dispatcher.waiting <= 4)
    assert not dispatcher.close(0.05)
    for future in futures:
        with pytest.raises(Unavailable, match="before this request was answered"):
            future.result(SECONDS)
    model.gate.set()  # what was under way ends, and disturbs nobody


@pytest.mark.parametrize("batch", [1, 8])
def test_whatever_goes_wrong_in_decoding_is_answered_and_the_threads_live_on(
    dispatchers: list[Dispatcher], batch: int
) -> None:
    model = SleepingModel(batch)
    dispatcher = Dispatcher(2, 100)
    dispatchers.append(dispatcher)
    for _ in range(5):
        with pytest.raises(MemoryError):
            dispatcher.submit(job(model, 0, encoded=(b"unlucky",))).result(SECONDS)
    assert dispatcher.submit(job(model, 4)).result(SECONDS).outputs["doubled"].tolist() == [8]


def test_what_is_forgotten_makes_room_at_once(dispatchers: list[Dispatcher]) -> None:
    model = SleepingModel()
    dispatcher = Dispatcher(1, 2)
    dispatchers.append(dispatcher)
    model.gate.clear()
    first = job(model, 1)
    dispatcher.submit(first)
    until(lambda: dispatcher.waiting == 0)
    waiting = [job(model, value) for value in (2, 3)]
    for one in waiting:
        dispatcher.submit(one)
    assert dispatcher.full
    assert dispatcher.forget(waiting[0])
    assert not dispatcher.full
    assert not dispatcher.forget(first)  # it has begun
    dispatcher.submit(job(model, 4))
    model.gate.set()
    assert waiting[1].future.result(SECONDS).outputs["doubled"].tolist() == [6]
    assert waiting[0].future.cancelled()


def test_a_request_that_no_batch_waits_for_is_not_held_up_by_one(dispatchers: list[Dispatcher]) -> None:
    patient, other = SleepingModel(8), SleepingModel()
    dispatcher = Dispatcher(3, 100, delay=SECONDS / 3)
    dispatchers.append(dispatcher)
    began = time.monotonic()
    held = dispatcher.submit(job(patient, 1))
    until(lambda: dispatcher.waiting == 0)
    for value in range(50):
        dispatcher.submit(job(other, value + 20)).result(SECONDS)
    assert time.monotonic() - began < SECONDS / 3
    assert not held.done()
    dispatcher.close(SECONDS)


def test_a_thousand_requests_from_many_threads_are_each_answered_once(dispatchers: list[Dispatcher]) -> None:
    model = SleepingModel(8)
    dispatcher = Dispatcher(6, 40)
    dispatchers.append(dispatcher)
    right, refused = [], []

    def client(base: int) -> None:
        for index in range(100):
            value = 20 + (base * 7 + index) % 200
            try:
                future = dispatcher.submit(job(model, value))
            except Overloaded:
                refused.append(value)
                continue
            right.append(future.result(SECONDS).outputs["doubled"].tolist() == [2 * value])

    threads = [threading.Thread(target=client, args=(base,)) for base in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert all(right)
    assert len(right) + len(refused) == 1000
    assert sum(model.calls) == len(right)


@pytest.mark.skipif(sys.platform != "linux", reason="a thread has a priority of its own on Linux only")
@pytest.mark.parametrize("batch", [1, 4])
def test_threads_that_compute_let_the_one_that_refuses_go_before(dispatchers: list[Dispatcher], batch: int) -> None:
    seen: list[int] = []

    class Watched(SleepingModel):
        def answer(self, works: Sequence[Work], decoded: Sequence[list[Uint8]]) -> list[Answer]:
            seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
            return super().answer(works, decoded)

    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    for nice in (0, 7, 19):
        dispatcher = Dispatcher(2, 4, nice=nice)
        dispatchers.append(dispatcher)
        dispatcher.submit(job(Watched(batch), 1)).result(SECONDS)
        assert seen.pop() == min(own + nice, 19)  # nothing is below that
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own
