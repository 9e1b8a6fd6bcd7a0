"""Images from outside: any file that Pillow reads, as uint8 RGB (H, W, 3), and the resize to the model's size.

What is not plain RGB is made so by fixed rules: EXIF orientation is applied; of an animation the first frame is taken;
transparency is laid on white; 16-bit grey is divided by 257; CMYK, palette, greyscale and the rest go through Pillow.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from ..contracts import ImageSpec, Uint8
from ..errors import ImageError

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "REQUEST_PIXELS",
    "SUFFIXES",
    "ImageSource",
    "find_images",
    "load_image",
    "load_resized",
    "resize_image",
    "source_name",
]

MAX_PIXELS = 100_000_000
REQUEST_PIXELS = 2  # of all images of a request to a server, in units of what one may have
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # decoders that strangers' files may reach
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jp2"}
)

ImageSource = str | os.PathLike[str] | bytes | Image.Image | np.ndarray[Any, Any]

_BY_PROGRAMS = ("EPS",)  # Pillow starts Ghostscript for it: a file could run what it likes
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
_UPRIGHT = {  # EXIF orientation to what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(
    source: ImageSource,
    *,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] | None = None,
    name: str | None = None,
) -> Uint8:
    """Read an image as uint8 RGB (H, W, 3).

    Args:
        source: a path, an encoded image as bytes, a PIL image, or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H,
            W, 4).
        max_pixels: a larger image is refused before it is decoded (decompression bombs).
        formats: of files, by Pillow's names, such as ``"JPEG"``; None for all that Pillow reads. What comes from
            strangers should not reach every decoder there is.
        name: what errors call encoded bytes; None calls them "bytes".

    Raises:
        ImageError: missing, empty, not an image, truncated, or too large.
    """
    return (
        _from_array(source)
        if isinstance(source, np.ndarray)
        else np.asarray(_picture(source, max_pixels, formats, name))
    )


def load_resized(
    source: ImageSource,
    spec: ImageSpec,
    *,
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] | None = None,
    name: str | None = None,
) -> tuple[Uint8, tuple[int, int]]:
    """The same as `load_image` and then `resize_image`, without making the whole image an array, which costs as much
    as to decode it.

    Returns:
        uint8 (h, w, 3) at the model's size; (height, width) of the image.

    Raises:
        ImageError: as by `load_image`.
    """
    if isinstance(source, np.ndarray):
        image = _from_array(source)
        return resize_image(image, spec), image.shape[:2]
    picture = _picture(source, max_pixels, formats, name)
    return _resized(picture, spec), (picture.height, picture.width)


def _picture(
    source: str | os.PathLike[str] | bytes | Image.Image,
    max_pixels: int,
    formats: tuple[str, ...] | None,
    name: str | None,
) -> Image.Image:
    """An image as Pillow's RGB."""
    if isinstance(source, Image.Image):
        with _image_errors("the PIL image"):
            return _to_rgb(source, "the PIL image", max_pixels)
    if isinstance(source, bytes):
        if not source:
            raise ImageError(f"'{name}' is empty (0 bytes)" if name else "the image has 0 bytes")
        return _decode(io.BytesIO(source), name or source_name(source), max_pixels, formats)
    path = Path(source)
    try:
        if not path.exists():
            raise ImageError(f"there is no file '{path}'")
        if path.is_dir():
            raise ImageError(f"'{path}' is a folder, not an image")
        if path.stat().st_size == 0:
            raise ImageError(f"'{path}' is empty (0 bytes)")
        with path.open("rb") as stream:
            return _decode(stream, source_name(source), max_pixels, formats)
    except OSError as error:
        raise _unreadable(path, error) from None


def resize_image(image: Uint8, spec: ImageSpec) -> Uint8:
    """Cut and resize an image (H, W, 3) to the model's size with Pillow's antialiased filter; uint8 (h, w, 3).

    Columns first, then rows, rounded in between: the order is fixed because a cubic filter overshoots.

    Args:
        image: uint8 (H, W, 3), of any size.
        spec: which part of it the model sees, and how large; a bundle's is ``bundle.manifest.image``.
    """
    if image.shape[:2] == spec.size and spec.box(*spec.size) == (0, 0, spec.size[1], spec.size[0]):
        return image
    left, top, right, bottom = spec.box(*image.shape[:2])
    return _scaled(Image.fromarray(image[top:bottom, left:right]), spec)


