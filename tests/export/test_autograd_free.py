from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from random_weights import randomise
from torch import Tensor, nn
from torch.fx import GraphModule

from saccade.contracts import ImageSpec
from saccade.errors import ModelError
from saccade.evaluate.scenes_models import IMAGE_SPEC, ScenesViT
from saccade.export.autograd_free import trace_autograd_free
from saccade.export.graph import ExplainerGraph, TracedExplainer
from saccade.export.to_onnx import export_onnx
from saccade.methods.explainee import Explainee, fingerprint
from saccade.methods.gradient.config import GradientConfig
from saccade.methods.gradient.explainer import GradientExplainer
from saccade.methods.quadrature import RULES, Rule

SPEC = ImageSpec(size=(16, 16))
Layers = Callable[[], list[nn.Module]]
Sides = int | tuple[int, int]


class ChannelNorm(nn.LayerNorm):
    """Layer norm over channels, as in ConvNeXt."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Residual(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.inner(x)
        return result


class InPlaceResidual(nn.Module):
    """Adds into the map itself, then ReLU in place, as torchvision's blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, 1, 1))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x)
        out += x
        result: Tensor = self.act(out)
        return result


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x * self.gate(self.pool(x))
        return result


class Net(nn.Module):
    """A stem (16 → 8), the layers in question (8 → 4), a last stage (4 → 2) and a head that is not linear."""

    def __init__(self, middle: list[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU())
        self.middle = nn.Sequential(*middle)
        self.last = nn.Sequential(nn.Conv2d(8, 10, 3, 2, 1), nn.GELU())
        self.head = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.last(self.middle(self.stem(x))).mean((2, 3)))
        return logits


def halved(*layers: nn.Module) -> list[nn.Module]:
    return [nn.Conv2d(8, 8, 3, 2, 1), *layers]


def wide(strided: nn.Module) -> list[nn.Module]:
    return [nn.Conv2d(8, 16, 1), nn.SiLU(), strided, nn.ReLU()]


MIDDLES: dict[str, Layers] = {
    "strided conv": lambda: [nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 1, 1), nn.ReLU()],
    "strided conv that leaves pixels over": lambda: [nn.Conv2d(8, 8, 2, 2, 0), nn.ReLU(), nn.Conv2d(8, 8, 2, 1, 1)],
    "strided conv of many channels": lambda: wide(nn.Conv2d(16, 8, 3, 2, 1)),
    "strided 1×1 conv of many channels": lambda: wide(nn.Conv2d(16, 8, 1, 2)),
    "strided conv of many channels, more stride than kernel": lambda: wide(nn.Conv2d(16, 8, (2, 1), (3, 2), (2, 1))),
    "strided conv of many channels, stem-like": lambda: wide(nn.Conv2d(16, 8, 7, (2, 3), 3)),
    "conv 5×3 dilated": lambda: halved(nn.Conv2d(8, 8, (5, 3), 1, (4, 2), (2, 2)), nn.ReLU()),
    "conv padded beyond its kernel": lambda: [nn.Conv2d(8, 8, 1, 2, 1), nn.ReLU()],
    "grouped conv": lambda: [nn.Conv2d(8, 8, 3, 2, 1, groups=4), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1, groups=2)],
    "depthwise conv": lambda: [nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1, groups=8)],
    "max pool": lambda: [nn.Conv2d(8, 8, 3, 1, 1), nn.MaxPool2d(2)],
    "max pool that is dilated": lambda: [nn.Conv2d(8, 8, 3, 1, 1), nn.MaxPool2d(2, 2, dilation=2)],
    "max pool that overlaps": lambda: [nn.Conv2d(8, 8, 3, 1, 1), nn.MaxPool2d(3, 2, 1)],
    "avg pool": lambda: [nn.Conv2d(8, 8, 3, 1, 1), nn.AvgPool2d(2), nn.SiLU()],
    "avg pool that overlaps": lambda: [nn.Conv2d(8, 8, 3, 1, 1), nn.AvgPool2d(3, 2, 1), nn.SiLU()],
    "adaptive avg pool": lambda: [nn.Conv2d(8, 8, 3, 1, 1), nn.AdaptiveAvgPool2d(4), nn.SiLU()],
    "adaptive avg pool, uneven": lambda: [nn.Conv2d(8, 8, 3, 1, 1), nn.AdaptiveAvgPool2d((3, 3)), nn.SiLU()],
    "gelu": lambda: halved(nn.GELU()),
    "silu": lambda: halved(nn.SiLU()),
    "hardswish": lambda: halved(nn.Hardswish()),
    "other activations": lambda: halved(nn.GELU("tanh"), nn.ReLU6(), nn.ELU(), nn.LeakyReLU(0.1)),
    # fails: aten.mish_backward and aten.softplus_backward are not in `_BACKWARD`
    "mish and softplus": lambda: halved(nn.Mish(), nn.Softplus()),
    "squeeze and excite": lambda: halved(SqueezeExcite()),
    "convnext": lambda: halved(
        Residual(
            nn.Conv2d(8, 8, 7, 1, 3, groups=8), ChannelNorm(8), nn.Conv2d(8, 16, 1), nn.GELU(), nn.Conv2d(16, 8, 1)
        )
    ),
    "group norm": lambda: halved(nn.GroupNorm(2, 8), nn.ReLU()),
    "in-place relu": lambda: halved(nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(inplace=True)),
    "in-place residual": lambda: halved(nn.ReLU(inplace=True), InPlaceResidual()),
    "in-place silu and hardswish": lambda: halved(nn.SiLU(inplace=True), nn.Hardswish(inplace=True)),
}


