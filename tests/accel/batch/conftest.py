"""A folder of images, and the tiny bundle in a batch explainer."""

from __future__ import annotations

from pathlib import Path

import pytest
from batch_material import write_folder

from saccade.accel.batch.explainer import BatchExplainer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "photos", 23)


@pytest.fixture(scope="session")
def explainer(tiny_bundle_kept: Path) -> BatchExplainer:
    return BatchExplainer(tiny_bundle_kept, threads=1)
