"""The last block of a transformer for the tokens that count, beside the whole of it, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from random_weights import randomise
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from saccade.errors import ModelError
from saccade.evaluate.scenes_models import IMAGE_SPEC, ScenesViT
from saccade.export.autograd_free import trace_autograd_free
from saccade.methods.attention import AttentionTap, attention_layout
from saccade.methods.explainee import Explainee, fingerprint
from saccade.methods.gradient.config import GradientConfig
from saccade.methods.gradient.explainer import GradientExplainer
from saccade.methods.last_block import LastBlock, last_block

ONE_PASS = ["gradcam", "layercam", "rollout", "class-rollout", "gradient-rollout"]
SHORTENED = [*ONE_PASS, "ig"]


class MeanOfTokens(ScenesViT):
    """Has a class token, and reads the mean of all."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.tokens(x).mean(1))
        return logits


def made(kind: type[ScenesViT], depth: int = 2) -> ScenesViT:
    torch.manual_seed(0)
    model = randomise(kind(width=32, depth=depth, heads=2)).double()
    assert isinstance(model, ScenesViT)
    return model


def explainer_of(model: ScenesViT, method: str) -> GradientExplainer:
    names = tuple(map(str, range(10)))
    explainee = Explainee(model, IMAGE_SPEC, names, "python:tiny:vit", "random", fingerprint(model))
    steps = 2 if method == "ig" else 0
    return GradientExplainer(explainee, GradientConfig(method=method, steps=steps)).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, *IMAGE_SPEC.size, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def test_the_block_runs_for_the_class_token_alone(images: Tensor) -> None:
    model = made(ScenesViT)
    found = last_block(model, IMAGE_SPEC, attention_layout(model, IMAGE_SPEC))
    assert found == LastBlock("blocks.1", 1, 1)
    widths: list[int] = []
    model.blocks[1].mlp.register_forward_hook(lambda module, inputs, output: widths.append(int(output.shape[1])))
    with torch.no_grad():
        with AttentionTap() as whole:
            expected = model(images)
        with AttentionTap() as short, found.shortened(model, short):
            logits = model(images)
        again = model(images)
    assert widths == [145, 1, 145]
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(again, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(short.matrices[1], whole.matrices[1][:, :, :1], rtol=1e-12, atol=1e-14)
    assert len(short.matrices) == 2


@pytest.mark.parametrize("spelled_out", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("method", SHORTENED)
def test_a_shortened_pass_says_the_same(
    method: str, depth: int, spelled_out: bool, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(ScenesViT, depth)
    explainer = explainer_of(model, method)
    assert explainer._last is not None
    monkeypatch.setattr("saccade.methods.gradient.explainer.last_block", lambda *given: None)
    target = torch.tensor([-1, 2, 7])
    whole = explainer_of(model, method).attribute(images, target, spelled_out=True)
    short = explainer.attribute(images, target, spelled_out=spelled_out)
    torch.testing.assert_close(short.logits, whole.logits, rtol=1e-10, atol=1e-12)
    assert torch.equal(short.target, whole.target)
    torch.testing.assert_close(short.maps, whole.maps, rtol=1e-8, atol=1e-14)
    assert float(whole.maps.max()) > 0


@pytest.mark.parametrize("method", SHORTENED)
def test_where_the_logits_read_all_tokens_nothing_is_left_out(method: str, images: Tensor) -> None:
    model = made(MeanOfTokens)
    assert last_block(model, IMAGE_SPEC, attention_layout(model, IMAGE_SPEC)) is None
    explainer = explainer_of(model, method)
    widths: list[int] = []
    explainer.classifier.blocks[1].mlp.register_forward_hook(
        lambda module, inputs, output: widths.append(int(output.shape[1]))
    )
    found = explainer.attribute(images, torch.tensor([-1, 2, 7]))
    assert widths == [145] * (2 if method == "ig" else 1)
    torch.testing.assert_close(found.logits, model(images))
    expected = explainer.attribute(images, torch.tensor([-1, 2, 7]), spelled_out=True)
    torch.testing.assert_close(found.maps, expected.maps, rtol=1e-8, atol=1e-14)
    assert float(found.maps.abs().max()) > 0


@pytest.mark.parametrize(("method", "fused"), [("gradcam", 2), ("rollout", 0), ("ig", 4)])
def test_only_the_attention_that_is_shortened_is_spelled_out(method: str, fused: int, images: Tensor) -> None:
    explainer = explainer_of(made(ScenesViT, 3), method)
    calls: list[int] = []
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append(func.overloadpacket is operator)
            return func(*args, **(kwargs or {}))

    with Count():
        explainer.attribute(images, torch.tensor([-1, 2, 7]))
    assert sum(calls) == fused


class InHalves(nn.Module):
    """A block that takes large batches apart, so that its attention runs twice."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) if len(x) < 3 else torch.cat([self.block(half) for half in x.chunk(2)])


# fails: the block is finished with keys and values of the class token alone, and the logits are wrong without a word
def test_an_attention_in_another_place_than_on_noise_is_an_error(images: Tensor) -> None:
    model = made(ScenesViT)
    model.blocks[0] = InHalves(model.blocks[0])
    explainer = explainer_of(model, "gradcam")
    torch.testing.assert_close(explainer.attribute(images[:2], torch.tensor([-1, 2])).logits, model(images[:2]))
    with pytest.raises(ModelError, match=r"blocks\.1' came to no attention, or not in its usual place"):
        explainer.attribute(images, torch.tensor([-1, 2, 7]))
    torch.testing.assert_close(explainer.attribute(images[:2], torch.tensor([-1, 2])).logits, model(images[:2]))


class Counted(nn.Module):
    """A block that insists on all its tokens."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 145:
            raise IndexError("tokens are missing")
        found: Tensor = self.block(x)
        return found


def test_a_block_that_wants_all_its_tokens_stays_whole(images: Tensor) -> None:
    model = made(ScenesViT)
    expected = explainer_of(model, "gradcam").attribute(images, torch.tensor([-1, 2, 7]))
    model.blocks[1] = Counted(model.blocks[1])
    assert last_block(model, IMAGE_SPEC, attention_layout(model, IMAGE_SPEC)) is None
    found = explainer_of(model, "gradcam").attribute(images, torch.tensor([-1, 2, 7]))
    torch.testing.assert_close(found.maps, expected.maps, rtol=1e-8, atol=1e-14)


def test_a_layer_that_runs_twice_gives_no_tokens(images: Tensor) -> None:
    model = made(ScenesViT)
    model.blocks[1] = model.blocks[0]
    names = tuple(map(str, range(10)))
    explainee = Explainee(model, IMAGE_SPEC, names, "python:tiny:vit", "random", fingerprint(model))
    with pytest.raises(ModelError, match=r"'blocks\.0\.norm1' runs 2 times for an image; name another"):
        GradientExplainer(explainee, GradientConfig(method="gradcam", layers=("blocks.0.norm1",)))


# fails: with the whole block, the patches go through the last block's MLP as well, and the gradient back through it
@pytest.mark.parametrize(("method", "runs"), [("gradcam", 1), ("rollout", 1), ("class-rollout", 1), ("ig", 2)])
def test_a_graph_does_without_what_nothing_reads(method: str, runs: int) -> None:
    model = made(ScenesViT, depth=3)
    explainer = explainer_of(model, method)
    images = torch.randn(2, 3, *IMAGE_SPEC.size, dtype=torch.float64)
    graph = explainer_graph(explainer, images)
    activations = [
        int(node.meta["val"].shape[1])
        for node in graph.graph.nodes
        if "gelu" in str(node.target) and "val" in node.meta
    ]
    assert activations.count(145) == 2 * runs
    assert activations.count(1) == runs


def explainer_graph(explainer: GradientExplainer, images: Tensor) -> torch.fx.GraphModule:
    def attribute(images: Tensor, target: Tensor) -> object:
        return explainer.attribute(images, target, spelled_out=True)

    return trace_autograd_free(attribute, (images, torch.tensor([0, -1])))
