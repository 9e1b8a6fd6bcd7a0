"""Grad-CAM and LayerCAM on the tokens of transformers, against the formula written out for one image in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from random_weights import randomise
from torch import Tensor, nn

from saccade.contracts import ImageSpec
from saccade.errors import ModelError
from saccade.evaluate.scenes_models import IMAGE_SPEC, ScenesViT
from saccade.methods.explainee import Explainee, fingerprint
from saccade.methods.gradient.config import GradientConfig
from saccade.methods.gradient.explainer import GradientExplainer
from saccade.methods.spatial import SpatialLayers, token_layer

CLASSES = 10
SMALL = ImageSpec(size=(16, 24))


def explainee_of(model: nn.Module, spec: ImageSpec = IMAGE_SPEC) -> Explainee:
    return Explainee(model, spec, tuple(map(str, range(CLASSES))), "python:tiny:build", "random", fingerprint(model))


def scenes_vit() -> ScenesViT:
    torch.manual_seed(0)
    model = randomise(ScenesViT(width=32, depth=3, heads=2)).double()
    assert isinstance(model, ScenesViT)
    return model


class PooledViT(nn.Module):
    """Patches of 4 pixels without a class token, whose mean is classified; the norm comes after the attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.first, self.second = PostNormBlock(16), PostNormBlock(16)
        self.head = nn.Linear(16, CLASSES)

    def after_second(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(tokens).mean(1))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.after_second(self.second(self.first(tokens)))


class PostNormBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix, self.norm = nn.Linear(width, 3 * width), nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.mix(tokens)[:, None].chunk(3, -1)
        out: Tensor = self.norm(tokens + F.scaled_dot_product_attention(q, k, v)[:, 0])
        return out


