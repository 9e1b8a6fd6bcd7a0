"""Reading images of every kind, refusing what is none, and resizing to the model's size."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from saccade.accel.image import MAX_PIXELS, find_images, load_image, resize_image, source_name
from saccade.contracts import ImageSpec, Uint8
from saccade.errors import ImageError

RGB = np.random.default_rng(5).integers(0, 256, (9, 13, 3), dtype=np.uint8)
ORIENTATION = 0x0112


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    opacity = alpha[..., None].astype(np.float64) / 255
    return colour * opacity + 255 * (1 - opacity)


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and has no pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = b"IEND"
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (body, end))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def check_rgb(image: Uint8) -> None:
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3


# ---- kinds of images


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("PPM", {}), ("WEBP", {"lossless": True})]
)
def test_lossless_rgb_files_give_their_pixels(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    path = tmp_path / f"picture.{kind.lower()}"
    Image.fromarray(RGB).save(path, kind, **options)
    for source in (path, str(path), path.read_bytes()):
        image = load_image(source)
        check_rgb(image)
        np.testing.assert_array_equal(image, RGB)


def test_a_smooth_jpeg_comes_back_close_to_what_was_saved() -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    smooth = np.stack([np.tile(ramp, (48, 1)), np.tile(ramp[::-1], (48, 1)), np.full((48, 64), 90, np.uint8)], 2)
    image = load_image(encoded(Image.fromarray(smooth), "JPEG", quality=95, subsampling=0))
    assert np.abs(image.astype(int) - smooth).max() <= 6


def test_greyscale_is_repeated_over_the_channels() -> None:
    image = load_image(encoded(Image.fromarray(RGB[..., 0])))
    np.testing.assert_array_equal(image, np.stack([RGB[..., 0]] * 3, 2))


def test_one_bit_images_are_black_and_white() -> None:
    bits = RGB[..., 0] > 127
    image = load_image(encoded(Image.fromarray(bits)))
    np.testing.assert_array_equal(image, np.stack([bits * 255] * 3, 2))


def palette_image() -> tuple[Image.Image, np.ndarray, np.ndarray]:
    index = RGB[..., 0] % 4
    colours = np.array([[250, 10, 20], [5, 240, 30], [7, 60, 230], [128, 128, 0]], dtype=np.uint8)
    image = Image.fromarray(index, "L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(colours.tobytes())
    return image, index, colours


def test_palette_images_show_their_colours() -> None:
    image, index, colours = palette_image()
    np.testing.assert_array_equal(load_image(encoded(image)), colours[index])


def test_palette_transparency_is_laid_on_white() -> None:
    image, index, colours = palette_image()
    alpha = np.array([0, 255, 100, 200], dtype=np.uint8)
    loaded = load_image(encoded(image, transparency=alpha.tobytes()))
    assert np.abs(loaded - on_white(colours[index], alpha[index])).max() <= 1
    assert (loaded[index == 0] == 255).all()
    np.testing.assert_array_equal(loaded[index == 1], colours[index][index == 1])


def test_one_transparent_palette_colour_is_white() -> None:
    image, index, colours = palette_image()
    loaded = load_image(encoded(image, "GIF", transparency=2))
    np.testing.assert_array_equal(loaded, np.where((index == 2)[..., None], 255, colours[index]))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_one_transparent_colour_of_a_png_is_white(mode: str) -> None:
    pixels = RGB[..., 0] // 64 * 64 if mode == "L" else RGB // 128 * 128
    key = 64 if mode == "L" else (128, 0, 128)
    hit = pixels == key if mode == "L" else (pixels == key).all(2)
    assert hit.any()
    assert not hit.all()
    loaded = load_image(encoded(Image.fromarray(pixels), transparency=key))
    colour = pixels if mode == "RGB" else np.stack([pixels] * 3, 2)
    np.testing.assert_array_equal(loaded, np.where(hit[..., None], 255, colour))


def test_rgba_is_laid_on_white(rng: np.random.Generator) -> None:
    rgba = rng.integers(0, 256, (20, 30, 4), dtype=np.uint8)
    rgba[0, :, 3], rgba[1, :, 3] = 0, 255
    loaded = load_image(encoded(Image.fromarray(rgba)))
    assert np.abs(loaded - on_white(rgba[..., :3], rgba[..., 3])).max() <= 1
    assert (loaded[0] == 255).all()
    np.testing.assert_array_equal(loaded[1], rgba[1, :, :3])
    np.testing.assert_array_equal(load_image(rgba), loaded)


def test_grey_with_alpha_is_laid_on_white(rng: np.random.Generator) -> None:
    grey, alpha = rng.integers(0, 256, (2, 20, 30), dtype=np.uint8)
    image = Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha)))
    loaded = load_image(encoded(image))
    assert np.abs(loaded - on_white(np.stack([grey] * 3, 2), alpha)).max() <= 1


@pytest.mark.parametrize("ink", [(0, 0, 0, 0), (255, 0, 0, 0), (30, 120, 200, 0), (80, 10, 60, 90), (0, 0, 0, 255)])
def test_cmyk_jpeg_is_converted_as_ink_on_white(ink: tuple[int, int, int, int]) -> None:
    image = load_image(encoded(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100, subsampling=0))
    light = 255 - np.array(ink, dtype=np.float64)
    assert np.abs(image - light[:3] * light[3] / 255).max() <= 3


def test_sixteen_bit_grey_is_divided_by_257() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    image = load_image(encoded(Image.fromarray(values)))
    exact = (2 * values.astype(np.int64) + 257) // 514  # values / 257, rounded, in whole numbers
    np.testing.assert_array_equal(image, np.stack([exact] * 3, 2))


@pytest.mark.parametrize("byte_order", ["<u2", ">u2"])
def test_a_dark_sixteen_bit_tiff_stays_dark_in_either_byte_order(byte_order: str) -> None:
    values = np.array([[0, 100, 200, 255]], dtype=np.uint16)
    mode = "I;16" if byte_order == "<u2" else "I;16B"
    data = encoded(Image.frombytes(mode, (4, 1), values.astype(byte_order).tobytes()), "TIFF")
    np.testing.assert_array_equal(load_image(data)[0, :, 0], [0, 0, 1, 1])


def test_float_grey_is_read_by_its_range() -> None:
    fractions = np.array([[0.0, 0.25, 1.0, np.nan]], dtype=np.float32)
    np.testing.assert_array_equal(load_image(Image.fromarray(fractions))[0, :, 0], [0, 64, 255, 0])
    levels = np.array([[-5.0, 2.4, 200.0, 255.0]], dtype=np.float32)
    np.testing.assert_array_equal(load_image(Image.fromarray(levels))[0, :, 0], [0, 2, 200, 255])


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("#ff0000", "#00ff00", "#0000ff")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    np.testing.assert_array_equal(load_image(data), np.full((4, 6, 3), (255, 0, 0)))


def test_one_pixel() -> None:
    assert load_image(encoded(Image.new("RGB", (1, 1), (3, 5, 7)))).tolist() == [[[3, 5, 7]]]


# ---- EXIF orientation

UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: np.rot90(stored, 2),
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("JPEG", {"subsampling": 0})]
)
def test_exif_orientation_is_applied(orientation: int, kind: str, options: dict[str, Any]) -> None:
    plain = load_image(encoded(Image.fromarray(RGB), kind, **options))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    turned = load_image(encoded(Image.fromarray(RGB), kind, exif=exif, **options))
    np.testing.assert_array_equal(turned, UPRIGHT[orientation](plain))


def test_exif_orientation_of_a_pil_image_is_applied() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    with Image.open(io.BytesIO(encoded(Image.fromarray(RGB), exif=exif))) as image:
        np.testing.assert_array_equal(load_image(image), np.rot90(RGB, -1))


def test_an_odd_exif_tag_beside_the_orientation_does_not_cost_the_image() -> None:
    tags = struct.pack("<HHIHH", ORIENTATION, 3, 1, 6, 0) + struct.pack(
        "<HHII", 0x0110, 5, 1, 2
    )  # a model that is a fraction
    odd = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + tags + struct.pack("<I", 0)
    plain = load_image(encoded(Image.fromarray(RGB), "JPEG"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = load_image(encoded(Image.fromarray(RGB), "JPEG", exif=odd))
    np.testing.assert_array_equal(image, np.rot90(plain, -1))


# ---- arrays and PIL images


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (1, 1, 3)])
def test_arrays_of_these_shapes_are_taken_as_they_are(rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    array = rng.integers(0, 256, shape, dtype=np.uint8)
    image = load_image(array)
    check_rgb(image)
    np.testing.assert_array_equal(image, np.broadcast_to(array.reshape(*shape[:2], -1), (*shape[:2], 3)))


def test_arrays_need_not_be_contiguous() -> None:
    np.testing.assert_array_equal(load_image(RGB[::-1, ::2]), RGB[::-1, ::2].copy())


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 3), np.int64),
        np.zeros((4, 4, 3), bool),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((4, 4, 5), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0), np.uint8),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_arrays_of_other_kinds_are_refused_with_their_dtype_and_shape(array: np.ndarray) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(array)
    assert str(array.dtype) in str(caught.value)
    assert str(array.shape) in str(caught.value)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "RGBA", "LA"])
def test_pil_images_of_any_mode_become_rgb(mode: str) -> None:
    image = load_image(Image.fromarray(RGB).convert(mode))
    check_rgb(image)
    assert image.shape == RGB.shape
    if mode in ("RGB", "RGBA", "CMYK"):  # modes that lose nothing
        np.testing.assert_array_equal(image, RGB)


# ---- what cannot be read


def refused(path: Path, *words: str, **options: Any) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(path, **options)
    for word in (str(path), *words):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nothing.png", "there is no file")


def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / ("x" * 5000))


def test_a_folder_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "folder")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.png"
    path.touch()
    refused(path, "0 bytes")


def test_empty_bytes_are_refused() -> None:
    with pytest.raises(ImageError, match="0 bytes"):
        load_image(b"")


def test_a_text_file_named_as_an_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "letter.jpg"
    path.write_text("Dear reader,\nthis is no picture.\n")
    refused(path, "not an image")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_half_a_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"half.{kind.lower()}"
    data = encoded(Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 60, 3), dtype=np.uint8)), kind)
    path.write_bytes(data[: len(data) // 2])
    refused(path, "damaged or incomplete")


def test_a_pil_image_whose_file_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "half.png"
    data = encoded(Image.fromarray(RGB))
    path.write_bytes(data[: len(data) // 2])
    with Image.open(path) as image, pytest.raises(ImageError, match="damaged or incomplete"):
        load_image(image)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM", "TIFF"])
def test_every_prefix_of_a_file_is_refused_or_gives_the_whole_picture(kind: str) -> None:
    image = Image.fromarray(RGB)
    data = encoded(image.quantize() if kind == "GIF" else image, kind)
    whole = load_image(data)
    refusals = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own remarks about damaged tags
        for length in range(len(data)):
            try:
                np.testing.assert_array_equal(load_image(data[:length]), whole)
            except ImageError:
                refusals += 1
    assert refusals > len(data) / 2


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM", "TIFF", "AVIF"])
def test_damaged_bytes_give_an_image_or_an_image_error(kind: str, rng: np.random.Generator) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    image, exif = Image.fromarray(RGB), Image.Exif()
    exif[ORIENTATION], exif[0x010E] = 6, "nothing"
    extra = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "AVIF") else {}
    data = encoded(image.quantize() if kind == "GIF" else image, kind, **extra)
    refusals = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(150):
            damaged = bytearray(data)
            for at in rng.integers(0, min(len(data), 200), 3):
                damaged[at] = rng.integers(0, 256)
            try:
                check_rgb(load_image(bytes(damaged), max_pixels=10**6))
            except ImageError:
                refusals += 1
    assert refusals


# ---- decompression bombs


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(2000, 1500))
    refused(path, "2000×1500", "limit", "max_pixels", max_pixels=2_999_999)
    refused(path, "damaged or incomplete", max_pixels=3_000_000)  # now it is decoded, and has no pixels


def test_the_limit_holds_without_being_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    side = 200_000
    assert side * side > MAX_PIXELS
    path.write_bytes(png_header(side, side))
    refused(path, "make it smaller")


def test_as_many_pixels_as_the_limit_are_read() -> None:
    data = encoded(Image.fromarray(RGB))
    count = RGB.shape[0] * RGB.shape[1]
    np.testing.assert_array_equal(load_image(data, max_pixels=count), RGB)
    with pytest.raises(ImageError, match="limit"):
        load_image(data, max_pixels=count - 1)
    with pytest.raises(ImageError, match="limit"):
        load_image(Image.fromarray(RGB), max_pixels=count - 1)


def test_sources_have_names(tmp_path: Path) -> None:
    assert source_name(tmp_path / "a.png") == str(tmp_path / "a.png")
    assert source_name("a.png") == "a.png"
    assert source_name(b"1234") == "bytes"
    assert source_name(RGB) == "ndarray"
    assert source_name(Image.new("L", (1, 1))) == "Image"


# ---- resize


def triangle_filter(inside: int, outside: int) -> np.ndarray:
    """Weights (outside, inside) of the antialiased linear filter: as wide as the step between output pixels."""
    step = inside / outside
    width = max(step, 1.0)
    weights = np.zeros((outside, inside))
    for out in range(outside):
        centre = (out + 0.5) * step
        for pixel in range(inside):
            weights[out, pixel] = max(0.0, 1 - abs(pixel + 0.5 - centre) / width)
        weights[out] /= weights[out].sum()
    return weights


def smooth_and_noise(rng: np.random.Generator, height: int, width: int) -> Uint8:
    noise = rng.integers(0, 256, (height, width, 3))
    ramp = np.add.outer(np.linspace(0, 150, height), np.linspace(0, 105, width))[..., None]
    return np.where(np.arange(width)[None, :, None] < width // 2, noise, ramp).astype(np.uint8)


@pytest.mark.parametrize("rule", ["squash", "crop"])
@pytest.mark.parametrize("shape", [(70, 111), (111, 70), (20, 15), (24, 40), (1, 1), (3, 200)])
def test_resize_equals_the_antialiased_triangle_filter(
    rng: np.random.Generator, rule: Any, shape: tuple[int, int]
) -> None:
    spec = ImageSpec(size=(24, 32), resize=rule, crop=0.8)
    image = smooth_and_noise(rng, *shape)
    left, top, right, bottom = spec.box(*shape)
    cut = image[top:bottom, left:right].astype(np.float64)
    rows, columns = triangle_filter(cut.shape[0], 24), triangle_filter(cut.shape[1], 32)
    exact = np.einsum("yh,hwc,xw->yxc", rows, cut, columns)
    resized = resize_image(image, spec)
    assert resized.shape == (24, 32, 3)
    assert resized.dtype == np.uint8
    assert np.abs(resized - exact).max() <= 1.01


def test_pixels_outside_the_box_have_no_influence(rng: np.random.Generator) -> None:
    spec = ImageSpec(size=(16, 16), resize="crop", crop=0.7, interpolation="bicubic")
    image = smooth_and_noise(rng, 50, 80)
    left, top, right, bottom = spec.box(50, 80)
    blank = np.full_like(image, 255)
    blank[top:bottom, left:right] = image[top:bottom, left:right]
    np.testing.assert_array_equal(resize_image(image, spec), resize_image(blank, spec))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_an_even_image_stays_even(interpolation: Any) -> None:
    spec = ImageSpec(size=(20, 30), resize="crop", interpolation=interpolation)
    image = np.full((61, 47, 3), (10, 200, 255), dtype=np.uint8)
    np.testing.assert_array_equal(resize_image(image, spec), np.full((20, 30, 3), (10, 200, 255)))


def test_bicubic_is_sharper_than_bilinear_and_both_keep_the_mean() -> None:
    image = (
        np.kron(np.indices((4, 4)).sum(0) % 2 * 155 + 50, np.ones((10, 10)))[..., None].repeat(3, 2).astype(np.uint8)
    )
    soft = resize_image(image, ImageSpec(size=(16, 16), interpolation="bilinear")).astype(float)
    sharp = resize_image(image, ImageSpec(size=(16, 16), interpolation="bicubic")).astype(float)
    assert sharp.std() > soft.std() + 1
    assert abs(soft.mean() - image.mean()) < 1
    assert abs(sharp.mean() - image.mean()) < 1


def test_an_image_of_the_right_size_is_not_touched() -> None:
    assert resize_image(RGB, ImageSpec(size=RGB.shape[:2])) is RGB


def test_an_image_of_the_right_size_is_still_cropped() -> None:
    spec = ImageSpec(size=(32, 32), resize="crop", crop=0.5)
    image = np.zeros((32, 32, 3), np.uint8)
    image[8:24, 8:24] = 255
    np.testing.assert_array_equal(resize_image(image, spec), np.full((32, 32, 3), 255))


def test_the_crop_box_is_inside_centred_and_of_the_right_form(rng: np.random.Generator) -> None:
    for _ in range(500):
        height, width, size_y, size_x = (int(value) for value in rng.integers(1, 700, 4))
        crop = float(rng.uniform(0.05, 1))
        left, top, right, bottom = ImageSpec(size=(size_y, size_x), resize="crop", crop=crop).box(height, width)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert 0 <= (width - right) - left <= 1
        assert 0 <= (height - bottom) - top <= 1
        scale = crop * min(height / size_y, width / size_x)  # image pixels per input pixel
        assert abs((bottom - top) - size_y * scale) <= 0.5 or (bottom - top == 1 and size_y * scale < 1)
        assert abs((right - left) - size_x * scale) <= 0.5 or (right - left == 1 and size_x * scale < 1)


def test_the_whole_crop_reaches_two_opposite_borders() -> None:
    assert ImageSpec(size=(10, 10), resize="crop", crop=1.0).box(60, 90) == (15, 0, 75, 60)
    assert ImageSpec(size=(10, 20), resize="crop", crop=1.0).box(60, 90) == (0, 7, 90, 52)


def test_squash_takes_the_whole_image() -> None:
    assert ImageSpec(size=(7, 5), resize="squash", crop=0.3).box(60, 90) == (0, 0, 90, 60)


# ---- finding files


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_folders_are_searched_with_sub_folders_in_sorted_order(tmp_path: Path) -> None:
    wanted = [tmp_path / "a.png", tmp_path / "b" / "c.jpg", tmp_path / "b" / "d" / "e.webp", tmp_path / "z.gif"]
    touch(*wanted[::-1], tmp_path / "notes.txt", tmp_path / "b" / "noext", tmp_path / "x.png.txt")
    (tmp_path / "folder.png").mkdir()
    assert find_images([tmp_path]) == sorted(wanted)
    assert find_images([str(tmp_path)]) == sorted(wanted)


def test_suffixes_are_found_in_any_case(tmp_path: Path) -> None:
    names = ["a.JPG", "b.Jpeg", "c.PNG", "d.tIf"]
    touch(*(tmp_path / name for name in names), tmp_path / "e.TXT")
    assert [path.name for path in find_images([tmp_path])] == names


def test_paths_keep_the_order_in_which_they_are_given(tmp_path: Path) -> None:
    touch(tmp_path / "folder" / "b.png", tmp_path / "folder" / "a.png", tmp_path / "z.dat", tmp_path / "a.dat")
    found = find_images([tmp_path / "z.dat", tmp_path / "folder", str(tmp_path / "a.dat")])
    assert [path.name for path in found] == ["z.dat", "a.png", "b.png", "a.dat"]


def test_files_that_are_named_are_taken_whatever_their_suffix(tmp_path: Path) -> None:
    touch(tmp_path / "picture")
    assert find_images([tmp_path / "picture"]) == [tmp_path / "picture"]


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"no file or folder.*nowhere"):
        find_images([tmp_path / "a.png", tmp_path / "nowhere"])


def test_a_path_that_cannot_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be read"):
        find_images([tmp_path / ("x" * 5000)])


def test_a_folder_without_images_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    touch(tmp_path / "empty" / "notes.txt")
    with pytest.raises(ImageError, match=r"empty.*\.png"):
        find_images([tmp_path / "empty"])
