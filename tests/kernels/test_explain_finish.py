"""`explain_finish` against the pictures that are drawn without it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from saccade.accel.colormap import colour_table
from saccade.accel.overlay import draw_overlay
from saccade.errors import UsageError
from saccade.kernels.explain_finish import explain_finish

TABLE = torch.from_numpy(colour_table().copy())


def maps_and_images(count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 37, 41, 3), generator=generator, dtype=torch.uint8)
    return torch.randn(count, 5, 6, generator=generator), images


@pytest.mark.parametrize("outline", [0.5, 0.2, None])
def test_pictures_are_those_that_are_drawn_from_the_masks(outline: float | None) -> None:
    maps, images = maps_and_images()
    masks, pictures = explain_finish(maps, images, TABLE, outline=outline)
    for image, mask, picture in zip(images.numpy(), masks.numpy(), pictures.numpy(), strict=True):
        drawn = draw_overlay(image, mask, outline=outline)
        assert np.abs(drawn.astype(int) - picture.astype(int)).max() <= 1
        assert (drawn != picture).mean() < 1e-3
        assert (drawn == 255).all(2).sum() == (picture == 255).all(2).sum()


def test_masks_are_enlarged_maps() -> None:
    maps, images = maps_and_images()
    scaled = maps.clamp_min(0) / maps.amax((1, 2), keepdim=True)
    expected = F.interpolate(scaled[:, None], (37, 41), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(explain_finish(maps, images, TABLE)[0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("scale", "ends"),
    [
        ("none", (0.0, 1.0)),
        ("range", (-2.0, 4.0)),
        (0.75, (0.0, 2.5)),  # of −2 … 4 in seven steps
    ],
)
def test_what_becomes_zero_and_one(scale: Any, ends: tuple[float, float]) -> None:
    maps = torch.tensor([[[-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0]]])
    images = torch.zeros(1, 1, 7, 3, dtype=torch.uint8)
    masks, _ = explain_finish(maps, images, TABLE, scale=scale)
    torch.testing.assert_close(masks, ((maps - ends[0]) / (ends[1] - ends[0])).clamp(0, 1))


def test_a_map_of_nothing_is_a_mask_of_nothing() -> None:
    images = torch.zeros(1, 3, 3, 3, dtype=torch.uint8)
    masks, pictures = explain_finish(torch.zeros(1, 2, 2), images, TABLE)
    assert masks.tolist() == torch.zeros(1, 3, 3).tolist()
    assert (pictures == 12).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"maps": torch.rand(2, 1, 5, 6)}, r"maps are floating point \(N, h, w\).* not float32 \(2, 1, 5, 6\)"),
        ({"images": torch.rand(2, 37, 41, 3)}, r"images are uint8 \(2, H, W, 3\), not float32"),
        ({"images": torch.zeros(3, 37, 41, 3, dtype=torch.uint8)}, r"not uint8 \(3, 37, 41, 3\)"),
        ({"table": TABLE[:100]}, r"table is uint8 \(256, 3\), not uint8 \(100, 3\)"),
        ({"table": TABLE.to("meta")}, "table is on meta, maps on cpu"),
        ({"scale": "most"}, "scale is 'none', 'largest', 'range' or a share"),
        ({"scale": 99}, "not 99"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], said: str) -> None:
    maps, images = maps_and_images()
    with pytest.raises(UsageError, match=said):
        explain_finish(**{"maps": maps, "images": images, "table": TABLE, **change})
