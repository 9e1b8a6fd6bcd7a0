from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from saccade.accel import memory
from saccade.accel.engines import open_engine
from saccade.errors import UsageError

PROGRAM = """
import json
import numpy as np
from saccade.accel import memory

found = []
for mib in (0, 64, 16):
    memory.reset_peak()
    before = memory.peak_mib()
    block = np.ones(mib * 2**20 // 8)
    del block
    found.append(memory.peak_mib() - before)
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its peak")
def test_the_peak_follows_what_is_allocated() -> None:
    """In a process of its own: here, what other tests leave to threads may be freed at any moment."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == pytest.approx([0, 64, 16], abs=2)


def test_a_batch_is_as_large_as_the_budget_allows(tiny_bundle_kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(tiny_bundle_kept)
    for growth, budget, expected in (
        (80, 2000, 64),  # ten MiB an image: room for many more than the largest batch
        (700, 2000, 8 + 4),  # a hundred an image: half of the remaining 900 is four more
        (700, 1200, 8),
    ):
        peaks = iter((400.0, 400.0 + growth * 8 / 8))
        monkeypatch.setattr(memory, "peak_mib", lambda peaks=peaks: next(peaks))
        assert memory.largest_batch(engine, budget) == expected


def test_a_budget_that_is_too_small_names_one_that_is_not(
    tiny_bundle_kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = iter((900.0, 1600.0))
    monkeypatch.setattr(memory, "peak_mib", lambda: next(peaks))
    with pytest.raises(UsageError, match=r"too small.*--memory-budget 2\.0"):
        memory.largest_batch(open_engine(tiny_bundle_kept), 1024)


def test_where_the_system_does_not_tell_the_batch_follows_the_images_size(
    tiny_bundle_kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "peak_mib", lambda: None)
    engine = open_engine(tiny_bundle_kept)
    assert memory.largest_batch(engine, 2048) == 64
    assert memory.largest_batch(engine, 8) == 3  # 4 MiB at 1.23 MiB an image of 32×32 pixels
