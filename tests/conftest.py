"""Fixtures: small models and bundles that are made in seconds and used by many tests."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.spatial  # noqa: F401  (with a BLAS of its own)
import torch
import torchvision_on_cpu
from random_weights import randomise
from small_bundle import make_bundle, make_explainee
from threadpoolctl import threadpool_limits

from saccade.methods.explainee import Explainee

threadpool_limits(1, user_api="blas")  # several test processes share the cores, and OpenBLAS waits for each of them
gc.set_threshold(50_000, 20, 20)  # looking for garbage is a seventh of the time in which a graph is traced
torchvision_on_cpu.declare_operators()
if not torch.cuda.is_available():  # Triton is imported later, and then runs its kernels on a processor
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _quiet_machine(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Two threads, or one of two processes; and a cache of golden passes that belongs to this run."""
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def tiny_explainee() -> Explainee:
    """A random CNN at 32 pixels with five classes."""
    return make_explainee()


@pytest.fixture(scope="session")
def tiny_bundle_kept(tiny_explainee: Explainee, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny model; read only, use `tiny_bundle` to change it."""
    return make_bundle(tiny_explainee, tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def tiny_own_bundle_kept(tiny_explainee: Explainee, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny model with another explainer; read only."""
    return make_bundle(tiny_explainee, tmp_path_factory.mktemp("bundles") / "tiny-own", form="own")


@pytest.fixture(scope="session")
def served_bundles(
    tiny_explainee: Explainee, tiny_bundle_kept: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """``tiny`` explains the predicted class, ``classes`` any, several at once, ``areas`` masks of any area; read only.

    Tests that take them are of the xdist group "served", so that one process makes them.
    """
    from saccade.export.write_bundle import export_trained
    from saccade.methods.checkpoint import CheckpointRecord
    from saccade.methods.inr.amortized import build_amortized
    from saccade.methods.inr.amortized_config import AmortizedConfig
    from saccade.methods.ltx.config import LTXConfig
    from saccade.methods.ltx.model import build_ltx

    folder = tmp_path_factory.mktemp("served")
    images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    images[::2] //= 4
    torch.manual_seed(0)
    conditional = LTXConfig(class_conditional=True)
    explainer = build_ltx(tiny_explainee, conditional)
    randomise(explainer.network, seed=1)
    export_trained(explainer, CheckpointRecord.of(explainer, conditional, "noise", 0), images, folder / "classes")
    functions = AmortizedConfig(parts=2, grid=8, gain=1.0, areas=(0.1, 0.3))
    field = build_amortized(tiny_explainee, functions)
    frequencies = field.network.frequencies.clone()
    randomise(field.network, seed=2)
    field.network.frequencies.copy_(frequencies)
    with torch.no_grad():
        field.network.last.weight.mul_(20)  # so that pixels differ
    export_trained(field, CheckpointRecord.of(field, functions, "noise", 0), images, folder / "areas")
    return {"tiny": tiny_bundle_kept, "classes": folder / "classes", "areas": folder / "areas"}


@pytest.fixture
def tiny_bundle(tiny_bundle_kept: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that a test may damage."""
    return Path(shutil.copytree(tiny_bundle_kept, tmp_path / "bundle"))


@pytest.fixture
def saccade_command() -> Callable[..., tuple[int, str, str]]:
    """The program itself, in this process: arguments to (exit code, stdout, stderr)."""
    import contextlib
    import io
    import sys

    from saccade.cli.main import main

    def run(*arguments: object) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        before = sys.argv
        sys.argv = ["saccade", *map(str, arguments)]
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stop:
                main()
        finally:
            sys.argv = before
        return int(stop.value.code or 0), out.getvalue(), err.getvalue()

    return run
