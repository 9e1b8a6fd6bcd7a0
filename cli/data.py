"""Images for training and for the parity gate: a folder, or planted scenes."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..accel.image import find_images, load_image, resize_image
from ..contracts import ImageSpec, Uint8
from ..errors import ImageError

__all__ = ["SCENES", "image_stream", "noise_images", "sample_images"]

SCENES = "scenes"
_CACHED_IMAGES = 4096


def image_stream(data: str, spec: ImageSpec, batch_size: int, seed: int) -> Callable[[int], Uint8]:
    """A stream of training images: from a step to uint8 (B, H, W, 3), always the same for the same step.

    A folder is shuffled anew each epoch; half of the images are mirrored; one that cannot be read is replaced by the
    next.

    Raises:
        ImageError: the folder has no images, or none of them can be read.
    """
    if data == SCENES:
        from ..evaluate.scenes import SceneConfig, SceneSource

        source = SceneSource("train", SceneConfig(size=spec.size[0], seed=seed + 1))
        return lambda step: source.batch(range(step * batch_size, (step + 1) * batch_size)).images

    files = find_images([data])

    @lru_cache(maxsize=_CACHED_IMAGES)
    def load(index: int) -> Uint8:
        for other in range(len(files)):
            try:
                return resize_image(load_image(files[(index + other) % len(files)]), spec)
            except ImageError:
                continue  # the next file takes the place of one that cannot be read
        raise ImageError(f"none of the {len(files)} images in '{data}' can be read")

    @lru_cache(maxsize=2)
    def order_of(epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([seed, epoch]).permutation(len(files))

    def batch(step: int) -> Uint8:
        images = []
        for position in range(step * batch_size, (step + 1) * batch_size):
            epoch, place = divmod(position, len(files))
            image = load(int(order_of(epoch)[place]))
            images.append(image[:, ::-1] if np.random.default_rng([seed, epoch, place]).random() < 0.5 else image)
        return np.stack(images)

    return batch


def sample_images(data: str, spec: ImageSpec, count: int = 32) -> Uint8:
    """Images for previews and for the parity gate, uint8 (N ≤ count, H, W, 3): spread over a folder, or held-out
    scenes.

    Unreadable images are passed over.
    """
    if data == SCENES:
        from ..evaluate.scenes import SceneConfig, SceneSource

        return SceneSource("val", SceneConfig(size=spec.size[0])).batch(range(count)).images
    files = find_images([data])
    images: list[Uint8] = []
    for index in np.random.default_rng(0).permutation(len(files)):
        if len(images) == count:
            break
        try:
            images.append(resize_image(load_image(files[int(index)]), spec))
        except ImageError:
            continue
    if not images:
        raise ImageError(f"none of the {len(files)} images in '{data}' can be read")
    return np.stack(images)


def noise_images(spec: ImageSpec, count: int = 16) -> Uint8:
    """Coloured clouds, uint8 (N, H, W, 3): images for the parity gate where the user has given none."""
    height, width = spec.size
    generator = np.random.default_rng(0)
    images = []
    for _ in range(count):
        cloud = np.zeros((height, width, 3))
        for octave in (2, 5, 11, 23):
            coarse = generator.integers(0, 256, (octave, octave, 3), dtype=np.uint8)
            cloud += np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)) / 4
        images.append(cloud.clip(0, 255).astype(np.uint8))
    return np.stack(images)
