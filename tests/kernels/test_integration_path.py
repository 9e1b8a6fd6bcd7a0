"""`integration_path` against its formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from saccade.errors import UsageError
from saccade.kernels.integration_path import integration_path

POINTS = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)


def random(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def test_every_point_of_every_channel_is_on_the_line() -> None:
    end, baseline = random(2, 4, 3, 5), random(2, 4, 1, 1)
    found = integration_path(end, POINTS, baseline).numpy().reshape(3, 2, 4, 3, 5)
    for step, image, channel, y, x in np.ndindex(3, 2, 4, 3, 5):
        start = float(baseline[image, channel, 0, 0])
        expected = start + float(POINTS[step]) * (float(end[image, channel, y, x]) - start)
        assert found[step, image, channel, y, x] == pytest.approx(expected, abs=1e-14)


def test_a_path_of_two_dimensions_ends_where_the_outer_path_was() -> None:
    end = random(2, 3, 4, 4)
    outer = integration_path(end, POINTS)
    lowest = outer.amin((2, 3), keepdim=True)
    found = integration_path(outer, POINTS[1:], lowest).reshape(2, 3, 2, 3, 4, 4)
    for inner, point, image in np.ndindex(2, 3, 2):
        u = float(POINTS[point]) * end[image]
        r = u.amin((1, 2), keepdim=True)
        torch.testing.assert_close(found[inner, point, image], r + float(POINTS[1 + inner]) * (u - r))


def test_bytes_are_normalised_on_the_way() -> None:
    pixels = (255 * random(2, 5, 7, 3)).to(torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.5)
    found = integration_path(pixels, POINTS, torch.full((1, 3, 1, 1), 0.5), mean=mean, std=std, dtype=torch.float64)
    images = pixels.permute(0, 3, 1, 2).double() / 255
    shift, spread = (torch.tensor(value, dtype=torch.float64).view(1, 3, 1, 1) for value in (mean, std))
    expected = torch.cat([(0.5 + a * (images - 0.5) - shift) / spread for a in POINTS.tolist()])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert found.dtype == torch.float64


def test_the_memory_format_of_the_end_is_kept() -> None:
    end = random(2, 4, 3, 5).contiguous(memory_format=torch.channels_last)
    assert integration_path(end, POINTS).is_contiguous(memory_format=torch.channels_last)
    assert integration_path(end[:, :, :, ::2], POINTS).is_contiguous()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"end": torch.rand(2, 4)}, r"end is floating point \(N, C, …\).* not float32 \(2, 4\)"),
        ({"end": torch.zeros(2, 3, 5, 5, dtype=torch.uint8)}, r"an end of bytes is \(N, H, W, 3\), not uint8"),
        ({"points": torch.rand(2, 2)}, r"points are floating point \(S,\), not float32 \(2, 2\)"),
        ({"points": torch.arange(3)}, "not int64"),
        ({"baseline": torch.rand(2, 3, 1, 1)}, r"baseline .* broadcasts to \(2, 4, 3, 5\), not float32 \(2, 3, 1, 1\)"),
        ({"points": torch.rand(3, device="meta")}, "points is on meta, end on cpu"),
        ({"mean": (0.5,), "std": (1.0,)}, "three numbers for three channels"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], said: str) -> None:
    right = {"end": torch.rand(2, 4, 3, 5), "points": torch.rand(3)}
    with pytest.raises(UsageError, match=said):
        integration_path(**{**right, **change})
