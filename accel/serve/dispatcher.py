"""The queue of requests: bounded, with deadlines, and worked off by threads, in batches where they pay."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

from ...contracts import Uint8
from .errors import DeadlineExceeded, Overloaded, Unavailable
from .model import Outputs, ServedModel
from .work import Work

__all__ = ["Dispatcher", "Finished", "Job"]


@dataclass(frozen=True)
class Finished:
    """An answer, and how it came about.

    Attributes:
        outputs: tensors by name.
        queue_seconds: from the request's acceptance until its computation began.
        compute_seconds: from there until the answer.
        batch: images that went through the engine together.
        images: of the request.
        explained: those of them that got a mask.
        first: it was the first of its batch; so many calls of the engine there were.
    """

    outputs: Outputs
    queue_seconds: float
    compute_seconds: float
    batch: int
    images: int
    explained: int
    first: bool


@dataclass(eq=False)
class Job:
    """A request that was accepted.

    Attributes:
        abandoned: nobody waits for it any more; what is not yet done of it need not be.
    """

    model: ServedModel
    work: Work
    future: Future[Finished] = field(default_factory=Future)
    accepted: float = field(default_factory=time.monotonic)
    began: float = 0.0
    decoded: list[Uint8] = field(default_factory=list)
    abandoned: bool = False

    def answer(self, finished: Finished) -> None:
        """Give the answer to whoever still waits for one."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_result(finished)

    def fail(self, error: BaseException) -> None:
        """Give the reason why there is no answer."""
        with contextlib.suppress(InvalidStateError):
            self.future.set_exception(error)

    @property
    def deadline(self) -> float:
        """When it is no longer worth beginning."""
        return self.accepted + self.work.timeout


