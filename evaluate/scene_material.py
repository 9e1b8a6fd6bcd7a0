"""What planted scenes are made of: real photographs and real handwritten digits, split into train, val and test.

The photographs ship inside scikit-image, scikit-learn and matplotlib; the digits are scikit-learn's copy of the UCI set
(1,797 images of 8×8 pixels by 43 writers). No photograph and no digit is in two splits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import MissingDependencyError, require

__all__ = ["PHOTOGRAPHS", "SPLITS", "Material", "Split", "load_material", "load_photograph"]

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

PHOTOGRAPHS: dict[Split, tuple[str, ...]] = {
    "train": (
        "skimage:astronaut.png",
        "skimage:camera.png",
        "skimage:coffee.png",
        "skimage:chelsea.png",
        "skimage:motorcycle_left.png",
        "skimage:coins.png",
        "skimage:ihc.png",
        "skimage:hubble_deep_field.jpg",
        "skimage:brick.png",
        "skimage:grass.png",
        "skimage:moon.png",
        "sklearn:flower.jpg",
    ),
    "val": ("skimage:retina.jpg", "skimage:rocket.jpg"),
    "test": ("sklearn:china.jpg", "matplotlib:grace_hopper.jpg", "skimage:gravel.png"),
}

_FOLDERS = {
    "skimage": ("skimage", "data"),
    "sklearn": ("sklearn", "datasets/images"),
    "matplotlib": ("matplotlib", "mpl-data/sample_data"),
}
_PURPOSE = "the planted scenes, whose photographs and digits it ships"


@dataclass(frozen=True)
class Material:
    """Photographs (uint8 HWC), digit images (float32 (N, 8, 8) in [0, 1]) and their labels, for one split."""

    photographs: tuple[NDArray[np.uint8], ...]
    digits: NDArray[np.float32]
    labels: NDArray[np.int64]


def load_photograph(name: str) -> NDArray[np.uint8]:
    """Read one photograph by its name in `PHOTOGRAPHS`, as uint8 RGB (H, W, 3).

    Raises:
        MissingDependencyError: the package that ships it is not installed, or does not hold the file.
    """
    package, file = name.split(":")
    module = require(package, extra="scenes", purpose=_PURPOSE)
    root, folder = _FOLDERS[package][0], _FOLDERS[package][1]
    path = Path(str(module.__file__)).parent / folder / file
    if not path.exists():
        raise MissingDependencyError(
            f"the installed '{root}' does not ship {file}; install the version that Saccade was tested with: "
            "pip install -U 'saccade[scenes]'"
        )
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@lru_cache(maxsize=3)
def load_material(split: Split) -> Material:
    """The photographs and digits of one split.

    Digits are dealt by their index in scikit-learn's order, in blocks of ten, so that every split has all writers'
    styles and no digit image occurs twice: of ten blocks seven go to train, one to val, two to test.
    """
    datasets = require("sklearn.datasets", extra="scenes", purpose=_PURPOSE)
    bunch = datasets.load_digits()
    block = (np.arange(len(bunch.target)) // 10) % 10
    chosen = {"train": block < 7, "val": block == 7, "test": block > 7}[split]
    return Material(
        photographs=tuple(load_photograph(name) for name in PHOTOGRAPHS[split]),
        digits=(bunch.images[chosen] / 16).astype(np.float32),
        labels=bunch.target[chosen].astype(np.int64),
    )
