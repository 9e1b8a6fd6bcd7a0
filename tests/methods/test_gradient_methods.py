"""Every gradient method against formulas written out: one image, one point of a path at a time, in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from random_weights import randomise
from torch import Tensor, nn

from saccade.contracts import ImageSpec
from saccade.errors import ModelError, UsageError
from saccade.evaluate.scenes_models import IMAGE_SPEC, ScenesViT
from saccade.methods.explainee import Explainee, fingerprint
from saccade.methods.gradient.config import ALIASES, METHODS, GradientConfig
from saccade.methods.gradient.explainer import GradientExplainer, MapToMask
from saccade.methods.gradient.paths import passes
from saccade.methods.gradient.transformers import AttentionSetting, dix_of_attention
from saccade.methods.quadrature import Rule, quadrature

SPEC = ImageSpec(size=(16, 16))
CLASSES = 5
STEPS = 3
Points = list[tuple[float, float]]
Tail = Callable[[Tensor], Tensor]
GRIDS: dict[Rule, Points] = {
    "riemann": [(k / 3, 1 / 4) for k in range(4)],
    "gauss": [(0.5 - math.sqrt(0.15), 5 / 18), (0.5, 8 / 18), (0.5 + math.sqrt(0.15), 5 / 18)],
}


class ThreeStages(nn.Module):
    """Maps of 8, 4 and 2 pixels a side; values of both signs at every stage."""

    def __init__(self, head: str) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.GELU())
        self.two = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.SiLU())
        self.three = nn.Sequential(nn.Conv2d(8, 10, 3, 2, 1), nn.BatchNorm2d(10), nn.GELU())
        tails: dict[str, list[nn.Module]] = {
            "linear": [nn.Linear(10, CLASSES)],
            "mlp": [nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, CLASSES)],
            "norm": [nn.LayerNorm(10), nn.Linear(10, CLASSES)],
        }
        self.head = nn.Sequential(*tails[head])

    def last(self, maps: Tensor) -> Tensor:
        logits: Tensor = self.head(maps.mean((2, 3)))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.three(self.two(self.one(x))))


def exact(model: nn.Module) -> nn.Module:
    """Random weights, in float64."""
    return randomise(model).double()


@cache
def cnn(head: str) -> ThreeStages:
    model = exact(ThreeStages(head))
    assert isinstance(model, ThreeStages)
    return model


@cache
def vit() -> ScenesViT:
    torch.manual_seed(0)
    model = exact(ScenesViT(width=32, depth=3, heads=2))
    assert isinstance(model, ScenesViT)
    return model


def explainee_of(model: nn.Module, spec: ImageSpec = SPEC, classes: int = CLASSES) -> Explainee:
    return Explainee(model, spec, tuple(map(str, range(classes))), "python:tiny:build", "random", fingerprint(model))


def explain(model: nn.Module, config: GradientConfig, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    spec = IMAGE_SPEC if isinstance(model, ScenesViT) else SPEC
    classes = 10 if isinstance(model, ScenesViT) else CLASSES
    found = GradientExplainer(explainee_of(model, spec, classes), config).attribute(images, target)
    return found[:3]


@pytest.fixture
def images() -> Tensor:
    return torch.randn(4, 3, *SPEC.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def target() -> Tensor:
    return torch.tensor([2, -1, 0, 4])


def assert_close_to_the_largest(found: Tensor, expected: Tensor, share: float = 1e-9) -> None:
    assert found.shape == expected.shape
    for mine, theirs in zip(found, expected, strict=True):
        largest = float(theirs.abs().max())
        assert largest > 0
        assert float((mine - theirs).abs().max()) <= share * largest


# ---- feature maps: the formulas, written out


def gradient(tail: Tail, values: Tensor, label: int) -> Tensor:
    leaf = values.detach().clone().requires_grad_(True)
    return torch.autograd.grad(tail(leaf)[0, label], leaf)[0]


def minimum(maps: Tensor) -> Tensor:
    result = torch.zeros_like(maps)
    for channel in range(maps.shape[1]):
        result[0, channel] = maps[0, channel].min()
    return result


def path_integral(tail: Tail, end: Tensor, label: int, grid: Points) -> Tensor:
    """(u − r) ∘ ∫ v ∘ ∂f/∂v da, summed over channels: (h, w)."""
    start = minimum(end)
    total = torch.zeros_like(end)
    for a, weight in grid:
        v = start + a * (end - start)
        total += weight * v * gradient(tail, v, label)
    return ((end - start) * total).sum(1)[0]


def enlarged(one: Tensor, size: int) -> Tensor:
    return F.interpolate(one[None, None], size=(size, size), mode="bilinear", align_corners=False)[0, 0]


class Naive:
    """One image of a three-stage network, and the published methods on it."""

    def __init__(self, model: ThreeStages, image: Tensor, label: int, grid: Points) -> None:
        self.model, self.x, self.label, self.grid = model, image[None], label, grid
        self.tails: list[Tail] = [
            model.last,
            lambda v: model.last(model.three(v)),
            lambda v: model.last(model.three(model.two(v))),
        ]

    def ends(self, image: Tensor) -> list[Tensor]:
        with torch.no_grad():
            one = self.model.one(image)
            two = self.model.two(one)
            return [self.model.three(two), two, one]

    def gradcam(self) -> Tensor:
        end = self.ends(self.x)[0]
        found = gradient(self.tails[0], end, self.label)
        total = torch.zeros(end.shape[2:], dtype=torch.float64)
        for channel in range(end.shape[1]):
            total += found[0, channel].mean() * end[0, channel]
        return total.clamp(min=0)

    def layercam(self) -> Tensor:
        end = self.ends(self.x)[0]
        return (gradient(self.tails[0], end, self.label).clamp(min=0) * end).sum(1)[0].clamp(min=0)

    def ig(self) -> Tensor:
        total = torch.zeros_like(self.x)
        for a, weight in self.grid:
            total += weight * gradient(self.model, a * self.x, self.label)
        return (self.x * total).sum(1)[0]

    def dix(self, depth: int) -> Tensor:
        ends = self.ends(self.x)[:depth]
        size = ends[-1].shape[-1]
        maps = []
        for tail, end in zip(self.tails, ends, strict=False):
            one = path_integral(tail, end, self.label, self.grid).clamp(min=0)
            maps.append(enlarged(one / one.max(), size))
        result = maps[0].clone()
        if depth > 1:
            result += maps[0] * maps[1]
        if depth > 2:
            result += maps[0] * maps[1] * maps[2]
        return result

    def dix1(self) -> Tensor:
        return self.dix(1)

    def dix2(self) -> Tensor:
        return self.dix(2)

    def dix3(self) -> Tensor:
        return self.dix(3)

    def iia2(self) -> Tensor:
        total = torch.zeros(2, 2, dtype=torch.float64)
        for a, weight in self.grid:
            total += weight * path_integral(self.tails[0], self.ends(a * self.x)[0], self.label, self.grid)
        return total.clamp(min=0)

    def iia3(self) -> Tensor:
        total = torch.zeros(2, 2, dtype=torch.float64)
        for a0, weight0 in self.grid:
            first = self.ends(a0 * self.x)[1]
            start = minimum(first)
            for a1, weight1 in self.grid:
                with torch.no_grad():
                    second = self.model.three(start + a1 * (first - start))
                total += weight0 * weight1 * path_integral(self.tails[0], second, self.label, self.grid)
        return total.clamp(min=0)

    # what the published code computes

    def code_dix1(self) -> Tensor:
        end = self.ends(self.x)[0]
        return (gradient(self.tails[0], end, self.label) * end).clamp(min=0).sum(1)[0]

    def code_dix(self, depth: int) -> Tensor:
        ends = self.ends(self.x)[:depth]
        g = gradient(self.tails[0], ends[0], self.label)
        layers = [sum((g.clamp(min=0) * ends[0].clamp(min=0) for _ in self.grid), torch.zeros_like(g))]
        for tail, end in zip(self.tails[1:], ends[1:], strict=False):
            start = end.min(dim=1, keepdim=True).values.expand_as(end)
            total = torch.zeros_like(end)
            for a, _ in self.grid:
                v = start + a * (end - start)
                distance = torch.linalg.vector_norm((v - start) / STEPS)
                total += (gradient(tail, v, self.label) * v.clamp(min=0) * distance).clamp(min=0)
            layers.append(total)
        size = (ends[1].shape[1], *ends[-1].shape[2:])
        h = [F.interpolate(one[None], size=size, mode="trilinear", align_corners=False)[0, 0] for one in layers]
        if depth == 2:
            return (h[0] + h[0] * h[1]).sum(0)
        return ((h[0] + h[0] * h[1] * h[2]) * h[0]).sum(0)

    def code_dix2(self) -> Tensor:
        return self.code_dix(2)

    def code_dix3(self) -> Tensor:
        return self.code_dix(3)

    def code_iia2(self) -> Tensor:
        total = torch.zeros(2, 2, dtype=torch.float64)
        for a, _ in self.grid:
            end = self.ends(a * self.x)[0]
            total += (gradient(self.tails[0], end, self.label) * end.clamp(min=0)).sum(1)[0]
        return total

    def code_iia3(self) -> Tensor:
        first = [self.ends(a * self.x)[1] for a, _ in self.grid]
        lowest = torch.stack(first).min(dim=0).values
        total = torch.zeros(2, 2, dtype=torch.float64)
        for a1, _ in self.grid:
            with torch.no_grad():
                second = [self.model.three(lowest + a1 * (one - lowest)) for one in first]
            bottom = torch.stack(second).min(dim=0).values
            for end in second:
                for a2, _ in self.grid:
                    v = bottom + a2 * (end - bottom)
                    total += (gradient(self.tails[0], v, self.label) * v.clamp(min=0)).clamp(min=0).sum(1)[0]
        return total


def naive_maps(model: ThreeStages, name: str, images: Tensor, target: Tensor, grid: Points) -> Tensor:
    with torch.no_grad():
        labels = [int(c) if c >= 0 else int(model(x[None]).argmax()) for x, c in zip(images, target, strict=True)]
    return torch.stack([getattr(Naive(model, x, c, grid), name)() for x, c in zip(images, labels, strict=True)])


HEADS = pytest.mark.parametrize("head", ["linear", "mlp", "norm"])
ON_MAPS = ("gradcam", "layercam", "dix1", "dix2", "dix3", "iia2", "iia3")


@HEADS
def test_the_closed_form_is_taken_where_and_only_where_the_head_is_linear(head: str) -> None:
    from saccade.methods.representation import linear_head

    found = linear_head(cnn(head), "three", SPEC)
    assert (found is not None) == (head == "linear")
    assert linear_head(cnn(head), "two", SPEC) is None


@HEADS
@pytest.mark.parametrize("rule", ["riemann", "gauss"])
@pytest.mark.parametrize("method", [*ON_MAPS, "ig"])
def test_a_method_computes_its_published_formula(
    head: str, rule: Rule, method: str, images: Tensor, target: Tensor
) -> None:
    model = cnn(head)
    config = GradientConfig(method=method, steps=STEPS, rule=rule)
    logits, chosen, found = explain(model, config, images, target)
    with torch.no_grad():
        torch.testing.assert_close(logits, model(images), rtol=1e-12, atol=1e-12)
    assert chosen.tolist() == [2, int(logits[1].argmax()), 0, 4]
    expected = naive_maps(model, method, images, target, GRIDS[rule])
    # a map may be 0 all over where nothing is positive; at least one of four must not be
    alive = expected.flatten(1).abs().amax(1) > 0
    assert int(alive.sum()) >= 2
    assert_close_to_the_largest(found[alive], expected[alive])
    assert float(found[~alive].abs().sum()) == 0


@HEADS
@pytest.mark.parametrize("method", ["dix1", "dix2", "dix3", "iia2", "iia3"])
def test_code_mode_computes_what_the_published_code_does_up_to_scale(
    head: str, method: str, images: Tensor, target: Tensor
) -> None:
    model = cnn(head)
    config = GradientConfig(method=method, steps=STEPS, mode="code")
    found = explain(model, config, images, target)[2]
    expected = naive_maps(model, f"code_{method}", images, target, GRIDS["riemann"])
    alive = expected.flatten(1).abs().amax(1) > 0
    assert int(alive.sum()) >= 2
    found, expected = (maps[alive] / maps[alive].abs().amax((1, 2), keepdim=True) for maps in (found, expected))
    assert_close_to_the_largest(found, expected)
    if method != "dix1":
        paper = explain(model, GradientConfig(method=method, steps=STEPS), images, target)[2][alive]
        assert not torch.allclose(found, paper / paper.amax((1, 2), keepdim=True), atol=1e-3)


@pytest.mark.parametrize("mode", ["paper", "code"])
@pytest.mark.parametrize("method", [*ON_MAPS, "ig"])
def test_points_per_pass_do_not_change_the_map(method: str, mode: str, images: Tensor, target: Tensor) -> None:
    settings = [GradientConfig(method=method, steps=STEPS, mode=mode, points_per_pass=n) for n in (0, 1, 2, 9)]  # type: ignore[arg-type]
    first, *others = (explain(cnn("mlp"), config, images, target)[2] for config in settings)
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-12 * float(first.abs().max()))


@pytest.mark.parametrize("mode", ["paper", "code"])
@pytest.mark.parametrize("method", [*ON_MAPS, "ig"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_batch_gives_what_its_images_give_alone(
    method: str, mode: str, head: str, images: Tensor, target: Tensor
) -> None:
    explainer = GradientExplainer(
        explainee_of(cnn(head)),
        GradientConfig(method=method, steps=STEPS, mode=mode),  # type: ignore[arg-type]
    )
    together = explainer.attribute(images, target)
    for index in range(len(images)):
        alone = explainer.attribute(images[index : index + 1], target[index : index + 1])
        for whole, one in zip(together, alone, strict=True):
            assert (whole is None) == (one is None)
            if whole is not None and one is not None:
                torch.testing.assert_close(whole[index : index + 1], one, rtol=1e-9, atol=1e-12)


class TokensAfterNorm(nn.Module):
    """A batch norm that is not folded, between the maps that are read and tokens: its gradient comes transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.ReLU())
        self.norm = nn.BatchNorm2d(6)
        self.mix, self.head = nn.Linear(6, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.maps(x)).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(torch.tanh(self.mix(tokens)).mean(1))
        return logits


