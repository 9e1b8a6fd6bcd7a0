"""The colour map is perceptually even; pictures show the mask and leave the rest of the image grey."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageDraw

from saccade.accel.colormap import colour_table, colourise
from saccade.accel.overlay import draw_overlay, draw_parts, enlarge, with_legend, with_names


def oklab(srgb: np.ndarray) -> np.ndarray:
    """Björn Ottosson's OKLab of uint8 sRGB, from the definition: sRGB to linear to cone responses to Lab."""
    value = srgb.astype(np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    cones = linear @ np.array(
        [
            [0.4122214708, 0.2119034982, 0.0883024619],
            [0.5363325363, 0.6806995451, 0.2817188376],
            [0.0514459929, 0.1073969566, 0.6299787005],
        ]
    )
    return np.cbrt(cones) @ np.array(
        [
            [0.2104542553, 1.9779984951, 0.0259040371],
            [0.7936177850, -2.4285922050, 0.7827717662],
            [-0.0040720468, 0.4505937099, -0.8086757660],
        ]
    )


def strides(table: np.ndarray, stride: int) -> np.ndarray:
    points = oklab(table)
    return np.linalg.norm(points[stride:] - points[:-stride], axis=1)


def test_the_conversion_to_oklab_knows_white_and_grey() -> None:
    np.testing.assert_allclose(oklab(np.array([[255, 255, 255], [0, 0, 0]])), [[1, 0, 0], [0, 0, 0]], atol=1e-6)
    assert np.abs(oklab(np.array([[119, 119, 119]]))[0, 1:]).max() < 1e-6


def test_equal_steps_of_the_map_look_equally_large() -> None:
    table = colour_table()
    assert table.shape == (256, 3)
    assert table.dtype == np.uint8
    for stride, ratio in ((8, 1.25), (16, 1.12)):  # rounding to eight bits shows less over more entries
        distance = strides(table, stride)
        assert distance.max() / distance.min() < ratio


def test_the_measure_of_evenness_tells_an_uneven_map() -> None:
    ramp = np.arange(256)
    rainbow = np.stack(
        [np.clip(2 * ramp - 255, 0, 255), 255 - np.abs(2 * ramp - 255), np.clip(255 - 2 * ramp, 0, 255)], 1
    )
    distance = strides(rainbow, 16)
    assert distance.max() / distance.min() > 2


def test_lightness_rises_from_each_entry_to_the_next() -> None:
    lightness = oklab(colour_table())[:, 0]
    assert (np.diff(lightness) > 0).all()
    assert lightness[0] < 0.3
    assert lightness[-1] > 0.9


def test_no_two_entries_are_the_same_colour() -> None:
    assert len(np.unique(colour_table(), axis=0)) == 256


def test_values_take_the_entry_of_their_place() -> None:
    values = np.arange(256, dtype=np.float32).reshape(16, 16) / 255
    coloured = colourise(values)
    assert coloured.shape == (16, 16, 3)
    np.testing.assert_array_equal(coloured, colour_table().reshape(16, 16, 3))


def test_values_outside_are_clipped_and_nan_is_zero() -> None:
    values = np.array([-1, -np.inf, np.nan, 0, 1, 1.5, np.inf], dtype=np.float32)
    first, last = colour_table()[[0, -1]]
    np.testing.assert_array_equal(colourise(values), [first, first, first, first, last, last, last])


# ---- overlay


def photograph(rng: np.random.Generator, height: int = 40, width: int = 60) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def is_grey(picture: np.ndarray) -> np.ndarray:
    return (picture[..., 0] == picture[..., 1]) & (picture[..., 1] == picture[..., 2])


def test_where_the_mask_is_zero_the_picture_is_grey(rng: np.random.Generator) -> None:
    image = photograph(rng)
    picture = draw_overlay(image, np.zeros((40, 60), np.float32))
    assert picture.shape == image.shape
    assert picture.dtype == np.uint8
    assert is_grey(picture).all()


def test_the_grey_follows_the_lightness_of_the_image(rng: np.random.Generator) -> None:
    image = photograph(rng)
    picture = draw_overlay(image, np.zeros((40, 60), np.float32))
    luma = np.asarray(Image.fromarray(image).convert("L")).astype(float)
    assert np.corrcoef(luma.ravel(), picture[..., 0].ravel())[0, 1] > 0.999


def test_where_the_mask_is_one_the_picture_is_coloured_and_elsewhere_it_is_not(rng: np.random.Generator) -> None:
    mask = np.zeros((40, 60), np.float32)
    mask[10:20, 20:40] = 1
    picture = draw_overlay(photograph(rng), mask, outline=None)
    assert is_grey(picture)[mask == 0].all()
    assert not is_grey(picture)[mask == 1].any()


def test_the_photograph_shows_through_less_where_there_is_more_evidence_but_always_shows() -> None:
    mask = np.linspace(0, 1, 6, dtype=np.float32)[None]
    dark, bright = (draw_overlay(np.full((1, 6, 3), level, np.uint8), mask, outline=None) for level in (60, 200))
    contrast = (bright.astype(int) - dark)[0].sum(1).tolist()
    assert all(a > b for a, b in pairwise(contrast))
    assert contrast[-1] > 30


def test_the_outline_is_just_inside_where_the_mask_crosses_one_half(rng: np.random.Generator) -> None:
    image = photograph(rng)
    coarse = rng.random((5, 6)).astype(np.float32)
    mask = np.asarray(Image.fromarray(coarse).resize((60, 40), Image.Resampling.BILINEAR))
    inside = mask > 0.5
    edge = np.zeros_like(inside)
    for y in range(40):
        for x in range(60):
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            edge[y, x] = inside[y, x] and any(not inside[a] for a in around if 0 <= a[0] < 40 and 0 <= a[1] < 60)
    assert edge.any()
    plain, outlined = draw_overlay(image, mask, outline=None), draw_overlay(image, mask)
    assert (outlined[edge] == 255).all()
    np.testing.assert_array_equal(outlined[~edge], plain[~edge])


def test_an_even_mask_has_no_outline(rng: np.random.Generator) -> None:
    image, mask = photograph(rng), np.ones((40, 60), np.float32)
    np.testing.assert_array_equal(draw_overlay(image, mask), draw_overlay(image, mask, outline=None))


# ---- legend


def test_the_legend_is_a_strip_below_an_unchanged_picture(rng: np.random.Generator) -> None:
    picture = photograph(rng, 90, 400)
    whole = with_legend(picture, "tabby cat  93.1%", "cat.jpg")
    assert whole.dtype == np.uint8
    assert whole.shape[0] > 90
    assert whole.shape[1:] == (400, 3)
    np.testing.assert_array_equal(whole[:90], picture)


def test_the_legend_shows_the_colour_map_from_left_to_right(rng: np.random.Generator) -> None:
    strip = with_legend(photograph(rng, 50, 600), "cat")[50:]
    bright = strip.astype(int).max(2) - strip.astype(int).min(2) > 25  # colours; the writing is grey
    rows = np.flatnonzero(bright.sum(1) > 100)
    assert len(rows) > 5
    columns = np.flatnonzero(bright[rows[len(rows) // 2]])
    lightness = oklab(strip[rows[len(rows) // 2], columns[0] : columns[-1] + 1])[:, 0]
    assert (np.diff(lightness) >= -0.01).all()
    assert lightness[-1] - lightness[0] > 0.5


@pytest.mark.parametrize("width", [80, 320, 900])
def test_a_long_title_and_note_fit_between_the_margins(rng: np.random.Generator, width: int) -> None:
    picture = photograph(rng, 30, width)
    strip = with_legend(picture, "W" * 150, "long " * 50)[30:]
    writing = strip[: len(strip) // 2]  # above the colour map
    background = strip[0, 0]
    assert (writing != background).any()
    margin = 4
    assert (writing[:, :margin] == background).all()
    assert (writing[:, -margin:] == background).all()


def test_a_title_that_fits_is_not_cut(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    draw_text = ImageDraw.ImageDraw.text

    def spy(self: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, *args: object, **options: object) -> None:
        written.append(text)
        draw_text(self, xy, text, *args, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", spy)
    with_legend(photograph(rng, 30, 600), "tabby cat  93.1%", "x" * 400)
    assert "tabby cat  93.1%" in written
    assert any(text.startswith("xxx") and text.endswith("…") for text in written)


@pytest.mark.parametrize("text", ["", "two\nlines", "a\r\nb", "not \udcff text", "日本語"])
def test_any_text_can_be_a_title_and_a_note(rng: np.random.Generator, text: str) -> None:
    picture = photograph(rng, 30, 200)
    np.testing.assert_array_equal(with_legend(picture, text, text)[:30], picture)


@pytest.mark.parametrize("width", [1, 5, 40])
def test_a_narrow_picture_gets_a_legend_of_its_width(rng: np.random.Generator, width: int) -> None:
    picture = photograph(rng, 30, width)
    whole = with_legend(picture, "title", "note")
    assert whole.shape[1] == width
    np.testing.assert_array_equal(whole[:30], picture)


# ---- size


@pytest.mark.parametrize("shape", [(320, 320), (320, 900), (2000, 1000)])
def test_large_images_are_not_enlarged(shape: tuple[int, int]) -> None:
    image, mask = np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.float32)
    larger_image, larger_mask = enlarge(image, mask)
    assert larger_image is image
    assert larger_mask is mask


@pytest.mark.parametrize("shape", [(32, 32), (224, 224), (100, 319), (319, 400)])
def test_small_images_are_enlarged_by_the_least_whole_factor(rng: np.random.Generator, shape: tuple[int, int]) -> None:
    image, mask = photograph(rng, *shape), rng.random(shape).astype(np.float32)
    larger_image, larger_mask = enlarge(image, mask)
    factor = larger_mask.shape[0] // shape[0]
    assert larger_mask.shape == (factor * shape[0], factor * shape[1])
    assert larger_image.shape == (*larger_mask.shape, 3)
    assert min(larger_mask.shape) >= 320 > (factor - 1) * min(shape)
    assert mask.min() - 1e-6 <= larger_mask.min() <= larger_mask.max() <= mask.max() + 1e-6


def test_a_thin_image_does_not_become_a_huge_one() -> None:
    shape = (1, 3000)
    larger_image, larger_mask = enlarge(np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.float32))
    assert larger_image.shape[:2] == larger_mask.shape
    assert larger_mask.size < 10**6


def test_each_of_several_masks_has_a_colour_of_its_own_and_an_edge() -> None:
    image = np.full((40, 60, 3), 120, dtype=np.uint8)
    masks = [np.zeros((40, 60), dtype=np.float32) for _ in range(3)]
    for index, mask in enumerate(masks):
        mask[10:30, 5 + 18 * index : 17 + 18 * index] = 1
    picture = draw_parts(image, masks)
    assert np.ptp(picture[:8], axis=2).max() == 0  # grey where no mask is
    inner, edge = (
        [tuple(int(value) for value in picture[row, 10 + 18 * index]) for index in range(3)] for row in (20, 10)
    )
    assert len({*inner, *edge}) == 6
    for inside, border in zip(np.array(inner, float), np.array(edge, float), strict=True):
        shades = [value - value.min() for value in (inside, border)]
        assert np.dot(*shades) / np.linalg.norm(shades[0]) / np.linalg.norm(shades[1]) > 0.98  # the same hue
    named = with_names(picture, "title", "note", ["mask 1", "mask 2", "mask 3"])
    assert named.shape[1] == 60
    assert np.array_equal(named[:40], picture)
    assert named[40:].max() > 150
