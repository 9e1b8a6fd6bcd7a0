"""Programs that the exporter does not decompose: the same graphs, and others as ever."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from saccade.contracts import ImageSpec
from saccade.export import to_onnx
from saccade.export.graph import ExplainerGraph, TracedExplainer
from saccade.export.to_onnx import export_onnx
from saccade.methods.explainee import Explainee
from saccade.methods.gradient.config import GradientConfig
from saccade.methods.gradient.explainer import GradientExplainer

SPEC = ImageSpec(size=(32, 32))


@pytest.mark.parametrize("method", ["gradcam", "dix2", "iia2", "ig"])
def test_a_gradient_s_graph_is_what_decomposing_it_gives(
    method: str, tiny_explainee: Explainee, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explainer = GradientExplainer(tiny_explainee, GradientConfig(method=method, steps=2)).eval()
    graph = ExplainerGraph(TracedExplainer(explainer)).eval()

    def exported(name: str) -> Path:
        path = tmp_path / name
        export_onnx(graph, SPEC, path, example=graph.example(), outputs=graph.outputs, rewrite=False)
        return path

    with monkeypatch.context() as patch:
        patch.setattr(to_onnx, "captured", lambda module, *_: module)  # PyTorch captures and decomposes
        slow = exported("decomposed.onnx")
    monkeypatch.setattr(ExportedProgram, "run_decompositions", None)  # would be called in vain
    fast = exported("lowered.onnx")
    assert operators(fast) == operators(slow)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    for count in (1, 3):
        fed = {"image": images[:count], "target": np.array([-1, 2, 0])[:count]}
        for mine, theirs in zip(answers(fast, fed), answers(slow, fed), strict=True):
            np.testing.assert_array_equal(mine, theirs)


class Untraced(nn.Module):
    """Operators in place, made of others, and without a translation."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 30 * 30, 5))
        self.register_buffer("shift", torch.linspace(-1, 1, 5))

    def forward(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pixels = (image.to(torch.float32) / 255).permute(0, 3, 1, 2).contiguous()
        logits = self.layers(pixels)
        logits.add_(self.shift)
        mask = torch.einsum("nchw,c->nhw", pixels, torch.tensor([0.3, 0.5, 0.2])).unsqueeze(1)
        mask = nn.functional.pixel_shuffle(torch.cat([mask] * 4, 1), 2).addcmul_(mask.new_ones(1), mask.mean())
        return nn.functional.softmax(logits, 1), target.clamp(min=0), mask


class Nested(nn.Module):
    """A part without gradients, which is captured as a graph inside the graph, and plain operators around it."""

    def forward(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pixels = image / 255
        with torch.no_grad():
            mean = pixels.mean((1, 2))
        return mean.exp(), target.clamp(min=0), mean.sin().unsqueeze(1)


@pytest.mark.parametrize("kind", [Untraced, Nested])
def test_other_modules_are_decomposed(kind: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = kind().eval()
    image = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    target = torch.tensor([-1, 3])
    example = {"image": (image, {0: "batch"}), "target": (target, {0: "batch"})}
    path = tmp_path / "graph.onnx"
    names = ("probabilities", "target_class", "mask")
    export_onnx(module, SPEC, path, example=example, outputs=names, rewrite=False)
    images = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    targets = torch.tensor([1, -1, 0, 4, 2])
    with torch.no_grad():
        expected = module(images, targets)
    found = answers(path, {"image": images.numpy(), "target": targets.numpy()})
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-5, atol=1e-6)


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def answers(path: Path, fed: dict[str, np.ndarray]) -> list[np.ndarray]:
    found: list[np.ndarray] = ort.InferenceSession(path).run(None, fed)
    return found