@pytest.mark.parametrize("method", ["layercam", "gradcam"])
def test_one_image_alone_is_right_where_a_batch_norm_s_gradient_comes_from_tokens(
    method: str, images: Tensor, target: Tensor
) -> None:
    explainer = GradientExplainer(
        explainee_of(exact(TokensAfterNorm()).float()), GradientConfig(method=method, layers=("maps",))
    )
    together = explainer(images.float(), target)[2]
    for index in range(len(images)):
        alone = explainer(images[index : index + 1].float(), target[index : index + 1])[2]
        torch.testing.assert_close(alone[0], together[index], atol=1e-5, rtol=0)


# dix2 and dix3 in code mode fail with one point: `_published_dix` divides by len(rule) - 1
@pytest.mark.parametrize("mode", ["paper", "code"])
@pytest.mark.parametrize("rule", ["riemann", "gauss", "midpoint"])
@pytest.mark.parametrize("method", [*ON_MAPS, "ig"])
def test_a_single_step_gives_a_finite_map(method: str, rule: str, mode: str, images: Tensor, target: Tensor) -> None:
    config = GradientConfig(method=method, steps=1, rule=rule, mode=mode)  # type: ignore[arg-type]
    assert bool(torch.isfinite(explain(cnn("mlp"), config, images, target)[2]).all())


