"""Images for the parity gate: from a folder, planted scenes, or noise."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..accel.image import find_images, load_image, resize_image
from ..contracts import ImageSpec, Uint8
from ..errors import ImageError

__all__ = ["SCENES", "enough_images", "noise_images", "sample_images"]

SCENES = "scenes"


def sample_images(data: str, spec: ImageSpec, count: int = 32) -> Uint8:
    """Images of the user's own kind, uint8 (N ≤ count, H, W, 3): spread over a folder, or held-out
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


def enough_images(images: Uint8, least: int, source: str) -> Uint8:
    """The images, if there are enough for the parity gate: said before the graph is compiled, not after.

    Raises:
        ImageError: fewer than `least`.
    """
    if len(images) < least:
        raise ImageError(
            f"the parity gate needs at least {least} images and {source} has {len(images)} that can be read; "
            "name a folder with more by --data; export --method needs none at all"
        )
    return images


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