def images_of(spec: ImageSpec, count: int = 3) -> Tensor:
    return torch.randn(count, 3, *spec.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def cam(method: str, tokens: Tensor, gradient: Tensor, extra: int, grid: tuple[int, int]) -> Tensor:
    """One image's map, patch by patch, from tokens and gradients (T, D)."""
    patches = range(extra, len(tokens))
    mean = torch.stack([gradient[p] for p in patches]).mean(0)
    weight = {"gradcam": lambda p: mean, "layercam": lambda p: gradient[p].clamp(min=0)}[method]
    found = torch.stack([(weight(p) * tokens[p]).sum() for p in patches])
    return found.clamp(min=0).reshape(grid)


@pytest.mark.parametrize("method", ["gradcam", "layercam"])
def test_a_cam_of_tokens_computes_its_formula(method: str) -> None:
    model, images, target = scenes_vit(), images_of(IMAGE_SPEC), torch.tensor([2, -1, 7])
    explainer = GradientExplainer(explainee_of(model), GradientConfig(method=method))
    assert explainer.layers == ("blocks.2.norm1",)
    logits, chosen, maps, gap = explainer.attribute(images, target)
    assert gap is None
    assert not any(tensor.requires_grad for tensor in (logits, chosen, maps))
    for image, label, one, row in zip(images, chosen.tolist(), maps, logits, strict=True):
        patches = model.stem(image[None])[0].flatten(1).T
        tokens = torch.cat([model.class_token[0], patches]) + model.position[0]
        before = model.blocks[:2](tokens[None])[0].detach()
        block = model.blocks[2]
        leaf = block.norm1(before).detach().requires_grad_(True)
        q, k, v = (part.reshape(145, 2, 16).transpose(0, 1) for part in block.qkv(leaf).split(32, 1))
        mixed = ((q @ k.transpose(1, 2) / 4).softmax(2) @ v).transpose(0, 1).reshape(145, 32)
        after = before + block.projection(mixed)
        after = after + block.mlp(block.norm2(after))
        alone = model.head(model.norm(after)[0])
        torch.testing.assert_close(row, alone.detach(), rtol=1e-9, atol=1e-12)
        (gradient,) = torch.autograd.grad(alone[label], leaf)
        torch.testing.assert_close(one, cam(method, leaf.detach(), gradient, 1, (12, 12)), rtol=1e-8, atol=1e-14)
    assert float(maps.amax()) > 0


@pytest.mark.parametrize("method", ["gradcam", "layercam"])
def test_patches_without_a_class_token_are_read_where_the_norm_gives_them(method: str) -> None:
    model, images = randomise(PooledViT()).double(), images_of(SMALL)
    assert isinstance(model, PooledViT)
    explainer = GradientExplainer(explainee_of(model, SMALL), GradientConfig(method=method))
    assert explainer.layers == ("second.norm",)
    _, chosen, maps, _ = explainer.attribute(images, torch.tensor([0, 3, -1]))
    for image, label, one in zip(images, chosen.tolist(), maps, strict=True):
        leaf = model.second(model.first(model.patches(image[None]).flatten(2).transpose(1, 2))).detach()
        leaf.requires_grad_(True)
        (gradient,) = torch.autograd.grad(model.after_second(leaf)[0, label], leaf)
        torch.testing.assert_close(one, cam(method, leaf[0].detach(), gradient[0], 0, (4, 6)), rtol=1e-9, atol=1e-14)


# Captum computes the maps in another way: from the whole model, hooked where the tokens pass as maps
def test_captum_gives_the_same_map() -> None:
    attribution = pytest.importorskip("captum.attr")

    class AsMaps(nn.Module):
        def __init__(self, inside: nn.Module) -> None:
            super().__init__()
            self.inside, self.maps = inside, nn.Identity()

        def forward(self, tokens: Tensor) -> Tensor:
            out = self.inside(tokens)
            maps = self.maps(out[:, 1:].transpose(1, 2).reshape(-1, 32, 12, 12))
            return torch.cat([out[:, :1], maps.flatten(2).transpose(1, 2)], 1)

    model, images = scenes_vit(), images_of(IMAGE_SPEC)
    _, chosen, maps, _ = GradientExplainer(explainee_of(model), GradientConfig()).attribute(
        images, torch.full((3,), -1)
    )
    wrapped = AsMaps(model.blocks[2].norm1)
    model.blocks[2].norm1 = wrapped
    theirs = attribution.LayerGradCam(model, wrapped.maps).attribute(images, target=chosen, relu_attributions=True)
    torch.testing.assert_close(maps, theirs[:, 0].detach(), rtol=1e-8, atol=1e-14)


def test_a_layer_that_is_named_is_read_and_one_whose_patches_count_for_nothing_is_refused() -> None:
    explainee, images = explainee_of(scenes_vit()), images_of(IMAGE_SPEC)
    named = GradientExplainer(explainee, GradientConfig(layers=("blocks.1.norm1",)))
    target = torch.full((3,), 4)
    default = GradientExplainer(explainee, GradientConfig())
    assert named.layers == ("blocks.1.norm1",)
    assert not torch.allclose(named.attribute(images, target).maps, default.attribute(images, target).maps)
    for layer in ("blocks.2.norm2", "norm"):
        with pytest.raises(ModelError, match=f"'{layer}', but on the class token alone"):
            GradientExplainer(explainee, GradientConfig(layers=(layer,)))


def test_the_map_depends_on_the_class() -> None:
    explainer = GradientExplainer(explainee_of(scenes_vit()), GradientConfig(method="gradcam")).double()
    images = images_of(IMAGE_SPEC)
    one, other = (explainer(images, torch.full((3,), label))[2] for label in (1, 5))
    assert not torch.allclose(one, other, atol=1e-3)


# fails: the target's logit is then taken without a gradient
def test_it_works_where_gradients_are_off() -> None:
    explainer = GradientExplainer(explainee_of(scenes_vit()), GradientConfig(method="gradcam"))
    images, target = images_of(IMAGE_SPEC), torch.full((3,), 4)
    expected = explainer.attribute(images, target).maps
    with torch.no_grad():
        assert torch.equal(explainer.attribute(images, target).maps, expected)


def test_the_model_is_left_as_it_was() -> None:
    model = scenes_vit()
    explainer = GradientExplainer(explainee_of(model), GradientConfig(method="layercam")).double()
    explainer(images_of(IMAGE_SPEC), torch.full((3,), -1))
    for owner in (model, explainer.classifier):
        assert all(not module._forward_hooks and not module._forward_pre_hooks for module in owner.modules())
        assert all(parameter.grad is None for parameter in owner.parameters())


@pytest.mark.parametrize(("tokens", "grid", "extra"), [(24, (4, 6), 0), (25, (4, 6), 1), (29, (4, 6), 5)])
def test_patches_are_told_from_the_tokens_before_them(tokens: int, grid: tuple[int, int], extra: int) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.give = nn.Identity()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            patches = F.avg_pool2d(x, 4).flatten(2).transpose(1, 2)
            out: Tensor = self.give(torch.cat([patches.new_zeros(len(x), tokens - 24, 3), patches], 1)).mean(1)
            return out

    layers = SpatialLayers(Tokens(), ("give",), SMALL)
    assert layers.shapes == [(3, *grid)]
    numbered = torch.arange(tokens, dtype=torch.float32).reshape(1, tokens, 1)
    assert layers.read({"give": numbered})[0].flatten().tolist() == list(np.arange(extra, tokens))


def test_a_block_that_normalises_nothing_asks_for_a_layer() -> None:
    model = scenes_vit()
    for block in model.blocks:
        block.norm1 = nn.Identity()
        block.norm2 = nn.Identity()
    with pytest.raises(ModelError, match="normalises no tokens; name a layer that gives them"):
        token_layer(model, IMAGE_SPEC)
    with pytest.raises(ModelError, match="no feature maps"):
        GradientExplainer(explainee_of(model), GradientConfig())
    assert GradientExplainer(explainee_of(model), GradientConfig(layers=("blocks.1",))).layers == ("blocks.1",)
