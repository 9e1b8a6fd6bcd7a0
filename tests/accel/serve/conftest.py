"""A server of bundles of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from running_server import RunningServer, running


@pytest.fixture(scope="session")
def server(served_bundles: dict[str, Path]) -> Iterator[RunningServer]:
    with running(served_bundles) as started:
        yield started
