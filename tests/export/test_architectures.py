"""The architectures that people use: graphs against naive autograd, in ONNX Runtime, OpenVINO and TensorRT's builder.

Most have few blocks here, of each kind that the whole ones have, and VGG a small classifier.
`benchmarks/architectures.py` does the same with whole ones, for more architectures and every method, at 224 pixels; it
takes an hour and more.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from architectures import check
from zoo import ATTENTION, build

from saccade.errors import ModelError, UsageError
from saccade.methods.gradient.config import GradientConfig
from saccade.methods.gradient.explainer import GradientExplainer

SIZE = 64
GELU = {*ATTENTION, "ConvNeXt-T", "Swin-T"}  # smooth; a ReLU's gradient jumps, so float32 is not exact
SMALLER = {*ATTENTION, "ConvNeXt-T", "DenseNet-121", "EfficientNet-B0", "ResNet-50", "Swin-T", "VGG-16"}
PAIRS = [
    ("ResNet-50", "dix2"),
    ("DenseNet-121", "dix2"),
    ("ConvNeXt-T", "dix2"),
    ("EfficientNet-B0", "dix2"),
    ("Swin-T", "dix1"),
    ("Swin-T", "iia2"),
    ("MobileNetV3-L", "dix2"),
    ("VGG-16", "iia2"),
    ("VGG-16", "ig"),
    ("ViT-B/16 (torchvision)", "gradient-rollout"),
    ("ViT-B/16 (timm)", "dix2"),
    ("ViT-B/16 (transformers)", "iia2"),
    ("ViT-B/16 (torchvision)", "gradcam"),
    ("ViT-B/16 (transformers)", "class-rollout"),
    ("DeiT-S distilled", "gradient-rollout"),
    ("DeiT-S distilled", "gradcam"),
]


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_the_graph_is_autograd_s_and_runs_everywhere(name: str, method: str, tmp_path: Path) -> None:
    row = check(build(name, SIZE, depth=2 if name in SMALLER else 0), method, tmp_path)
    assert row.graph_error <= 1e-9
    assert row.runtime_error <= (1e-5 if name in GELU else max(1e-5, 2 * row.own_error))
    assert row.runtime_cosine is not None
    assert row.own_cosine is not None
    assert 1 - row.runtime_cosine <= (1e-4 if name in GELU else max(1e-4, 3 * (1 - row.own_cosine)))
    assert row.openvino_error is not None
    assert row.openvino_error <= max(1e-4, 3 * row.own_error)  # it rounds otherwise than PyTorch
    assert row.tensorrt == ""
    assert row.tensorrt_half == ""


def test_what_does_not_fit_an_architecture_is_said() -> None:
    swin = build("Swin-T", SIZE)
    with pytest.raises(ModelError, match="calls no attention"):
        GradientExplainer(swin, GradientConfig(method="rollout"))
    vit = build("ViT-B/16 (timm)", SIZE, depth=2)
    with pytest.raises(UsageError, match="raise --memory-budget"):
        GradientExplainer(vit, GradientConfig(method="iia2", memory_budget=0.45))
