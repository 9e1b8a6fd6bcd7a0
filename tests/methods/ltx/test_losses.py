from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import Tensor

from saccade.methods.ltx.config import LTXConfig
from saccade.methods.ltx.losses import (
    area_loss,
    complement_loss,
    elsewhere_loss,
    entropy_loss,
    preserve_loss,
    total_loss,
)

Array = np.ndarray


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def preserve_by_hand(logits: Array, target: Array) -> float:
    return float(np.mean([-np.log(row[y]) for row, y in zip(softmax(logits), target, strict=True)]))


def complement_by_hand(logits: Array, target: Array) -> float:
    """−log of the probability of all other classes, added up before the logarithm."""
    rows = zip(softmax(logits), target, strict=True)
    return float(np.mean([-np.log(np.delete(row, y).sum()) for row, y in rows]))


@pytest.fixture
def logits(rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.normal(0, 3, (6, 5)).astype(np.float32))


@pytest.fixture
def target(rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.integers(0, 5, 6))


def test_preserve_is_the_cross_entropy(logits: Tensor, target: Tensor) -> None:
    expected = preserve_by_hand(logits.double().numpy(), target.numpy())
    assert float(preserve_loss(logits, target).mean()) == pytest.approx(expected, rel=1e-5)


def test_complement_is_the_logarithm_of_what_the_others_have(logits: Tensor, target: Tensor) -> None:
    expected = complement_by_hand(logits.double().numpy(), target.numpy())
    assert float(complement_loss(logits, target).mean()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "row",
    [(80.0, -80.0, -80.0), (-80.0, 80.0, -80.0), (80.0, 80.0, -80.0), (80.0, 0.0, 0.0), (0.0, 80.0, 0.0), (-80.0,) * 3],
)
def test_the_losses_are_right_for_extreme_logits(row: tuple[float, ...]) -> None:
    logits, target = torch.tensor([row], requires_grad=True), torch.tensor([0])
    exact = np.array([row], dtype=np.longdouble)
    for loss, by_hand in ((preserve_loss, preserve_by_hand), (complement_loss, complement_by_hand)):
        value = loss(logits, target).sum()
        assert float(value.detach()) == pytest.approx(by_hand(exact, np.array([0])), rel=1e-5, abs=1e-5)
        (gradient,) = torch.autograd.grad(value, logits)
        assert torch.isfinite(gradient).all()


def test_the_complement_has_the_gradient_of_finite_differences(rng: np.random.Generator, target: Tensor) -> None:
    logits = torch.from_numpy(rng.normal(0, 2, (6, 5))).requires_grad_()
    assert torch.autograd.gradcheck(lambda values: complement_loss(values, target), (logits,))


def test_the_complement_rises_with_the_probability_and_rests_once_the_class_is_gone() -> None:
    gaps = [-60.0, -30.0, -10.0, 0.0, 10.0]
    values, slopes = [], []
    for gap in gaps:
        logits = torch.tensor([[gap, 0.0, 0.0]], requires_grad=True)
        loss = complement_loss(logits, torch.tensor([0])).sum()
        values.append(float(loss.detach()))
        slopes.append(float(torch.autograd.grad(loss, logits)[0].abs().max()))
    assert values == sorted(values)
    assert slopes == sorted(slopes)
    assert values[0] == pytest.approx(0, abs=1e-6)  # bounded below, unlike −CE
    assert slopes[0] < 1e-12
    assert slopes[-1] > 0.9


def test_both_area_forms_follow_their_formulas_for_every_image(rng: np.random.Generator) -> None:
    mask = rng.random((3, 1, 8, 9), dtype=np.float32)
    exact = mask.astype(np.float64)
    for form, of in (("l1", exact), ("softplus", np.log1p(np.exp(exact)))):
        expected = [image.mean() for image in of]
        assert area_loss(torch.from_numpy(mask), form).tolist() == pytest.approx(expected, rel=1e-6)  # type: ignore[arg-type]


def test_the_entropy_is_that_of_a_coin_per_pixel(rng: np.random.Generator) -> None:
    mask = rng.random((3, 1, 8, 9), dtype=np.float32)
    expected = [np.mean([entropy([p, 1 - p], base=2) for p in image.ravel().astype(float)]) for image in mask]
    assert entropy_loss(torch.from_numpy(mask)).tolist() == pytest.approx(expected, rel=1e-5)
    decided = torch.from_numpy((mask > 0.5).astype(np.float32)).requires_grad_()
    assert entropy_loss(decided).tolist() == pytest.approx([0, 0, 0], abs=1e-4)
    assert torch.isfinite(torch.autograd.grad(entropy_loss(decided).sum(), decided)[0]).all()
    assert entropy_loss(torch.full((2, 1, 4, 4), 0.5)).tolist() == pytest.approx([1, 1])