def exact(model: nn.Module) -> nn.Module:
    """Random weights, in float64."""
    return randomise(model).double()


def explainer_of(model: nn.Module, spec: ImageSpec, classes: int, config: GradientConfig) -> GradientExplainer:
    names = tuple(map(str, range(classes)))
    return GradientExplainer(Explainee(model, spec, names, "python:x:y", "random", fingerprint(model)), config)


def random_images(count: int, side: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def traced(explainer: GradientExplainer, side: int = 16) -> GraphModule:
    spelled_out = partial(explainer.attribute, spelled_out=True)
    return trace_autograd_free(spelled_out, (random_images(2, side), torch.tensor([0, -1])))


def assert_graph_equals_eager(graph: GraphModule, explainer: GradientExplainer, side: int = 16) -> None:
    for count in (1, 3, 5):
        images = random_images(count, side, seed=count)
        target = torch.tensor([-1, 2, 0, -1, 4])[:count]
        expected = explainer.attribute(images, target)
        found = graph(images, target)
        assert torch.equal(found[1], expected[1])
        for mine, theirs in ((found[0], expected[0]), (found[2], expected[2])):
            assert mine.shape == theirs.shape
            assert float(theirs.abs().max()) > 0
            assert float((mine - theirs).abs().max()) <= 1e-9 * float(theirs.abs().max())
        if expected[3] is None:
            assert found[3] is None
        else:
            torch.testing.assert_close(found[3], expected[3], rtol=1e-6, atol=1e-10)


def assert_only_pure_forward_operators(graph: GraphModule) -> None:
    for node in graph.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            assert "backward" not in str(node.target)
            assert not node.target._schema.is_mutable
        assert node.op in ("placeholder", "get_attr", "call_function", "output")


def convolutions(graph: GraphModule) -> int:
    return sum("convolution" in str(node.target) for node in graph.graph.nodes)


def gradient_through(layers: nn.Module) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        leaf = x.detach().requires_grad_(True)
        result = layers(leaf * 1)  # what writes in place does not write into a leaf
        (gradient,) = torch.autograd.grad((result * result.detach().cos()).sum(), leaf)
        return result.detach(), gradient

    return function


@pytest.mark.parametrize("name", list(MIDDLES))
def test_the_gradient_through_layers_becomes_a_graph_for_any_batch(name: str) -> None:
    function = gradient_through(exact(nn.Sequential(*MIDDLES[name]())).requires_grad_(False))
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(2, 8, 8, 8, dtype=torch.float64, generator=generator)
    before = example.clone()
    graph = trace_autograd_free(function, (example.contiguous(memory_format=torch.channels_last),))
    assert_only_pure_forward_operators(graph)
    assert torch.equal(example, before)
    assert not example.requires_grad
    for count in (1, 3, 5):
        images = torch.randn(count, 8, 8, 8, dtype=torch.float64, generator=generator)
        for mine, theirs in zip(graph(images), function(images), strict=True):
            assert mine.shape == theirs.shape
            assert float((mine - theirs).abs().max()) <= 1e-9 * float(theirs.abs().max())


# fails: a graph that was traced on contiguous inputs has views that an input with channels last does not allow
def test_a_graph_takes_images_with_channels_last() -> None:
    function = gradient_through(exact(nn.MaxPool2d(3, 2, 1)))
    graph = trace_autograd_free(function, (torch.randn(2, 8, 8, 8, dtype=torch.float64),))
    images = torch.randn(3, 8, 8, 8, dtype=torch.float64)
    for mine, theirs in zip(graph(images.contiguous(memory_format=torch.channels_last)), function(images), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


FAMILIES: dict[str, list[str]] = {
    "convolutions": ["strided conv", "grouped conv"],
    "pools": ["max pool that overlaps", "adaptive avg pool", "hardswish"],
    "convnext": ["convnext"],
    "in place": ["in-place residual"],
}


@pytest.mark.parametrize("name", list(FAMILIES))
def test_the_graph_of_an_explainer_computes_what_autograd_does_for_any_batch(name: str) -> None:
    model = exact(Net([layer for part in FAMILIES[name] for layer in MIDDLES[part]()]))
    config = GradientConfig(method="dix2", steps=2, layers=("middle", "stem"))
    explainer = explainer_of(model, ImageSpec(size=(32, 32)), 5, config)
    graph = traced(explainer, 32)
    assert_only_pure_forward_operators(graph)
    assert_graph_equals_eager(graph, explainer, 32)


@pytest.mark.parametrize(
    ("linear", "config"),
    [
        (True, GradientConfig(method="gradcam")),
        (False, GradientConfig(method="ig", steps=2)),
        (True, GradientConfig(method="iia3", steps=2)),
        (False, GradientConfig(method="dix3", steps=2, mode="code")),
    ],
    ids=["gradcam, linear head", "ig", "iia3, linear head", "dix3 as in the code"],
)
def test_methods_on_maps_become_a_graph(linear: bool, config: GradientConfig) -> None:
    model = Net(MIDDLES["strided conv"]())
    if linear:
        model.head = nn.Sequential(nn.Linear(10, 5))
    explainer = explainer_of(exact(model), SPEC, 5, config)
    graph = traced(explainer)
    assert_only_pure_forward_operators(graph)
    assert_graph_equals_eager(graph, explainer)


@pytest.mark.parametrize("method", ["dix1", "gradcam", "layercam", "class-rollout"])
def test_methods_on_attention_become_a_graph(method: str) -> None:
    torch.manual_seed(0)
    model = exact(ScenesViT(width=16, depth=2, heads=2))
    explainer = explainer_of(model, IMAGE_SPEC, 10, GradientConfig(method=method, steps=1))
    graph = traced(explainer, 96)
    assert_only_pure_forward_operators(graph)
    assert_graph_equals_eager(graph, explainer, 96)


@pytest.mark.parametrize("middle", ["in-place residual"])
def test_what_lies_before_a_replaced_layer_is_in_the_graph_once(middle: str) -> None:
    """Plain run: stem, middle and last. Last layer's path: the head alone. Earlier layer's path: last, and its
    gradient.
    """
    model = exact(Net(MIDDLES[middle]()))
    config = GradientConfig(method="dix2", steps=2, layers=("last", "middle"))
    once = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    assert convolutions(traced(explainer_of(model, SPEC, 5, config))) == once + 2


def test_a_packed_projection_runs_once_for_the_prediction_and_its_gradient() -> None:
    """Each use of `nn.MultiheadAttention` cuts its packed weight again; equal parts are one weight, so that the plain
    run and the one with gradients are seen to be one.
    """

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 4, 4)
            self.token = nn.Parameter(torch.randn(1, 1, 8))
            self.blocks = nn.ModuleList(nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))
            self.head = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.stem(x).flatten(2).transpose(1, 2)
            tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1)
            for block in self.blocks:
                tokens = tokens + block(tokens, tokens, tokens, need_weights=False)[0]
            return self.head(tokens[:, 0])

    explainer = explainer_of(exact(Packed()), SPEC, 5, GradientConfig(method="gradient-rollout"))
    graph = traced(explainer)
    assert_graph_equals_eager(graph, explainer)
    assert len([node for node in graph.graph.nodes if node.target is torch.ops.aten._softmax.default]) == 2
    forward = [node for node in graph.graph.nodes if node.target is torch.ops.aten.addmm.default]
    assert len(forward) == 2 * (3 + 1) + 1  # query, key, value and output of two blocks, and the head


