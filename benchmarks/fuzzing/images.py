"""Encoded images, whole and damaged."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator
from functools import cache

import numpy as np
from PIL import Image, features

from saccade.accel.image import FORMATS, load_image, load_resized
from saccade.contracts import ImageSpec

from .target import Target

__all__ = ["IMAGES", "damaged", "seed_images"]

MAX_PIXELS = 1_000_000
SPEC = ImageSpec(size=(32, 32), resize="crop")


@cache
def seed_images() -> tuple[bytes, ...]:
    """Small images of all formats and modes that Pillow writes here."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (17, 23, 3), dtype=np.uint8))
    smooth = picture.resize((40, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    animated = {"save_all": True, "append_images": [smooth.rotate(90), smooth], "duration": 50}
    wanted: list[tuple[str, Image.Image, dict[str, object]]] = [
        *(("PNG", smooth.convert(mode), {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        ("PNG", Image.fromarray(rng.integers(0, 65536, (9, 12), dtype=np.uint16)), {}),
        ("PNG", smooth.convert("P"), {"transparency": 3}),
        ("PNG", smooth, animated),
        *(("JPEG", smooth.convert(mode), {}) for mode in ("L", "RGB", "CMYK")),
        ("JPEG", smooth, {"progressive": True, "exif": exif, "icc_profile": b"no profile"}),
        ("JPEG", smooth, {"restart_marker_rows": 1, "comment": b"c" * 100}),
        ("GIF", smooth.convert("P"), {}),
        ("GIF", smooth.convert("P"), animated),
        ("BMP", smooth, {}),
        ("BMP", smooth.convert("1"), {}),
        *(("TIFF", smooth, {"compression": kind}) for kind in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg")),
        ("TIFF", Image.fromarray(rng.random((9, 12), dtype=np.float32)), {}),
        ("PPM", smooth, {}),
        ("PPM", smooth.convert("L"), {}),
        ("ICO", smooth, {}),
        ("TGA", smooth, {"compression": "tga_rle"}),
        ("PCX", smooth, {}),
        ("SGI", smooth, {}),
        ("EPS", smooth, {}),
        ("DDS", smooth, {}),
    ]
    if features.check("webp"):
        wanted += [
            ("WEBP", smooth, {}),
            ("WEBP", smooth.convert("RGBA"), {"lossless": True}),
            ("WEBP", smooth, animated),
        ]
    if features.check("jpg_2000"):
        wanted += [("JPEG2000", smooth, {})]
    if features.check("avif"):
        wanted += [("AVIF", smooth, {})]
    found = []
    for form, image, options in wanted:
        stream = io.BytesIO()
        image.save(stream, form, **options)
        found.append(stream.getvalue())
    return tuple(found)


def damaged(draw: random.Random, data: bytes, other: bytes = b"") -> bytes:
    """The same bytes with some changed, cut off, doubled, put in, or taken from another file."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        place, kind = draw.randrange(len(changed) + 1), draw.randrange(8)
        if kind == 0:
            del changed[place:]
        elif kind == 1:
            del changed[place : place + draw.randrange(1, 20)]
        elif kind == 2:
            changed[place:place] = draw.randbytes(draw.randrange(1, 20))
        elif kind == 3:
            changed[place:place] = changed[: draw.randrange(60)]
        elif kind == 4 and other:
            start = draw.randrange(len(other))
            changed[place : place + 30] = other[start : start + draw.randrange(60)]
        elif kind == 5:
            value = draw.choice((0, 1, -1, 2**15, 2**16 - 1, 2**31 - 1, -(2**31), 2**32 - 1)) & 0xFFFFFFFF
            size = draw.choice((1, 2, 4))
            changed[place : place + size] = struct.pack(draw.choice("<>") + "I", value)[:size]
        elif place < len(changed):
            changed[place] = draw.choice((0, 255, draw.randrange(256), changed[place] ^ 1 << draw.randrange(8)))
    return bytes(changed)


def _with_right_checksums(data: bytes) -> bytes:
    """A damaged PNG whose chunks say the right checksum, so that the damage reaches the decoder."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    out, place = bytearray(data[:8]), 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        body = data[place + 4 : place + 8 + length]
        if len(body) < 4 + length:
            break
        out += struct.pack(">I", length) + body + struct.pack(">I", zlib.crc32(body))
        place += 12 + length
    return bytes(out + data[place:])


def _cases(seed: int) -> Iterator[bytes]:
    draw, seeds = random.Random(seed), seed_images()
    while True:
        data = draw.choice(seeds)
        if draw.random() < 0.98:
            data = damaged(draw, data, draw.choice(seeds))
        yield _with_right_checksums(data) if draw.random() < 0.7 else data


def _run(case: bytes) -> str:
    """As a stranger's file to the server, and as a file of the user's own."""
    formats = FORMATS if case[-1:] < b"\x80" else None
    if len(case) % 2:
        pixels, size = load_resized(case, SPEC, max_pixels=MAX_PIXELS, formats=formats, name="case")
        assert pixels.shape == (32, 32, 3), pixels.shape
        assert min(size) > 0, size
    else:
        pixels = load_image(case, max_pixels=MAX_PIXELS, formats=formats)
        assert pixels.ndim == 3, pixels.shape
        assert pixels.shape[2] == 3, pixels.shape
        assert pixels.size <= 3 * MAX_PIXELS, pixels.shape
    assert pixels.dtype == np.uint8, pixels.dtype
    return "answered"


IMAGES = Target("images", _cases, _run)
