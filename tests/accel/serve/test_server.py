"""What a server's process does beside serving."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from saccade.accel.engine import Engine
from saccade.accel.engines import open_engine
from saccade.accel.serve import server
from saccade.accel.serve.config import ServeConfig
from saccade.accel.serve.server import Server, run_server, set_aside
from saccade.accel.serve.service import Service


class Knot:
    """Something that only a collection of garbage takes away."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    interval = sys.getswitchinterval()
    yield
    sys.setswitchinterval(interval)
    gc.unfreeze()


def test_collections_leave_out_what_is_set_aside_until_the_next_time() -> None:
    knot = Knot()
    gone = weakref.ref(knot)
    set_aside()
    left = gc.get_objects()
    assert not any(one is knot for one in left), "a collection would go through it"

    del knot, left
    gc.collect()
    assert gone() is not None, "it was not set aside"
    set_aside()
    assert gone() is None, "what is garbage by the next time stays for ever"


def test_a_server_sets_aside_what_it_holds_and_each_model_that_is_exchanged(
    tiny_bundle_kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    service = Service(
        {"tiny": tiny_bundle_kept}, lambda folder: open_engine(folder, threads=1), ServeConfig(port=0, grpc_port=None)
    )

    def collected() -> bool:
        held: Engine = service.models.get("tiny").engine
        return any(one is held for one in gc.get_objects())

    async def serve(self: Server, on_start: Callable[[Server], None]) -> bool:
        seen.append(collected())
        self.service.models.load("tiny")
        seen.append(collected())
        return True

    monkeypatch.setattr(server.Server, "serve", serve)
    assert run_server(service)
    service.dispatcher.close(1)
    assert seen == [False, False]