def test_an_operator_in_place_on_a_view_gives_the_right_result() -> None:
    """As the mask of a Swin transformer's windows is filled; and with a gradient through what is written."""

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        leaf = x.detach().requires_grad_(True)
        mask = leaf.new_zeros(4)
        mask[1:3] = 2.0
        y = leaf * 3
        y[:, :2].relu_()
        total = (y * mask).square().sum(1)
        return total, torch.autograd.grad(total.sum(), leaf)[0]

    graph = trace_autograd_free(function, (torch.randn(2, 4),))
    assert_only_pure_forward_operators(graph)
    values = torch.tensor([[1.0, -2.0, -3.0, 4.0], [-1.0, 5.0, -3.0, 4.0], [0.5, 2.0, 3.0, -4.0]])
    for found, expected in zip(graph(values), function(values), strict=True):
        torch.testing.assert_close(found, expected)
    assert float(function(values)[1][1, 1]) == 2 * 6 * 6 * 5


def test_control_flow_that_depends_on_data_is_refused() -> None:
    def function(x: Tensor) -> Tensor:
        return x * 2 if float(x.sum()) > 0 else x

    with pytest.raises(ModelError, match="cannot be traced"):
        trace_autograd_free(function, (torch.randn(2, 3),))


def test_a_model_whose_control_flow_depends_on_data_is_refused() -> None:
    class Picky(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if bool(x.mean() > 0) else -x)

    model = exact(Picky(MIDDLES["gelu"]()))
    with pytest.raises(ModelError, match=r"cannot be traced: .*\(in forward, test_autograd_free.py, line \d+\)"):
        traced(explainer_of(model, SPEC, 5, GradientConfig(method="ig", steps=2)))


