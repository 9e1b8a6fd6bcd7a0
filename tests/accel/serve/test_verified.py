"""A running server is held against the golden samples of the bundles that it serves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from running_server import running

pytestmark = pytest.mark.xdist_group("served")  # one process makes the bundles


def test_every_kind_of_bundle_is_proven_as_the_server_answers_for_it(
    served_bundles: dict[str, Path], saccade_command: Callable[..., tuple[int, str, str]]
) -> None:
    with running(served_bundles) as server:
        for name, bundle in served_bundles.items():
            code, out, err = saccade_command("verify", bundle, "--server", f"http://{server.url}", "--model", name)
            assert code == 0, out + err
            assert "pass" in out
        code, _, err = saccade_command(
            "verify", served_bundles["tiny"], "--server", f"http://{server.url}", "--model", "areas"
        )
        assert code == 1
        assert "is not of the bundle" in " ".join(err.split())