def test_the_total_is_the_weighted_sum_of_the_terms(logits: Tensor, target: Tensor, rng: np.random.Generator) -> None:
    removed = torch.from_numpy(rng.normal(0, 3, (6, 5)).astype(np.float32))
    mask = torch.from_numpy(rng.random((6, 1, 4, 4), dtype=np.float32))
    config = LTXConfig(preserve=0.7, complement=2.5, area=1.3, area_form="softplus", entropy=0.4)
    losses = total_loss(logits, removed, mask, target, config)
    exact = mask.double().numpy()
    expected = {
        "preserve": preserve_by_hand(logits.double().numpy(), target.numpy()),
        "complement": complement_by_hand(removed.double().numpy(), target.numpy()),
        "area": np.log1p(np.exp(exact)).mean(),
        "entropy": entropy(np.stack([exact, 1 - exact]), base=2, axis=0).mean(),
    }
    assert {name: float(values.mean()) for name, values in losses.terms.items()} == pytest.approx(expected, rel=1e-5)
    assert all(values.shape == (6,) for values in losses.terms.values())
    weighted = 0.7 * expected["preserve"] + 2.5 * expected["complement"] + 1.3 * expected["area"]
    assert float(losses.total) == pytest.approx(weighted + 0.4 * expected["entropy"], rel=1e-5)


def test_an_image_has_the_losses_that_it_has_alone(logits: Tensor, target: Tensor, rng: np.random.Generator) -> None:
    mask = torch.from_numpy(rng.random((6, 1, 4, 4), dtype=np.float32))
    config = LTXConfig(entropy=1.0)
    together = total_loss(logits, logits.flip(1), mask, target, config)
    for place in range(6):
        only = slice(place, place + 1)
        alone = total_loss(logits[only], logits.flip(1)[only], mask[only], target[only], config)
        for name, values in alone.terms.items():
            assert float(together.terms[name][place]) == pytest.approx(float(values), rel=1e-6)


def test_terms_without_a_weight_are_not_there(logits: Tensor, target: Tensor) -> None:
    mask = torch.full((6, 1, 4, 4), 0.25)
    losses = total_loss(logits, None, mask, target, LTXConfig(complement=0, area=2))
    assert set(losses.terms) == {"preserve", "area"}
    expected = preserve_by_hand(logits.double().numpy(), target.numpy()) + 2 * 0.25
    assert float(losses.total) == pytest.approx(expected, rel=1e-5)
    losses = total_loss(None, logits, mask, target, LTXConfig(preserve=0, area=0))
    assert set(losses.terms) == {"complement"}
    assert float(losses.total) == pytest.approx(complement_by_hand(logits.double().numpy(), target.numpy()), rel=1e-5)


def test_nothing_is_kept_where_the_class_cannot_be(rng: np.random.Generator) -> None:
    mask = torch.from_numpy(rng.uniform(0.01, 0.99, (3, 1, 6, 6)).astype(np.float32))
    elsewhere = torch.zeros(3, 1, 6, 6)
    elsewhere[1, 0, 2:, :4] = 1
    elsewhere[2] = 1
    expected = [0.0]
    for image, where in ((1, [(y, x) for y in range(2, 6) for x in range(4)]), (2, list(np.ndindex(6, 6)))):
        expected.append(-sum(math.log(1 - float(mask[image, 0, y, x])) for y, x in where) / 36)
    assert elsewhere_loss(mask, elsewhere).tolist() == pytest.approx(expected, rel=1e-5)
    full = torch.ones(1, 1, 2, 2, requires_grad=True)
    loss = elsewhere_loss(full, torch.ones(1, 1, 2, 2)).sum()
    assert torch.isfinite(torch.autograd.grad(loss, full)[0]).all()
    half = elsewhere_loss(full.bfloat16(), torch.ones(1, 1, 2, 2))
    assert torch.isfinite(half).all()
    config = LTXConfig(preserve=0.0, area=0.0, elsewhere=3.0)
    logits, target = torch.zeros(3, 4), torch.tensor([0, 1, 2])
    plain = total_loss(None, logits, mask, target, config)
    more = total_loss(None, logits, mask, target, config, elsewhere)
    assert "elsewhere" not in plain.terms
    assert float(more.total - plain.total) == pytest.approx(3 * float(np.mean(expected)), rel=1e-5)