def test_gradients_without_a_forward_form_are_refused() -> None:
    for layer in (
        nn.ConvTranspose2d(3, 3, 2, 2),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    ):
        layer.requires_grad_(False)

        def function(x: Tensor, layer: nn.Module = layer) -> Tensor:
            leaf = x.detach().requires_grad_(True)
            return torch.autograd.grad(layer(leaf).pow(2).sum(), leaf)[0]

        with pytest.raises(ModelError):
            trace_autograd_free(function, (torch.randn(2, 3, 8, 8),))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "ceiling"),
    [
        (2, 2, 0, False),
        (3, 2, 1, False),
        (3, 2, 0, True),
        (3, 3, 1, True),
        (2, 3, 1, False),
        (5, 2, 2, True),
        ((3, 1), (1, 2), (1, 0), False),
        (3, 1, 1, False),
        ((4, 2), (3, 2), (2, 1), True),
    ],
)
@pytest.mark.parametrize("ties", [False, True])
def test_the_gradient_of_max_pooling_goes_to_the_first_largest_pixel(
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int],
    padding: int | tuple[int, int],
    ceiling: bool,
    ties: bool,
) -> None:
    function = gradient_through(nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceiling))
    generator = torch.Generator().manual_seed(0)
    for height, width in ((9, 12), (8, 7)):
        images = torch.randn(3, 4, height, width, dtype=torch.float64, generator=generator)
        images = images.round() if ties else images
        graph = trace_autograd_free(function, (images[:2],))
        assert not any("index" in str(node.target) or "scatter" in str(node.target) for node in graph.graph.nodes)
        for mine, theirs in zip(graph(images), function(images), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_an_average_pool_with_a_ceiling_is_right_or_refused() -> None:
    def function(x: Tensor) -> Tensor:
        leaf = x.detach().requires_grad_(True)
        pooled = F.avg_pool2d(leaf, 3, 2, ceil_mode=True)
        return torch.autograd.grad(pooled.pow(2).sum(), leaf)[0]

    try:
        graph = trace_autograd_free(function, (torch.randn(2, 3, 8, 8),))
    except ModelError:
        return
    values = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(graph(values), function(values))


def test_a_traced_explainer_is_the_explainer(tiny_explainee: Explainee) -> None:
    explainer = GradientExplainer(tiny_explainee, GradientConfig(method="dix2"))
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    target = torch.tensor([-1, 3, 0])
    for found, expected in zip(TracedExplainer(explainer)(images, target), explainer(images, target), strict=True):
        assert found is not None
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("method", ["dix2", "iia2", "iia3", "ig"])
def test_an_exported_graph_takes_any_batch_with_every_rule(
    method: str, rule: Rule, tiny_explainee: Explainee, tmp_path: Path
) -> None:
    explainer = GradientExplainer(tiny_explainee, GradientConfig(method=method, rule=rule, steps=2)).eval()
    graph = ExplainerGraph(TracedExplainer(explainer)).eval()
    spec, path = tiny_explainee.image_spec, tmp_path / "graph.onnx"
    export_onnx(graph, spec, path, example=graph.example(), outputs=graph.outputs, rewrite=False)
    session = ort.InferenceSession(tmp_path / "graph.onnx")
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    target = np.array([-1, 2, 0, -1, 4])
    expected = ExplainerGraph(explainer)(torch.from_numpy(images), torch.from_numpy(target))
    for count in (1, 3, 5):
        found = session.run(None, {"image": images[:count], "target": target[:count]})
        assert len(found) == 4
        for mine, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(mine, theirs[:count].detach().numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rewrite", [True, False])
def test_a_model_that_fixes_the_batch_is_refused(rewrite: bool, tiny_explainee: Explainee, tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mask = image.float().reshape(2, 32 * 32 * 3).mean(1)[:, None, None, None]
            return mask, target, mask

    graph = ExplainerGraph(GradientExplainer(tiny_explainee, GradientConfig(method="gradcam")))
    spec, path = tiny_explainee.image_spec, tmp_path / "graph.onnx"
    with pytest.raises(ModelError, match=r"inferred ranges|takes? batches"):
        export_onnx(Fixed(), spec, path, example=graph.example(), outputs=graph.outputs, rewrite=rewrite)
