from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from saccade.contracts import Uint8
from saccade.evaluate.baselines import (
    centre_gaussian,
    grad_cam,
    integrated_gradients,
    random_masks,
    stretch,
)
from saccade.methods.explainee import Explainee


@pytest.fixture
def images(rng: np.random.Generator) -> Uint8:
    return rng.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


def pixels_of(images: Uint8) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).double() / 255


@pytest.fixture
def doubled(tiny_explainee: Explainee) -> nn.Module:
    return copy.deepcopy(tiny_explainee.model).double()


def test_random_masks_depend_on_the_image_alone(images: Uint8) -> None:
    target = np.zeros(5, dtype=np.int64)
    masks = random_masks()(images, target)
    assert masks.shape == (5, 32, 32)
    assert masks.dtype == np.float32
    np.testing.assert_array_equal(random_masks()(images[2:3], target[:1])[0], masks[2])
    assert len({mask.tobytes() for mask in masks}) == 5
    assert abs(float(masks.mean()) - 0.5) < 0.02  # 5,120 uniform values: five deviations of the mean


def test_the_centre_gaussian_is_largest_in_the_middle_and_the_same_for_all(images: Uint8) -> None:
    masks = centre_gaussian(0.25)(images, np.zeros(5, dtype=np.int64))
    assert (masks == masks[0]).all()
    for y in (0, 7, 20):
        for x in (0, 15, 31):
            expected = np.exp(-0.5 * (((y - 15.5) / 8) ** 2 + ((x - 15.5) / 8) ** 2))
            assert masks[0, y, x] == pytest.approx(expected, abs=1e-6)


def test_grad_cam_is_what_its_formula_says(images: Uint8, tiny_explainee: Explainee, doubled: Any) -> None:
    target = np.array([0, 1, 2, 3, 4])
    masks = grad_cam(tiny_explainee.model, "late", tiny_explainee.normalise)(images, target)
    for index, label in enumerate(target):
        maps = doubled.late(doubled.early(tiny_explainee.normalise(pixels_of(images[index : index + 1]))))
        maps = maps.detach().requires_grad_(True)
        doubled.head(doubled.pool(maps).flatten(1))[0, label].backward()
        weights = maps.grad[0].mean((1, 2))
        cam = sum(weights[channel] * maps[0, channel] for channel in range(len(weights))).clamp(min=0)
        large = F.interpolate(cam[None, None], (32, 32), mode="bilinear", align_corners=False)[0, 0]
        expected = (large / large.max() if large.max() > 0 else large).detach().numpy()
        np.testing.assert_allclose(masks[index], expected, atol=2e-5)


def test_integrated_gradients_are_the_integral_from_black(
    images: Uint8, tiny_explainee: Explainee, doubled: nn.Module
) -> None:
    target = np.array([3, 0, 1, 1, 2])
    masks = integrated_gradients(tiny_explainee.model, tiny_explainee.normalise, steps=256)(images, target)
    black = tiny_explainee.normalise(torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    for index, label in enumerate(target):
        end = tiny_explainee.normalise(pixels_of(images[index : index + 1]))
        total = torch.zeros_like(end)
        for step in range(400):  # the midpoint rule
            point = (black + (step + 0.5) / 400 * (end - black)).requires_grad_(True)
            (gradient,) = torch.autograd.grad(doubled(point)[0, int(label)], point)
            total += gradient / 400
        expected = ((end - black) * total)[0].sum(0).abs()
        expected = (expected / expected.max()).detach().numpy()
        np.testing.assert_allclose(masks[index], expected, atol=0.02)  # the network is piecewise linear


def test_gradient_baselines_follow_the_class(images: Uint8, tiny_explainee: Explainee) -> None:
    for explain in (
        grad_cam(tiny_explainee.model, "late", tiny_explainee.normalise),
        integrated_gradients(tiny_explainee.model, tiny_explainee.normalise, steps=8),
    ):
        first = explain(images, np.zeros(5, dtype=np.int64))
        second = explain(images, np.full(5, 4))
        assert float(np.abs(first - second).max()) > 0.1
        assert float(first.min()) >= 0
        assert float(first.max()) <= 1


def test_a_map_of_zeros_stays_a_map_of_zeros() -> None:
    maps = np.zeros((2, 3, 3))
    maps[1, 1, 2] = 4
    assert stretch(maps).sum() == 1
    assert stretch(maps)[1, 1, 2] == 1