def _resized(picture: Image.Image, spec: ImageSpec) -> Uint8:
    box, whole = spec.box(picture.height, picture.width), (0, 0, picture.width, picture.height)
    if box == whole and (picture.height, picture.width) == spec.size:
        return np.asarray(picture)
    return _scaled(picture if box == whole else picture.crop(box), spec)


def _scaled(cut: Image.Image, spec: ImageSpec) -> Uint8:
    height, width = spec.size
    columns = cut.resize(
        (width, cut.height), _RESAMPLING[spec.interpolation]
    )  # newer versions of Pillow may take rows first
    return np.asarray(columns.resize((width, height), _RESAMPLING[spec.interpolation]))


def find_images(paths: list[str | os.PathLike[str]]) -> list[Path]:
    """The image files among paths: files as they are, folders searched with their sub-folders, sorted.

    Raises:
        ImageError: a path does not exist, or a folder holds no image.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        try:
            if path.is_dir():
                inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
                if not inside:
                    raise ImageError(f"the folder '{path}' has no images; looked for {', '.join(sorted(SUFFIXES))}")
                found += inside
            elif path.exists():
                found.append(path)
            else:
                raise ImageError(f"there is no file or folder '{path}'")
        except OSError as error:
            raise _unreadable(path, error) from None
    return found


def source_name(source: ImageSource) -> str:
    """How a source is called in messages and results: its path, or what kind of thing it is."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    return "bytes" if isinstance(source, bytes) else type(source).__name__


def _decode(stream: Any, name: str, max_pixels: int, formats: tuple[str, ...] | None) -> Image.Image:
    with _image_errors(f"'{name}'", formats), Image.open(stream, formats=formats) as image:
        if image.format in _BY_PROGRAMS:
            raise ImageError(f"'{name}' is {image.format}, which another program would have to draw; save it as PNG")
        return _to_rgb(image, f"'{name}'", max_pixels)


@contextmanager
def _image_errors(name: str, formats: tuple[str, ...] | None = None) -> Iterator[None]:
    """Turn whatever Pillow raises about an image into an `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        text = f"{name} is not an image that can be read here (its content, whatever its name says)"
        text += f"; {', '.join(formats)} are read" if formats else ""
        raise ImageError(text) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"{name} has more pixels than Pillow decodes; make it smaller first") from None
    except MemoryError:
        raise ImageError(f"{name} does not fit into memory when decoded; make it smaller first") from None
    except Exception as error:  # its decoders also raise struct.error, RuntimeError and more
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ImageError(f"{name} is damaged or incomplete: {reason}") from None


def _unreadable(path: Path, error: OSError) -> ImageError:
    return ImageError(f"'{path}' cannot be read: {error.strerror or error}")


def _to_rgb(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{name} has {width}×{height} = {width * height / 1e6:.0f} megapixels "
            f"and the limit is {max_pixels / 1e6:.0f}; "
            "make it smaller or raise the limit with --max-megapixels (max_pixels)"
        )
    if width == 0 or height == 0:
        raise ImageError(f"{name} has no pixels ({width}×{height})")
    image = _upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_from_array(_to_eight_bits(np.asarray(image))))
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image if image.mode == "RGB" else image.convert("RGB")  # which copies even what is RGB


def _upright(image: Image.Image) -> Image.Image:
    """Apply EXIF orientation; `ImageOps.exif_transpose` also rewrites the other tags, and fails where one is odd."""
    image.load()
    turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def _to_eight_bits(grey: np.ndarray[Any, Any]) -> Uint8:
    """16-bit grey by its range; other grey as 0–255, or as 0–1 where it is float and nothing exceeds 1."""
    values: np.ndarray[Any, np.dtype[np.float64]] = np.nan_to_num(grey.astype(np.float64))
    if grey.dtype.kind == "u" or values.max() > 255:
        values = values / 257
    elif grey.dtype.kind == "f" and values.max() <= 1:
        values = values * 255
    return (values.clip(0, 255) + 0.5).astype(np.uint8)


def _from_array(array: np.ndarray[Any, Any]) -> Uint8:
    shape = array.shape
    if (
        array.dtype != np.uint8
        or array.ndim not in (2, 3)
        or 0 in shape
        or (array.ndim == 3 and shape[2] not in (1, 3, 4))
    ):
        raise ImageError(
            f"an image array is uint8 with shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not {array.dtype} {shape}"
        )
    if array.ndim == 2:
        array = array[..., None]
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    if array.shape[2] == 4:
        picture = Image.fromarray(np.ascontiguousarray(array))
        return np.asarray(_to_rgb(picture, "the array", array.shape[0] * array.shape[1]))
    return np.ascontiguousarray(array)
