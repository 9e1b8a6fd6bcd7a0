from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from saccade.errors import UsageError
from saccade.methods.inr.config import INRConfig, checked_areas
from saccade.methods.inr.objective import area_loss, evidence_loss, sorted_reference


@pytest.mark.parametrize(("area", "expected"), [(0.5, [0, 0, 1, 1]), (0.4, [0, 0, 0.6, 1]), (0.05, [0, 0, 0, 0.2])])
def test_an_ideal_mask_is_zeros_then_ones_and_its_mean_is_the_area(area: float, expected: list[float]) -> None:
    found = sorted_reference(torch.tensor([area]), 4)
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float32))


@pytest.mark.parametrize("pixels", [7, 100, 2304])
def test_the_mean_of_an_ideal_mask_is_its_area(pixels: int) -> None:
    areas = torch.linspace(0.01, 0.99, 23)
    torch.testing.assert_close(sorted_reference(areas, pixels).mean(1), areas, rtol=0, atol=1e-5)


def test_the_area_loss_is_that_of_the_sorted_values() -> None:
    masks = torch.rand(3, 2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    areas = torch.tensor([0.1, 0.37], dtype=torch.float64)
    found = area_loss(masks, sorted_reference(areas, 50))
    for image in range(3):
        for place, area in enumerate(areas.tolist()):
            values = sorted(masks[image, place].tolist())
            ones = 50 * area
            ideal = [min(1.0, max(0.0, ones - (49 - rank))) for rank in range(50)]
            expected = sum((value - wanted) ** 2 for value, wanted in zip(values, ideal, strict=True)) / 50
            assert float(found[image, place]) == pytest.approx(expected, abs=1e-12)


def test_a_mask_of_the_right_area_without_grey_has_no_area_loss() -> None:
    mask = torch.zeros(1, 1, 40)
    mask[0, 0, torch.randperm(40, generator=torch.Generator().manual_seed(1))[:10]] = 1
    assert float(area_loss(mask, sorted_reference(torch.tensor([0.25]), 40))) == 0
    assert float(area_loss(mask, sorted_reference(torch.tensor([0.5]), 40))) > 0.2


def test_evidence_is_the_probability_kept_or_the_one_that_goes() -> None:
    kept = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    removed = 3 * torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = torch.tensor([0, 4, 2, 2])
    stays = -torch.stack([F.softmax(row, 0)[label] for row, label in zip(kept, target, strict=True)]).log()
    goes = -(1 - torch.stack([F.softmax(row, 0)[label] for row, label in zip(removed, target, strict=True)])).log()
    torch.testing.assert_close(evidence_loss(kept, None, target, "preserve"), stays)
    torch.testing.assert_close(evidence_loss(None, removed, target, "delete"), goes)
    torch.testing.assert_close(evidence_loss(kept, removed, target, "dual"), (stays + goes) / 2)


def test_log_odds_in_place_of_probabilities() -> None:
    kept = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.tensor([0, 4, 2, 2])
    own = torch.stack([F.softmax(row, 0)[label] for row, label in zip(kept, target, strict=True)])
    odds = (own / (1 - own)).log()
    torch.testing.assert_close(evidence_loss(kept, None, target, "preserve", odds=True), -odds)
    torch.testing.assert_close(evidence_loss(None, kept, target, "delete", odds=True), odds)


def test_a_class_that_is_certain_still_gains_by_odds() -> None:
    kept = torch.tensor([[60.0, 0.0, 0.0]], requires_grad=True)
    evidence_loss(kept, None, torch.tensor([0]), "preserve", odds=True).sum().backward()
    assert kept.grad is not None
    assert kept.grad[0].tolist() == pytest.approx([-1, 0.5, 0.5])


def test_a_class_that_is_certain_still_has_a_finite_deletion_loss() -> None:
    removed = torch.tensor([[80.0, 0.0, 0.0]], requires_grad=True)
    loss = evidence_loss(None, removed, torch.tensor([0]), "delete").sum()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(80 - math.log(2), abs=1e-4)
    assert removed.grad is not None
    assert float(removed.grad[0, 0]) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("areas", [(0.0,), (1.0,), (0.1, -0.2), (math.nan,), ()])
def test_areas_outside_the_open_interval_are_refused(areas: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="area"):
        checked_areas(areas)
    with pytest.raises(UsageError, match="area"):
        INRConfig(areas=areas)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "preserv"}, "preserve"),
        ({"baselines": ("blur", "white")}, "unknown baseline"),
        ({"baselines": ()}, "at least one baseline"),
        ({"steps": 0}, "at least 1"),
        ({"learning_rate": math.inf}, "learning rate"),
        ({"warmup": 1.0}, "warmup"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        INRConfig(**settings)  # type: ignore[arg-type]


def test_the_grid_has_the_shape_of_the_image() -> None:
    assert INRConfig().grid_of((96, 96)) == (48, 48)
    assert INRConfig().grid_of((224, 448)) == (28, 56)
    assert INRConfig(grid=20).grid_of((300, 150)) == (20, 10)
    with pytest.raises(UsageError, match="finer than the image's 96 pixels"):
        INRConfig(grid=97).grid_of((96, 64))
