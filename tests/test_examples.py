"""The examples run, on small architectures, and their pictures are pictures."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import saccade

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """An example's `main`, by name, called in a folder with a photograph."""
    monkeypatch.chdir(tmp_path)
    coarse = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((90, 70), Image.Resampling.BICUBIC).save("cat.jpg")

    def run(name: str, *arguments: str) -> None:
        spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.main(["cat.jpg", *arguments])

    return run


def test_torchvision_from_a_state_dict(example: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    torch.save(squeezenet1_1(num_classes=3).state_dict(), "mymodel.pth")
    Path("names.txt").write_text("ant\nbee\ncat\n")
    own = ("--arch", "squeezenet1_1", "--weights", "mymodel.pth", "--classes", "names.txt", "--size", "64")
    example("explain_torchvision", *own)
    assert capsys.readouterr().out.split(",")[0] in ("ant", "bee", "cat")
    with Image.open("torchvision-bundle.png") as picture:
        assert picture.width >= 300
    assert saccade.open_bundle("torchvision-bundle").manifest.image.size == (64, 64)


def test_timm_explains_two_classes(example: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    example("explain_timm", "--model", "test_efficientnet", "--random", "--method", "gradcam")
    out = capsys.readouterr().out
    assert "means nothing" in out
    pictures = sorted(Path().glob("timm-bundle.*.png"))
    assert len(pictures) == 2
    assert all(str(picture) in out for picture in pictures)


def test_transformers_from_a_folder_that_it_makes(example: Callable[..., None]) -> None:
    example("explain_transformers")
    record = json.loads(Path("transformers-bundle-pictures/results.jsonl").read_text())
    assert record["class"] in ("ant", "bee", "cat")
    assert Path("transformers-bundle-pictures", record["files"]["overlay"]).is_file()
    assert saccade.open_bundle("transformers-bundle").manifest.method == "class-rollout"
