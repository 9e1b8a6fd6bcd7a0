"""For tests with PyTorch models: torchvision's operators stay declared, and small models run on one thread."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

_spec = importlib.util.spec_from_file_location(
    "torchvision_on_cpu_kept", Path(__file__).parents[2] / "benchmarks" / "torchvision_on_cpu.py"
)
assert _spec is not None
assert _spec.loader is not None
_kept = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_kept)  # the declarations live as long as this module does


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small gain nothing from a second thread, and lose much to it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
