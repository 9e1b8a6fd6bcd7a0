"""The golden samples of a bundle: images with the PyTorch explainer's own answers, in ``golden.npz``."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..contracts import Floats, Uint8
from ..errors import BundleError
from .manifest import Manifest

__all__ = ["Golden", "check_golden", "read_golden"]

T = TypeVar("T")
_ARRAYS = {"images": np.uint8, "target": np.int64, "probabilities": np.float32, "mask": np.float32}
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class Golden:
    """Images with the PyTorch explainer's own answers, to hold any engine against the original.

    Attributes:
        images: uint8 (G, H, W, 3), at the model's size.
        target: int64 (G,), as asked; -1 is the predicted class.
        probabilities: float32 (G, K).
        mask: float32 (G, 1, H, W), or (G, A, H, W) for masks of several areas.
    """

    images: Uint8
    target: NDArray[np.int64]
    probabilities: Floats
    mask: Floats


def read_golden(file: Path, manifest: Manifest) -> Golden:
    """Read them.

    Raises:
        BundleError: they are damaged, or not of the manifest's sizes and classes.
    """

    def read() -> dict[str, Any]:
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in _ARRAYS}

    arrays = _guarded(file, read)
    _check(file, {name: (array.shape, array.dtype) for name, array in arrays.items()}, manifest)
    if not (-1 <= arrays["target"].min() and arrays["target"].max() < len(manifest.class_names)):
        raise _damaged(file, "a target is no class")
    return Golden(**arrays)


def check_golden(file: Path, manifest: Manifest) -> None:
    """Hold their shapes against a manifest, reading no more than those.

    Raises:
        BundleError: they are damaged, or not of the manifest's sizes and classes.
    """

    def read() -> dict[str, tuple[tuple[int, ...], Any]]:
        found = {}
        with zipfile.ZipFile(file) as archive:
            for name in _ARRAYS:
                with archive.open(f"{name}.npy") as stream:
                    shape, _, dtype = _HEADERS[np.lib.format.read_magic(stream)](stream)
                    found[name] = (shape, dtype)
        return found

    _check(file, _guarded(file, read), manifest)


def _check(file: Path, found: dict[str, tuple[tuple[int, ...], Any]], manifest: Manifest) -> None:
    count = found["images"][0][:1] or (0,)
    shapes = {
        "images": (*count, *manifest.image.size, 3),
        "target": count,
        "probabilities": (*count, len(manifest.class_names)),
        "mask": (*count, len(manifest.areas) or 1, *manifest.mask_size),
    }
    for name, dtype in _ARRAYS.items():
        shape, kind = found[name]
        if shape != shapes[name] or kind != dtype or count == (0,):
            wanted = f"{np.dtype(dtype)} {shapes[name]}"
            raise _damaged(file, f"'{name}' is {kind} {shape}, and by the manifest it is {wanted}")


def _guarded(file: Path, read: Callable[[], T]) -> T:
    """What is read of a file, whatever may be wrong with it."""
    try:
        return read()
    except MemoryError:
        raise _damaged(file, "they do not fit into memory") from None
    except Exception as error:  # of zipfile, zlib, numpy and the disk
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise _damaged(file, reason) from None


def _damaged(file: Path, reason: str) -> BundleError:
    return BundleError(f"the golden samples '{file}' are damaged: {reason}; copy or export the bundle again")