def test_a_prediction_that_is_explained_is_the_map_of_that_class(images: Tensor) -> None:
    model = cnn("mlp")
    logits, chosen, maps = explain(model, GradientConfig(method="dix2"), images, torch.full((4,), -1))
    assert torch.equal(chosen, logits.argmax(1))
    assert torch.equal(explain(model, GradientConfig(method="dix2"), images, chosen)[2], maps)
    other = explain(model, GradientConfig(method="dix2"), images, (chosen + 1) % CLASSES)[2]
    assert not torch.allclose(other, maps, atol=1e-3)


def test_named_layers_are_read_in_place_of_the_default_ones(images: Tensor, target: Tensor) -> None:
    model = cnn("mlp")
    explainer = GradientExplainer(explainee_of(model), GradientConfig(method="gradcam"))
    assert explainer.layers == ("three",)
    explainer = GradientExplainer(explainee_of(model), GradientConfig(method="gradcam", layers=("two",)))
    found = explainer.attribute(images, target)[2]
    for image, label, one in zip(images, explainer.attribute(images, target)[1], found, strict=True):
        naive = Naive(model, image, int(label), [])
        end = naive.ends(image[None])[1]
        weights = gradient(naive.tails[1], end, int(label)).mean((2, 3), keepdim=True)
        torch.testing.assert_close(one, (weights * end).sum(1)[0].clamp(min=0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", [*ON_MAPS, "ig"])
def test_the_model_passed_in_is_untouched(method: str, images: Tensor, target: Tensor) -> None:
    model = copy.deepcopy(cnn("mlp")).train()
    before = fingerprint(model)
    explainer = GradientExplainer(explainee_of(model), GradientConfig(method=method, steps=2))
    images.requires_grad_(True)
    found = explainer.attribute(images, target)
    assert not any(value.requires_grad for value in found if value is not None)
    assert images.grad is None
    assert fingerprint(model) == before
    for owner in (model, explainer.classifier):
        assert all(not module._forward_hooks and not module._forward_pre_hooks for module in owner.modules())
        assert all(parameter.grad is None for parameter in owner.parameters())
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_explainer_stays_in_eval_mode(images: Tensor, target: Tensor) -> None:
    explainer = GradientExplainer(explainee_of(cnn("mlp")), GradientConfig(method="iia2", steps=2))
    before = explainer.attribute(images, target)[2]
    assert not explainer.train().classifier.training
    assert torch.equal(explainer.attribute(images, target)[2], before)


@HEADS
def test_integrated_gradients_are_complete(head: str, images: Tensor, target: Tensor) -> None:
    model = cnn(head)
    logits, chosen, maps = explain(model, GradientConfig(method="ig", steps=32, rule="gauss"), images, target)
    with torch.no_grad():
        dark = model(torch.zeros_like(images))
    difference = (logits - dark).gather(1, chosen[:, None])[:, 0]
    assert maps.shape == (4, *SPEC.size)
    torch.testing.assert_close(maps.sum((1, 2)), difference, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize("rule", ["riemann", "gauss", "midpoint"])
def test_integrated_gradients_take_the_prediction_and_the_points_that_are_not_the_image(
    rule: Rule, images: Tensor, target: Tensor
) -> None:
    config = GradientConfig(method="ig", steps=STEPS, rule=rule, points_per_pass=2)
    explainer = GradientExplainer(explainee_of(cnn("mlp")), config)
    counts: list[int] = []
    explainer.classifier.register_forward_hook(lambda module, inputs, output: counts.append(len(output)))
    explainer.attribute(images, target)
    assert sum(counts) == len(images) * (1 + STEPS)  # of Riemann's STEPS + 1 points the last is the image
    assert max(counts) == 2 * len(images)


@pytest.mark.parametrize(
    ("at_once", "sizes"),
    [(0, [11]), (11, [11]), (20, [11]), (10, [6, 5]), (5, [4, 4, 3]), (3, [3, 3, 3, 2]), (2, [2] * 5 + [1])],
)
def test_passes_are_as_few_and_as_even_as_they_can_be(at_once: int, sizes: list[int]) -> None:
    rule = quadrature("riemann", 10)
    parts = list(passes(rule, at_once, torch.zeros(1, dtype=torch.float64)))
    assert [len(points) for points, _ in parts] == sizes
    assert torch.cat([points for points, _ in parts]).tolist() == rule.points.tolist()
    assert torch.cat([weights for _, weights in parts]).tolist() == rule.weights.tolist()
    longer = passes(quadrature("riemann", 50).before_end, 8, torch.zeros(1))
    assert [len(points) for points, _ in longer] == [8, 7, 7, 7, 7, 7, 7]


@pytest.mark.parametrize("rule", ["riemann", "gauss"])
@pytest.mark.parametrize("method", ["ig", "dix1", "iia2"])
def test_the_completeness_gap_is_what_the_quadrature_misses_of_the_logit_s_gain(
    method: str, rule: Rule, images: Tensor, target: Tensor
) -> None:
    model = cnn("mlp")
    explainer = GradientExplainer(explainee_of(model), GradientConfig(method=method, steps=STEPS, rule=rule))
    _, chosen, _, gaps = explainer.attribute(images, target)
    assert gaps is not None
    for image, label, gap in zip(images, chosen.tolist(), gaps.tolist(), strict=True):
        walked, gained = 0.0, 0.0
        outer = GRIDS[rule] if method == "iia2" else [(1.0, 1.0)]
        for a, outer_weight in outer:
            if method == "ig":
                tail, start, end = model, torch.zeros_like(image[None]), image[None]
            else:
                tail, end = model.last, model.three(model.two(model.one(a * image[None]))).detach()
                start = minimum(end)
            for b, weight in GRIDS[rule]:
                slope = gradient(tail, start + b * (end - start), label)
                walked += outer_weight * weight * float((slope * (end - start)).sum())
            with torch.no_grad():
                gained += outer_weight * float(tail(end)[0, label] - tail(start)[0, label])
        assert gap == pytest.approx(abs(walked - gained) / abs(gained), rel=1e-6, abs=1e-10)


@pytest.mark.parametrize("method", ["ig", "dix1", "dix3", "iia2", "iia3"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_many_gauss_points_leave_no_completeness_gap(method: str, head: str, images: Tensor, target: Tensor) -> None:
    config = GradientConfig(method=method, steps=32 if method != "iia3" else 12, rule="gauss")
    gap = GradientExplainer(explainee_of(cnn(head)), config).attribute(images, target)[3]
    assert gap is not None
    assert float(gap.max()) <= 0.01


@pytest.mark.parametrize("method", ["gradcam", "layercam"])
def test_what_integrates_nothing_has_no_completeness_gap(method: str, images: Tensor, target: Tensor) -> None:
    explainer = GradientExplainer(explainee_of(cnn("mlp")), GradientConfig(method=method))
    assert explainer.attribute(images, target)[3] is None
    assert not explainer.has_gap


# ---- attention


def through(model: ScenesViT, image: Tensor, replace: dict[int, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Logits of one image and the attention matrices (heads, T, T), with some of them replaced."""
    patches = model.stem(image[None])[0].flatten(1).T
    tokens = torch.cat([model.class_token[0], patches]) + model.position[0]
    used = []
    for number, block in enumerate(model.blocks):
        width = tokens.shape[1]
        size = width // block.heads
        q, k, v = block.qkv(block.norm1(tokens)).split(width, dim=1)
        part = [slice(head * size, (head + 1) * size) for head in range(block.heads)]
        matrix = torch.stack([(q[:, p] @ k[:, p].T / math.sqrt(size)).softmax(1) for p in part])
        matrix = replace.get(number, matrix)
        used.append(matrix)
        mixed = torch.cat([matrix[head] @ v[:, p] for head, p in enumerate(part)], 1)
        tokens = tokens + block.projection(mixed)
        tokens = tokens + block.mlp(block.norm2(tokens))
    return model.head(model.norm(tokens)[0]), used


def evidence(model: ScenesViT, image: Tensor, label: int, replace: dict[int, Tensor]) -> list[Tensor]:
    leaves = {number: matrix.detach().clone().requires_grad_(True) for number, matrix in replace.items()}
    logits, used = through(model, image, leaves)
    found = torch.autograd.grad(logits[label], used)
    return [(matrix.detach() * g).clamp(min=0).mean(0) for matrix, g in zip(used, found, strict=True)]


def rolled(layers: list[Tensor]) -> Tensor:
    identity = torch.eye(layers[0].shape[0], dtype=torch.float64)
    product = identity
    for layer in layers:
        product = ((layer + identity) / (layer + identity).sum(1, keepdim=True)) @ product
    return product[0, 1:].reshape(12, 12)


def summed(parts: list[list[Tensor]], weights: list[float]) -> list[Tensor]:
    return [
        torch.stack([w * p for w, p in zip(weights, of_block, strict=True)]).sum(0)
        for of_block in zip(*parts, strict=True)
    ]


def naive_attention(model: ScenesViT, method: str, image: Tensor, label: int, grid: Points, mode: str) -> Tensor:
    with torch.no_grad():
        matrices = [matrix.detach() for matrix in through(model, image, {})[1]]
    last = len(matrices) - 1
    weights = [weight for _, weight in grid]
    if method == "rollout":
        return rolled([matrix.mean(0) for matrix in matrices])
    if method == "class-rollout":
        row = evidence(model, image, label, {})[last][0]
        carried = {0: row / row.sum()}
        for depth, matrix in enumerate(reversed(matrices[:last])):
            mean, before = matrix.mean(0), carried[depth]
            carried[depth + 1] = torch.zeros_like(before)
            for token in range(len(before)):  # what arrives in a token came from itself and from all
                kept = torch.eye(len(before), dtype=mean.dtype)[token]
                carried[depth + 1] += before[token] * (mean[token] + kept) / (1 + mean[token].sum())
        return carried[last][1:].reshape(12, 12)
    if method == "gradient-rollout":
        return rolled(evidence(model, image, label, {}))
    if method == "iia2":
        parts, products = [], []
        for a0, weight0 in grid:
            with torch.no_grad():
                end = through(model, a0 * image, {})[1][last]
            for a1, weight1 in grid:
                parts.append(evidence(model, a0 * image, label, {last: a1 * end}))
                products.append(weight0 * weight1)
        return rolled(summed(parts, products))
    total = torch.zeros(12, 12, dtype=torch.float64)
    for back in range(int(method[-1])):
        source = matrices[last if mode == "code" else last - back]
        parts = [evidence(model, image, label, {last - back: a * source}) for a, _ in grid]
        total += rolled(summed(parts, weights))
    return total


@pytest.fixture
def scenes() -> Tensor:
    return torch.randn(2, 3, 96, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("rule", ["riemann", "gauss"])
@pytest.mark.parametrize(
    ("method", "mode"),
    [
        ("rollout", "paper"),
        ("class-rollout", "paper"),
        ("gradient-rollout", "paper"),
        ("dix1", "paper"),
        ("dix2", "paper"),
        ("dix2", "code"),
        ("iia2", "paper"),
    ],
)
def test_a_method_on_attention_computes_its_formula(method: str, mode: str, rule: Rule, scenes: Tensor) -> None:
    model = vit()
    config = GradientConfig(method=method, steps=STEPS, rule=rule, mode=mode)  # type: ignore[arg-type]
    logits, chosen, found = explain(model, config, scenes, torch.tensor([3, -1]))
    with torch.no_grad():
        torch.testing.assert_close(logits, model(scenes), rtol=1e-9, atol=1e-9)
    assert chosen.tolist() == [3, int(logits[1].argmax())]
    expected = torch.stack(
        [
            naive_attention(model, method, image, int(label), GRIDS[rule], mode)
            for image, label in zip(scenes, chosen, strict=True)
        ]
    )
    assert_close_to_the_largest(found, expected)
    assert float(found.std()) > 1e-4 * float(found.abs().max())


@pytest.mark.parametrize("method", ["dix1", "dix2", "iia2"])
def test_attention_maps_do_not_depend_on_points_per_pass_or_the_batch(method: str, scenes: Tensor) -> None:
    target = torch.tensor([3, 7])
    first, *others = (
        explain(vit(), GradientConfig(method=method, steps=2, points_per_pass=n), scenes, target)[2] for n in (0, 1, 2)
    )
    alone = [
        explain(vit(), GradientConfig(method=method, steps=2), scenes[i : i + 1], target[i : i + 1]) for i in (0, 1)
    ]
    for other in [*others, torch.cat([one[2] for one in alone])]:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-11 * float(first.max()))


def test_rollout_is_the_same_for_every_class_and_the_others_are_not(scenes: Tensor) -> None:
    labels = torch.tensor([0, 1]), torch.tensor([5, 6])
    one, other = (explain(vit(), GradientConfig(method="rollout"), scenes, target)[2] for target in labels)
    assert torch.equal(one, other)
    for method in ("class-rollout", "gradient-rollout"):
        one, other = (explain(vit(), GradientConfig(method=method), scenes, target)[2] for target in labels)
        assert not torch.allclose(one, other, rtol=1e-3, atol=0)
    assert not GradientConfig(method="rollout").class_specific
    assert all(GradientConfig(method=name).class_specific for name in METHODS if name != "rollout")


@pytest.mark.parametrize("method", ["dix1", "dix2", "iia2"])
def test_many_gauss_points_on_attention_leave_no_completeness_gap(method: str, scenes: Tensor) -> None:
    config = GradientConfig(method=method, steps=32 if method != "iia2" else 12, rule="gauss")
    explainer = GradientExplainer(explainee_of(vit(), IMAGE_SPEC, 10), config)
    gap = explainer.attribute(scenes, torch.full((len(scenes),), -1))[3]
    assert gap is not None
    assert float(gap.max()) <= 0.01


def test_a_model_that_cannot_be_split_at_its_blocks_gives_the_same_maps(scenes: Tensor) -> None:
    explainer = GradientExplainer(explainee_of(vit(), IMAGE_SPEC, 10), GradientConfig(method="dix2", steps=STEPS))
    target = torch.tensor([1, -1, 3])[: len(scenes)]
    expected = explainer.attribute(scenes, target)
    setting = explainer._attribute.__closure__
    assert setting is not None
    whole = next(cell.cell_contents for cell in setting if isinstance(cell.cell_contents, AttentionSetting))
    blind = replace(whole, layout=replace(whole.layout, blocks=("",) * len(whole.layout)))
    found = dix_of_attention(blind, scenes, expected.target, 2)
    torch.testing.assert_close(found.maps, expected.maps, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(found.gap, expected.gap, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("method", ["class-rollout", "gradient-rollout", "dix2", "iia2", "ig"])
def test_attention_is_explained_inside_no_grad(method: str, scenes: Tensor) -> None:
    explainer = GradientExplainer(explainee_of(vit(), IMAGE_SPEC, 10), GradientConfig(method=method, steps=2))
    target = torch.full((len(scenes),), 3)
    expected = explainer.attribute(scenes, target).maps
    with torch.no_grad():
        torch.testing.assert_close(explainer.attribute(scenes, target).maps, expected)


def test_a_transformer_passed_in_is_untouched(scenes: Tensor) -> None:
    model = copy.deepcopy(vit()).train()
    before = fingerprint(model)
    explain(model, GradientConfig(method="dix2", steps=1), scenes, torch.tensor([0, 1]))
    assert fingerprint(model) == before
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


# ---- maps to masks


@pytest.mark.parametrize(("grid", "size"), [((4, 4), (32, 32)), ((7, 7), (50, 50)), ((3, 5), (24, 40))])
def test_a_mask_is_the_positive_part_over_its_largest_value_enlarged(
    grid: tuple[int, int], size: tuple[int, int]
) -> None:
    maps = (
        torch.randn(3, *grid, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-6, 1, 1e4])[:, None, None]
    )
    positive = maps.clamp(min=0)
    scaled = positive / positive.amax((1, 2), keepdim=True)
    expected = F.interpolate(scaled[:, None], size=size, mode="bilinear", align_corners=False)
    found = MapToMask(grid, size)(maps)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    assert float(found.max()) <= 1
    assert float(found.min()) >= 0


def test_a_map_of_the_image_s_own_size_is_only_scaled() -> None:
    maps = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    found = MapToMask(None, (8, 8))(maps)
    assert found.shape == (2, 1, 8, 8)
    assert found.amax((1, 2, 3)).tolist() == [1, 1]
    assert torch.equal(found[:, 0] > 0, maps > 0)


@pytest.mark.parametrize("value", [0.0, -3.0])
@pytest.mark.parametrize("grid", [(4, 4), None])
def test_a_map_without_positive_values_is_an_empty_mask(value: float, grid: tuple[int, int] | None) -> None:
    maps = torch.full((2, *(grid or (16, 16))), value)
    assert torch.equal(MapToMask(grid, (16, 16))(maps), torch.zeros(2, 1, 16, 16))


def test_forward_masks_what_attribute_gives(tiny_explainee: Explainee) -> None:
    explainer = GradientExplainer(tiny_explainee, GradientConfig(method="layercam"))
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([-1, 0, 3])
    logits, chosen, maps, _ = explainer.attribute(images, target)
    found = explainer(images, target)
    assert torch.equal(found[0], logits)
    assert torch.equal(found[1], chosen)
    assert torch.equal(found[2], explainer.mask(maps))
    assert found[2].shape == (3, 1, 32, 32)


# ---- errors


def test_unknown_settings_are_refused_and_near_ones_named() -> None:
    with pytest.raises(UsageError, match=r"no method 'dix4'; did you mean dix"):
        GradientConfig(method="dix4")
    with pytest.raises(UsageError, match=r"no quadrature 'gaus'; did you mean gauss\?"):
        GradientConfig(rule="gaus")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"unknown mode 'paperr'.*paper, code"):
        GradientConfig(mode="paperr")  # type: ignore[arg-type]
    for settings in ({"steps": -1}, {"points_per_pass": -1}):
        with pytest.raises(UsageError, match="positive"):
            GradientConfig(**settings)  # type: ignore[arg-type]


def test_aliases_name_methods() -> None:
    assert set(ALIASES.values()) <= set(METHODS)
    assert not set(ALIASES) & set(METHODS)


def test_default_steps_are_the_published_ones() -> None:
    of = {name: [GradientConfig(method=name).steps_of(attention) for attention in (False, True)] for name in METHODS}
    assert of["iia2"] == [10, 5]
    assert of["dix2"] == [4, 10]
    assert of["ig"][0] == 50
    assert GradientConfig(method="iia2", steps=7).steps_of(True) == 7


@pytest.mark.parametrize("layers", [("thre",), ("two", "thre")])
def test_an_unknown_layer_is_refused_and_the_nearest_named(layers: tuple[str, ...]) -> None:
    method = "gradcam" if len(layers) == 1 else "dix2"
    with pytest.raises(ModelError, match=r"no layer 'thre'; did you mean three"):
        GradientExplainer(explainee_of(cnn("mlp")), GradientConfig(method=method, layers=layers))


def test_too_few_layers_are_refused(tiny_explainee: Explainee) -> None:
    with pytest.raises(ModelError, match=r"dix3 reads 3 layers .* there are 2: late, early; name them with --layer"):
        GradientExplainer(tiny_explainee, GradientConfig(method="dix3"))
    with pytest.raises(ModelError, match=r"dix2 reads 2 layers .* there is 1: late"):
        GradientExplainer(tiny_explainee, GradientConfig(method="dix2", layers=("late",)))


def test_a_layer_without_feature_maps_is_refused(tiny_explainee: Explainee) -> None:
    with pytest.raises(ModelError, match="'head' does not give feature maps"):
        GradientExplainer(tiny_explainee, GradientConfig(method="gradcam", layers=("head",)))


@pytest.mark.parametrize("method", ["rollout", "class-rollout", "gradient-rollout"])
def test_a_method_for_attention_is_refused_on_a_cnn(tiny_explainee: Explainee, method: str) -> None:
    with pytest.raises(ModelError, match="calls no attention"):
        GradientExplainer(tiny_explainee, GradientConfig(method=method))


def test_iia3_and_layers_are_refused_on_attention() -> None:
    with pytest.raises(UsageError, match="iia3 does not exist for attention; take iia2"):
        GradientExplainer(explainee_of(vit(), IMAGE_SPEC, 10), GradientConfig(method="iia3"))
    with pytest.raises(UsageError, match="leave out --layer"):
        GradientExplainer(explainee_of(vit(), IMAGE_SPEC, 10), GradientConfig(method="rollout", layers=("stem",)))


def test_class_rollout_of_a_single_block_is_its_evidence(scenes: Tensor) -> None:
    torch.manual_seed(0)
    model = exact(ScenesViT(width=16, depth=1, heads=2))
    assert isinstance(model, ScenesViT)
    _, chosen, found = explain(model, GradientConfig(method="class-rollout"), scenes, torch.tensor([3, -1]))
    for image, label, one in zip(scenes, chosen, found, strict=True):
        row = evidence(model, image, int(label), {})[0][0]
        torch.testing.assert_close(one, (row / row.sum())[1:].reshape(12, 12), rtol=1e-9, atol=1e-14)


# one pass: the model runs once, with its prediction, and not again for the map
@pytest.mark.parametrize("method", ["gradcam", "layercam", "rollout", "class-rollout", "gradient-rollout"])
def test_what_needs_no_path_takes_the_prediction_s_own_pass(method: str, scenes: Tensor) -> None:
    explainer = GradientExplainer(explainee_of(vit(), IMAGE_SPEC, 10), GradientConfig(method=method))
    runs: list[int] = []
    handle = explainer.classifier.register_forward_hook(lambda module, inputs, output: runs.append(len(output)))
    explainer.attribute(scenes, torch.tensor([3, -1]))
    handle.remove()
    assert runs == [2]


# fails: `dix_of_attention` then asks for block -1, which nothing replaces, and adds a map that is not integrated
@pytest.mark.parametrize("method", ["dix2", "dix3"])
def test_more_blocks_than_there_are_are_refused(method: str) -> None:
    model = ScenesViT(width=16, depth=1, heads=2).eval()
    with pytest.raises((ModelError, UsageError)):
        GradientExplainer(explainee_of(model, IMAGE_SPEC, 10), GradientConfig(method=method))


class Branch(ThreeStages):
    """The second stage inside a residual branch that keeps the size."""

    def __init__(self) -> None:
        super().__init__("mlp")
        self.inside = nn.Conv2d(6, 6, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.last(self.three(self.two(x + self.inside(x))))


def test_a_layer_inside_a_branch_is_refused_where_its_path_cannot_run(images: Tensor, target: Tensor) -> None:
    model = exact(Branch())
    explainer = GradientExplainer(explainee_of(model), GradientConfig(method="dix1", layers=("inside",), steps=STEPS))
    with pytest.raises(ModelError, match="'inside' lies inside a branch"):
        explainer.attribute(images, target)


# fails: `folded` moves the norm into the convolution, so that the convolution's name stands for the norm's output
def test_a_convolution_before_a_norm_that_is_named_is_the_convolution_itself(images: Tensor, target: Tensor) -> None:
    model = cnn("mlp")
    config = GradientConfig(method="gradcam", layers=("three.0",))
    _, chosen, found = explain(model, config, images, target)
    for image, label, one in zip(images, chosen, found, strict=True):
        with torch.no_grad():
            end = model.three[0](model.two(model.one(image[None])))
        found_gradient = gradient(lambda v: model.last(model.three[2](model.three[1](v))), end, int(label))
        expected = (found_gradient.mean((2, 3), keepdim=True) * end).sum(1)[0].clamp(min=0)
        torch.testing.assert_close(one, expected, rtol=1e-9, atol=1e-12)