class Dispatcher:
    """Threads that take requests from one queue, oldest first.

    A model on a processor is called by every thread for a request of its own. Where a model takes batches, the thread
    that holds the model takes along what else waits for it: requests whose images other threads have decoded, and those
    that came as raw pixels.

    Args:
        workers: threads.
        capacity: requests that wait at most.
        delay: seconds that a batch which is not full waits for more.
        nice: how far the threads' priority is below that of this process, where a thread has one of its own.
    """

    def __init__(self, workers: int, capacity: int, delay: float = 0.0, *, nice: int = 0) -> None:
        self.capacity = capacity
        self.delay = delay
        self.nice = nice
        self._waiting: deque[Job] = deque()
        self._ready: dict[ServedModel, deque[Job]] = {}
        self._running: set[Job] = set()
        self._idle = workers
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"saccade-serve-{index}", daemon=True) for index in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def busy(self) -> int:
        """Requests that are computed."""
        return len(self._running)

    @property
    def full(self) -> bool:
        """Whether a request would be refused now."""
        return len(self._waiting) >= self.capacity + self._idle

    def submit(self, job: Job) -> Future[Finished]:
        """Put a request into the queue.

        Raises:
            Overloaded: the queue is full.
            Unavailable: the server is being stopped.
        """
        with self._changed:
            if self._closed:
                raise Unavailable("the server is being stopped; ask another one")
            if self.full:
                raise Overloaded(f"the server is at its limit: {self.capacity} requests wait; try again later")
            self._waiting.append(job)
            self._changed.notify_all()  # one that gathers a batch may be woken, and have no use for it
        return job.future

    def forget(self, job: Job) -> bool:
        """Take a request out of the queue; whether it was still there. One that has begun is ended where it can be."""
        job.abandoned = True
        with self._changed:
            try:
                self._waiting.remove(job)
            except ValueError:
                return False
            self._changed.notify_all()
        job.future.cancel()
        return True

    def close(self, timeout: float) -> bool:
        """Accept no more, and wait until all that was accepted is answered; whether it was. What is not by then gets an
        error.
        """
        end = time.monotonic() + timeout
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while self._waiting or self._running:
                left = end - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            begun = set(self._running) | {job for ready in self._ready.values() for job in ready}
            waiting = list(self._waiting)
            self._waiting.clear()
            self._ready.clear()
        for job in waiting:
            if job.future.set_running_or_notify_cancel():
                begun.add(job)
        for job in begun:
            job.abandoned = True
            job.fail(Unavailable("the server stopped before this request was answered"))
        return not begun

    def _work(self) -> None:
        _give_way(self.nice)
        while (job := self._next()) is not None:
            try:
                if job.model.batch > 1:
                    self._answer_together(job)
                else:
                    with job.model.lock:
                        self._answer(job.model, [job])
            except BaseException as error:  # a thread that ended would answer nobody any more
                job.fail(error)
            finally:
                with self._changed:
                    self._running.discard(job)
                    self._idle += 1
                    self._changed.notify_all()

    def _next(self) -> Job | None:
        """The oldest request that still is worth it; None when there will be none."""
        with self._changed:
            while True:
                while self._waiting:
                    job = self._waiting.popleft()
                    if self._is_due(job):
                        self._running.add(job)
                        self._idle -= 1
                        return job
                if self._closed:
                    return None
                self._changed.wait()

    def _is_due(self, job: Job) -> bool:
        """Whether it is still wanted; if so its computation begins."""
        if not job.future.set_running_or_notify_cancel():
            return False  # the client has gone
        job.began = time.monotonic()
        if job.began > job.deadline:
            waited = job.began - job.accepted
            job.fail(DeadlineExceeded(f"the request waited {waited:.2f} s, longer than its {job.work.timeout:g} s"))
            return False
        return True

    def _answer(self, model: ServedModel, jobs: list[Job]) -> None:
        """Compute the answers of requests that go together; each of them gets its own, or an error."""
        try:
            for job in jobs:
                job.decoded = job.decoded or model.decode(job.work, lambda job=job: not job.abandoned)  # type: ignore[misc]
            answers = model.answer([job.work for job in jobs], [job.decoded for job in jobs])
        except Exception as error:
            if len(jobs) > 1:  # whose fault was it?
                for job in jobs:
                    self._answer(model, [job])
                return
            jobs[0].decoded = []
            jobs[0].fail(error)
            return
        now, batch = time.monotonic(), sum(job.work.count for job in jobs)
        for job, answer in zip(jobs, answers, strict=True):
            waited, took, first = job.began - job.accepted, now - job.began, job is jobs[0]
            job.decoded = []
            job.answer(Finished(answer.outputs, waited, took, batch, job.work.count, answer.explained, first))

    def _answer_together(self, job: Job) -> None:
        """Decode a request's images, then answer it with others, unless another thread has taken it along by then."""
        model = job.model
        try:
            job.decoded = model.decode(job.work, lambda: not job.abandoned)
        except Exception as error:
            job.fail(error)
            return
        with self._changed:
            self._ready.setdefault(model, deque()).append(job)
            self._changed.notify_all()
        with model.lock:
            if jobs := self._gather(model):
                try:
                    self._answer(model, jobs)
                finally:
                    with self._changed:
                        self._running.difference_update(jobs)

    def _gather(self, model: ServedModel) -> list[Job]:
        """What goes through the engine together next, from what is decoded, and from what needs no decoding."""
        with self._changed:
            ready = self._ready.get(model)
            if not ready:
                return []
            jobs = [ready.popleft()]
            first, room = jobs[0], model.batch - jobs[0].work.count
            end = first.accepted + self.delay

            def fits(job: Job) -> bool:
                same = job.model is model and job.work.key() == first.work.key() and job.work.count <= room
                return same and _shapes(job) == _shapes(first)

            while True:
                for queue, decoded in ((ready, True), (self._waiting, False)):
                    for job in [job for job in queue if decoded or job.work.images is not None]:
                        if room > 0 and fits(job):
                            queue.remove(job)
                            if decoded or self._is_due(job):
                                jobs.append(job)
                                self._running.add(job)
                                room -= job.work.count
                if room <= 0 or self._closed or (left := end - time.monotonic()) <= 0:
                    return jobs
                self._changed.wait(left)


def _give_way(nice: int) -> None:
    """Let the thread that reads requests and refuses them go before this one, which computes.

    On Linux a thread has a priority of its own, and what it starts inherits it.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # not allowed here: answers are the same
            thread = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + nice)


def _shapes(job: Job) -> set[tuple[int, ...]]:
    """Of a request's images, as far as the engine sees them differ."""
    if not job.model.manifest.any_size:
        return set()
    images = job.decoded or list(job.work.images if job.work.images is not None else ())
    return {image.shape for image in images}
