"""Bundles of every kind that a server may hold, and a server of them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from random_weights import randomise
from running_server import RunningServer, running

from saccade.contracts import Uint8
from saccade.export.write_bundle import export_trained
from saccade.methods.checkpoint import CheckpointRecord
from saccade.methods.explainee import Explainee
from saccade.methods.inr.amortized import build_amortized
from saccade.methods.inr.amortized_config import AmortizedConfig
from saccade.methods.ltx.config import LTXConfig
from saccade.methods.ltx.model import build_ltx


def noise(count: int, seed: int = 0) -> Uint8:
    images = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    images[::2] //= 4
    return images


def png(image: Uint8) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="session")
def served_bundles(
    tiny_explainee: Explainee, tiny_bundle_kept: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """``tiny`` explains the predicted class, ``classes`` any, several at once, ``areas`` masks of any area."""
    folder = tmp_path_factory.mktemp("served")
    torch.manual_seed(0)
    conditional = LTXConfig(class_conditional=True)
    explainer = build_ltx(tiny_explainee, conditional)
    randomise(explainer.network, seed=1)
    record = CheckpointRecord.of(explainer, conditional, "noise", 0)
    export_trained(explainer, record, noise(16), folder / "classes")
    functions = AmortizedConfig(parts=2, grid=8, gain=1.0, areas=(0.1, 0.3))
    field = build_amortized(tiny_explainee, functions)
    frequencies = field.network.frequencies.clone()
    randomise(field.network, seed=2)
    field.network.frequencies.copy_(frequencies)
    with torch.no_grad():
        field.network.last.weight.mul_(20)  # so that pixels differ
    export_trained(field, CheckpointRecord.of(field, functions, "noise", 0), noise(16), folder / "areas")
    return {"tiny": tiny_bundle_kept, "classes": folder / "classes", "areas": folder / "areas"}


@pytest.fixture(scope="session")
def server(served_bundles: dict[str, Path]) -> Iterator[RunningServer]:
    with running(served_bundles) as started:
        yield started
