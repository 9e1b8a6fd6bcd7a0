"""Which implementation runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from saccade.errors import MissingDependencyError, UsageError
from saccade.kernels import dispatch
from saccade.kernels.mask_blend.fused import mask_blend_fused
from saccade.kernels.mask_blend.reference import mask_blend_reference

HOME = "saccade.kernels.mask_blend"
ARGUMENTS = (torch.rand(2, 3, 5, 7), torch.rand(2, 1, 5, 7))


def implementation() -> Callable[..., Tensor]:
    return dispatch._implementation("mask_blend", HOME, mask_blend_reference, ARGUMENTS)


@pytest.fixture(autouse=True)
def _some_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(dispatch, "MEASURED", tmp_path / "measured.json")
    dispatch._measured.cache_clear()


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # PyTorch's own, in its compiler
@pytest.mark.parametrize("asked", ["fused", "reference", "compiled"])
def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setenv("SACCADE_KERNELS", asked)
    chosen = implementation()
    if asked == "compiled":
        assert chosen not in (mask_blend_fused, mask_blend_reference)
        assert chosen._torchdynamo_orig_callable is mask_blend_reference  # type: ignore[attr-defined]
    else:
        assert chosen is {"fused": mask_blend_fused, "reference": mask_blend_reference}[asked]


def test_what_was_measured_to_be_faster_runs(tmp_path: Path) -> None:
    assert implementation() is mask_blend_fused
    kind = dispatch.shape_class("mask_blend", ARGUMENTS)
    assert kind == "mask_blend float32,float32  2^9"  # 280 numbers
    (tmp_path / "measured.json").write_text(json.dumps({"Some GPU": {kind: "reference"}, "Other": {kind: "compiled"}}))
    dispatch._measured.cache_clear()
    assert implementation() is mask_blend_reference


def test_without_triton_the_reference_runs_and_what_was_asked_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    monkeypatch.setattr("saccade.errors.importlib.util.find_spec", lambda name: None)
    assert implementation() is mask_blend_reference
    monkeypatch.setenv("SACCADE_KERNELS", "fused")
    with pytest.raises(MissingDependencyError, match=r"'triton' is needed .* pip install 'saccade\[kernels\]'"):
        implementation()


def test_an_implementation_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACCADE_KERNELS", "cuda")
    with pytest.raises(UsageError, match="SACCADE_KERNELS is 'cuda'"):
        dispatch.chosen()
