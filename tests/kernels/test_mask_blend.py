"""`mask_blend` against a loop over pixels, and its gradients against finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from saccade.errors import UsageError
from saccade.kernels.mask_blend import Branches, mask_blend

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.5)


def random(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def by_loop(images: Tensor, masks: Tensor, baseline: Tensor, keep: bool, remove: bool) -> Tensor:
    count, each, height, width = masks.shape
    behind = baseline.expand(count, 3, height, width)
    found = []
    for kept in [True] * keep + [False] * remove:
        for image in range(count):
            for mask in range(each):
                value = np.empty((3, height, width))
                for channel, y, x in np.ndindex(3, height, width):
                    m = float(masks[image, mask, y, x])
                    m = m if kept else 1 - m
                    blended = m * float(images[image, channel, y, x]) + (1 - m) * float(behind[image, channel, y, x])
                    value[channel, y, x] = (blended - MEAN[channel]) / STD[channel]
                found.append(value)
    return torch.from_numpy(np.stack(found))


@pytest.mark.parametrize("branches", ["keep", "remove", "both"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_it_is_what_a_loop_over_pixels_gives(branches: Branches, channels_last: bool) -> None:
    images, masks, baseline = random(2, 3, 5, 7), random(2, 3, 5, 7), random(1, 3, 5, 1)
    found = mask_blend(images, masks, baseline, mean=MEAN, std=STD, branches=branches, channels_last=channels_last)
    expected = by_loop(images, masks, baseline, branches != "remove", branches != "keep")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert found.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def test_bytes_are_images_between_zero_and_one() -> None:
    pixels = (255 * random(2, 5, 7, 3)).to(torch.uint8)
    images = pixels.permute(0, 3, 1, 2).double() / 255
    masks, baseline = random(2, 1, 5, 7), random(2, 3, 1, 1)
    torch.testing.assert_close(mask_blend(pixels, masks, baseline), mask_blend(images, masks, baseline))


def test_whole_and_empty_masks_give_the_images_themselves() -> None:
    images, baseline = random(2, 3, 5, 7).float(), random(2, 3, 5, 7).float()
    ones = torch.ones(2, 1, 5, 7)
    found = mask_blend(images, ones, baseline, branches="both")
    assert torch.equal(found, torch.cat([images, baseline]))
    assert torch.equal(mask_blend(images, 0 * ones, baseline, branches="both"), torch.cat([baseline, images]))


@pytest.mark.parametrize("branches", ["keep", "remove", "both"])
def test_gradients_go_to_the_masks(branches: Branches) -> None:
    images, baseline = random(2, 3, 3, 4), random(1, 3, 1, 1)
    masks = random(2, 2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda value: mask_blend(images, value, baseline, mean=MEAN, std=STD, branches=branches), (masks,)
    )


def test_what_is_not_contiguous_is_handled() -> None:
    images, masks = random(2, 3, 5, 14)[..., ::2], random(2, 7, 2, 5).permute(0, 2, 3, 1)
    baseline = random(2, 3, 7, 5).mT
    expected = mask_blend(images.contiguous(), masks.contiguous(), baseline.contiguous())
    assert torch.equal(mask_blend(images, masks, baseline), expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": torch.rand(2, 3, 5, 6)}, r"images are floating point \(2, 3, 5, 7\).* not float32 \(2, 3, 5, 6\)"),
        ({"images": torch.zeros(2, 3, 5, 7, dtype=torch.uint8)}, r"images of bytes are \(2, 5, 7, 3\)"),
        ({"images": torch.zeros(2, 3, 5, 7, dtype=torch.int64)}, r"not int64 \(2, 3, 5, 7\)"),
        ({"images": torch.rand(2, 3, 5, 7, requires_grad=True)}, "images gets no gradient"),
        ({"images": torch.rand(2, 3, 5, 7, device="meta")}, "images is on meta, masks on cpu"),
        ({"masks": torch.rand(2, 5, 7)}, r"masks are floating point \(N, A, H, W\).* not float32 \(2, 5, 7\)"),
        ({"masks": torch.ones(2, 1, 5, 7, dtype=torch.bool)}, "not bool"),
        ({"baseline": torch.rand(3, 5, 7)}, r"baseline is .* not float32 \(3, 5, 7\)"),
        ({"baseline": torch.rand(2, 3, 5, 6)}, r"baseline is .*\(3, 5, 7\).* not float32 \(2, 3, 5, 6\)"),
        ({"std": (1.0, 0.0, 1.0)}, "std without a zero"),
        ({"branches": "all"}, "branches is 'keep', 'remove' or 'both', not 'all'"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(change: dict[str, Any], said: str) -> None:
    right = {"images": torch.rand(2, 3, 5, 7), "masks": torch.rand(2, 1, 5, 7), "baseline": torch.rand(1, 3, 1, 1)}
    with pytest.raises(UsageError, match=said):
        mask_blend(**{**right, **change})
