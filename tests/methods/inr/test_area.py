from __future__ import annotations

import pytest
import torch
from torch import Tensor

from saccade.methods.inr.area import masks_of_area


@pytest.fixture
def logits() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    values = 3 * torch.randn(2, 3, 60, generator=generator, dtype=torch.float64)
    values[1] = 40 * values[1] + 100  # saturated, and far from zero
    return values


AREAS = torch.tensor([0.02, 0.3, 0.9], dtype=torch.float64)


def test_the_mean_of_a_mask_is_its_area_and_the_order_of_its_pixels_stays(logits: Tensor) -> None:
    masks = masks_of_area(logits, AREAS)
    torch.testing.assert_close(masks.mean(2), AREAS.expand(2, 3), rtol=0, atol=1e-5)
    assert torch.equal(masks[0].argsort(dim=1), logits[0].argsort(dim=1))
    assert float(masks.min()) >= 0
    assert float(masks.max()) <= 1


def test_constant_logits_give_the_area_everywhere() -> None:
    masks = masks_of_area(torch.full((1, 2, 9), 7.0), torch.tensor([0.1, 0.6]))
    torch.testing.assert_close(masks, torch.tensor([0.1, 0.6])[None, :, None].expand(1, 2, 9), rtol=0, atol=1e-5)


def test_float32_holds_the_area_as_well(logits: Tensor) -> None:
    masks = masks_of_area(logits.float(), AREAS.float())
    torch.testing.assert_close(masks.mean(2), AREAS.float().expand(2, 3), rtol=0, atol=1e-3)


def test_the_gradient_is_that_of_finite_differences(logits: Tensor) -> None:
    values = logits[:1].clone().requires_grad_(True)
    weights = torch.randn(1, 3, 60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (found,) = torch.autograd.grad((weights * masks_of_area(values, AREAS)).sum(), values)
    for place in (0, 1, 2):
        for pixel in range(0, 60, 7):
            step = torch.zeros_like(logits[:1])
            step[0, place, pixel] = 1e-3
            up, down = (masks_of_area(logits[:1] + sign * step, AREAS) for sign in (1, -1))
            expected = float((weights * (up - down)).sum()) / 2e-3
            assert float(found[0, place, pixel]) == pytest.approx(expected, abs=2e-4)
    assert float(found.sum()) == pytest.approx(0, abs=1e-6)  # to shift all logits changes nothing


def test_a_mask_stays_where_it_may_lie(logits: Tensor) -> None:
    free = torch.zeros(2, 1, 60, dtype=torch.float64)
    free[:, :, 10:40] = 1
    free[0, 0, 40] = 0.5
    masks = masks_of_area(logits, AREAS, free)
    assert not masks[:, :, :10].any()
    assert not masks[:, :, 41:].any()
    torch.testing.assert_close(masks[:, :2].mean(2), AREAS[:2].expand(2, 2), rtol=0, atol=1e-5)
    # half of the image is free, and nine tenths are asked for: nearly all of it
    torch.testing.assert_close(masks[:, 2].mean(1), 0.999 * free.mean(2)[:, 0], rtol=0, atol=1e-5)
