from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from saccade.contracts import ImageSpec
from saccade.methods.explainee import Explainee, fingerprint
from saccade.methods.features import noise_images
from saccade.methods.fold import fast_for_input_gradients, folded

SPEC = ImageSpec(size=(24, 24))


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.running_mean.normal_(0, 0.5, generator=generator)
                module.running_var.uniform_(0.3, 2, generator=generator)
                module.weight.normal_(1, 0.3, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
    return model


def assert_equal(original: nn.Module, found: nn.Module, spec: ImageSpec = SPEC) -> None:
    images = torch.randn(4, 3, *spec.size, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected = copy.deepcopy(original).eval()(images)
        torch.testing.assert_close(found(images), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


class Straight(nn.Module):
    def __init__(self, **options: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, 1, 1, **options)
        self.norm2 = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.stem(x)).relu()
        logits: Tensor = self.head(self.norm2(self.conv(x)).relu().mean((2, 3)))
        return logits


class Forked(Straight):
    """The stem's output goes into a norm, and past it."""

    def __init__(self, past: float = 1.0) -> None:
        super().__init__()
        self.past = past

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        x = self.norm1(stem).relu() + self.past * stem
        logits: Tensor = self.head(self.norm2(self.conv(x)).relu().mean((2, 3)))
        return logits


class TwoNorms(Straight):
    """One convolution, two norms of it."""

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        logits: Tensor = self.head(self.conv(self.norm1(stem).relu() + self.norm2(stem).sigmoid()).mean((2, 3)))
        return logits


class Shared(Straight):
    """One norm after two convolutions, and a convolution that runs twice."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.stem(x)).relu()
        x = self.norm1(self.conv(x)).relu()
        logits: Tensor = self.head(self.norm2(self.conv(x)).relu().mean((2, 3)))
        return logits


class NormFirst(Straight):
    """Norm before convolution, as in DenseNet."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        logits: Tensor = self.head(self.conv(self.norm1(x)).mean((2, 3)))
        return logits


def test_the_tiny_model_has_no_norm_left_and_the_same_logits(tiny_explainee: Explainee) -> None:
    found = folded(tiny_explainee.model, tiny_explainee.image_spec)
    assert norms(tiny_explainee.model) == 2
    assert norms(found) == 0
    assert_equal(tiny_explainee.model, found, tiny_explainee.image_spec)


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (Straight, 0),
        (lambda: Straight(groups=8), 0),
        (lambda: Straight(groups=2, dilation=2), 0),
        (Forked, 1),
        (TwoNorms, 2),
        (Shared, 2),
        (NormFirst, 2),
    ],
    ids=["straight", "depthwise", "grouped", "forked", "two norms", "shared", "norm first"],
)
def test_logits_are_equal_and_only_norms_that_can_be_folded_are(build: Callable[[], nn.Module], left: int) -> None:
    torch.manual_seed(0)
    model = randomised(build()).eval()
    found = folded(model, SPEC)
    assert_equal(model, found)
    assert norms(found) == left


# A fold that changes the logits a little, below the tolerance of `_equal`, must not be kept either.
def test_a_fork_of_small_weight_is_not_folded_wrongly() -> None:
    torch.manual_seed(0)
    model = randomised(Forked(past=2e-4)).eval()
    found = folded(model, SPEC)
    images = torch.randn(4, 3, *SPEC.size, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected = model.double()(images)
        torch.testing.assert_close(found.double()(images), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_double_precision_is_kept() -> None:
    torch.manual_seed(0)
    model = randomised(Straight()).double().eval()
    found = folded(model, SPEC)
    images = torch.randn(2, 3, *SPEC.size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(found(images), model(images), rtol=1e-12, atol=1e-12)


def test_the_original_is_untouched_and_the_copy_is_frozen_in_eval_mode() -> None:
    torch.manual_seed(0)
    model = randomised(Straight()).train()
    before = fingerprint(model)
    found = folded(model, SPEC)
    assert fingerprint(model) == before
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert hooks(model) == 0
    assert norms(model) == 2
    assert not any(module.training for module in found.modules())
    assert not any(parameter.requires_grad for parameter in found.parameters())
    assert hooks(found) == 0
    mine = {parameter.data_ptr() for parameter in model.parameters()}
    assert not mine & {parameter.data_ptr() for parameter in found.parameters()}


def test_a_model_without_norms_is_copied() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    found = folded(model, SPEC)
    assert found is not model
    assert_equal(model, found)


def test_what_is_made_fast_has_the_same_gradients_and_leaves_the_model_alone(tiny_explainee: Explainee) -> None:
    found = fast_for_input_gradients(tiny_explainee)
    assert found.spec == tiny_explainee.spec
    assert found.model is not tiny_explainee.model
    assert norms(found.model) == 0
    assert norms(tiny_explainee.model) == 2
    images = noise_images(tiny_explainee.model, tiny_explainee.image_spec, 2).requires_grad_(True)
    expected, own = (
        torch.autograd.grad(model(images)[:, 1].sum(), images)[0] for model in (tiny_explainee.model, found.model)
    )
    assert torch.allclose(own, expected, atol=1e-5 * float(expected.abs().max()))
