from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from saccade.errors import UsageError
from saccade.methods.perturb import REPLACEMENTS, branches_of, by_branch, make_baseline, perturb


def random_images(rng: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(rng.random(shape, dtype=np.float32))


@pytest.mark.parametrize("baseline_shape", [(4, 3, 9, 13), (1, 3, 1, 1)])
def test_perturb_mixes_image_and_baseline_by_the_mask(
    rng: np.random.Generator, baseline_shape: tuple[int, ...]
) -> None:
    images, mask = random_images(rng, 4, 3, 9, 13), random_images(rng, 4, 1, 9, 13)
    baseline = random_images(rng, *baseline_shape)
    x, m, b = (tensor.double().numpy() for tensor in (images, mask, baseline))
    np.testing.assert_allclose(perturb(images, mask, baseline).numpy(), m * x + (1 - m) * b, atol=2e-7)
    np.testing.assert_allclose(perturb(images, 1 - mask, baseline).numpy(), (1 - m) * x + m * b, atol=2e-7)


def test_mask_one_keeps_and_zero_replaces_to_the_last_bit(rng: np.random.Generator) -> None:
    images = torch.from_numpy(rng.integers(0, 256, (2, 3, 40, 40)).astype(np.float32)) / 255
    baseline = make_baseline(images, "blur", (0, 0, 0))
    mask = (random_images(rng, 2, 1, 40, 40) > 0.5).float()
    assert torch.equal(perturb(images, mask, baseline), torch.where(mask.bool(), images, baseline))


def test_the_gradient_of_the_mask_is_image_minus_baseline(rng: np.random.Generator) -> None:
    images, baseline = random_images(rng, 2, 3, 5, 5).double(), random_images(rng, 2, 3, 5, 5).double()
    mask = random_images(rng, 2, 1, 5, 5).double().requires_grad_()
    perturb(images, mask, baseline).sum().backward()
    torch.testing.assert_close(mask.grad, (images - baseline).sum(1, keepdim=True))


def test_the_black_baseline_is_zero(rng: np.random.Generator) -> None:
    images = random_images(rng, 2, 3, 6, 8)
    replaced = perturb(images, torch.zeros(2, 1, 6, 8), make_baseline(images, "black", (0.1, 0.2, 0.3)))
    assert replaced.shape == images.shape
    assert not replaced.any()


def test_the_mean_baseline_is_the_colour_given(rng: np.random.Generator) -> None:
    images = random_images(rng, 2, 3, 6, 8)
    replaced = perturb(images, torch.zeros(2, 1, 6, 8), make_baseline(images, "mean", [0.1, 0.2, 0.3]))
    expected = np.broadcast_to(np.reshape(np.float32([0.1, 0.2, 0.3]), (1, 3, 1, 1)), images.shape)
    np.testing.assert_array_equal(replaced.numpy(), expected)


@pytest.mark.parametrize("size", [(96, 96), (50, 64), (8, 16), (17, 5)])
def test_the_blurred_baseline_is_scipys_gaussian(rng: np.random.Generator, size: tuple[int, int]) -> None:
    images = random_images(rng, 2, 3, *size)
    sigma = size[1] / 16
    expected = gaussian_filter(
        images.double().numpy(), sigma, mode="nearest", radius=max(1, round(3 * sigma)), axes=(2, 3)
    )
    blurred = make_baseline(images, "blur", (0, 0, 0))
    assert blurred.shape == images.shape
    np.testing.assert_allclose(blurred.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("kind", [*REPLACEMENTS, "#336699"])
def test_one_image_has_many_masks(rng: np.random.Generator, kind: str) -> None:
    images, masks = random_images(rng, 2, 3, 16, 16), random_images(rng, 2, 5, 16, 16)
    baseline = make_baseline(images, kind, (0.1, 0.2, 0.3))
    together = perturb(images, masks, baseline).unflatten(0, (2, 5))
    assert together.shape == (2, 5, 3, 16, 16)
    for index in range(5):
        torch.testing.assert_close(together[:, index], perturb(images, masks[:, index : index + 1], baseline))


@pytest.mark.parametrize("kind", [*REPLACEMENTS, "#336699"])
def test_both_branches_are_normalised_and_kept_comes_first(rng: np.random.Generator, kind: str) -> None:
    images, masks = random_images(rng, 3, 3, 16, 16), random_images(rng, 3, 2, 16, 16)
    baseline, mean, std = make_baseline(images, kind, (0.1, 0.2, 0.3)), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    each = images.repeat_interleave(2, 0), masks.reshape(6, 1, 16, 16)
    behind = baseline.repeat_interleave(2, 0) if len(baseline) > 1 else baseline
    plain = torch.cat([perturb(each[0], each[1], behind), perturb(each[0], 1 - each[1], behind)])
    expected = (plain.double() - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    both = perturb(images, masks, baseline, "both", mean=mean, std=std)
    torch.testing.assert_close(both.double(), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(perturb(images, masks, baseline, "keep", mean=mean, std=std), both[:6])
    torch.testing.assert_close(perturb(images, masks, baseline, "remove", mean=mean, std=std), both[6:])
    half = perturb(images, masks, baseline, "both", mean=mean, std=std, dtype=torch.bfloat16)
    assert torch.equal(half, both.bfloat16())


@pytest.mark.parametrize(("keep", "remove"), [(True, True), (True, False), (False, True)])
def test_answers_are_of_the_branch_that_was_asked_about(keep: bool, remove: bool) -> None:
    masks = torch.tensor([0.25, 0.75]).view(2, 1, 1, 1)
    branches = branches_of(keep, remove)
    shown = perturb(torch.ones(2, 3, 1, 1), masks, torch.zeros(1, 3, 1, 1), branches)
    kept, removed = by_branch(branches, shown[:, 0, 0])
    assert (kept is not None, removed is not None) == (keep, remove)
    if kept is not None:
        torch.testing.assert_close(kept, torch.tensor([[0.25], [0.75]]))
    if removed is not None:
        torch.testing.assert_close(removed, torch.tensor([[0.75], [0.25]]))


def test_the_gradient_of_a_pyramid_is_the_difference_of_its_levels(rng: np.random.Generator) -> None:
    levels = torch.from_numpy(rng.random((1, 5, 3, 4, 4)))
    places = torch.tensor([0.0, 0.1, 0.6, 1.0], dtype=torch.float64)
    mask = places.repeat(1, 1, 4, 1).requires_grad_()
    perturb(levels[:, 0], mask, levels).sum().backward()
    assert mask.grad is not None
    for column, value in enumerate(places.tolist()):
        low = min(int((1 - value) * 4), 3)
        expected = 4 * (levels[0, low] - levels[0, low + 1])[..., column].sum(0)
        torch.testing.assert_close(mask.grad[0, 0, :, column], expected)


def test_a_pyramid_is_blurred_as_much_as_the_mask_lacks(rng: np.random.Generator) -> None:
    images = random_images(rng, 2, 3, 24, 32)
    mask = torch.tensor([0.0, 1 / 7, 0.5, 5 / 7, 0.9, 1.0]).repeat(2, 1, 24, 6)[..., :32]
    found = perturb(images, mask, make_baseline(images, "pyramid", (0, 0, 0))).double().numpy()
    exact = images.double().numpy()

    def blurred(level: int) -> np.ndarray:
        sigma = 2 * level / 7
        return (
            gaussian_filter(exact, sigma, mode="nearest", radius=max(1, round(3 * sigma)), axes=(2, 3))
            if level
            else exact
        )

    for place in range(6):
        position = 7 * (1 - [0.0, 1 / 7, 0.5, 5 / 7, 0.9, 1.0][place])
        low = min(int(position + 1e-6), 6)
        expected = (low + 1 - position) * blurred(low) + (position - low) * blurred(low + 1)
        np.testing.assert_allclose(found[..., place], expected[..., place], atol=1e-5)
    whole = make_baseline(images, "pyramid", (0, 0, 0))
    assert torch.equal(perturb(images, torch.ones(2, 1, 24, 32), whole), images)
    assert torch.equal(perturb(images, torch.zeros(2, 1, 24, 32), whole), make_baseline(images, "blur", (0, 0, 0)))


@pytest.mark.parametrize("kind", [*REPLACEMENTS, "#336699"])
def test_a_baseline_has_the_precision_of_the_images(rng: np.random.Generator, kind: str) -> None:
    images = random_images(rng, 1, 3, 16, 16)
    for dtype in (torch.float32, torch.float64):
        assert make_baseline(images.to(dtype), kind, (0.1, 0.2, 0.3)).dtype == dtype


def test_a_colour_is_three_bytes(rng: np.random.Generator) -> None:
    found = perturb(
        random_images(rng, 2, 3, 4, 4), torch.zeros(2, 1, 4, 4), make_baseline(torch.zeros(1, 3, 4, 4), "#0080fF", ())
    )
    expected = torch.tensor([0, 128 / 255, 1]).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["grey", "#12345", "#1234567", "123456", "#12345g", ""])
def test_an_unknown_baseline_is_answered_with_those_there_are(rng: np.random.Generator, kind: str) -> None:
    with pytest.raises(UsageError, match=rf"unknown baseline '{kind}', .* #808080; there are: black, mean, blur, pyr"):
        make_baseline(random_images(rng, 1, 3, 4, 4), kind, (0, 0, 0))
