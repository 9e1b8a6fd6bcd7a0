"""The Python face of an opened bundle."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..contracts import Floats, MaskQuery
from ..errors import ImageError
from .bundle import Bundle
from .engine import Engine
from .engines import open_engine
from .image import ImageSource, load_image, resize_image
from .pipeline import PipelineConfig, explain_images
from .results import Failure, ImageExplanation

__all__ = ["Explainer", "open"]


class Explainer:
    """An opened bundle that takes images as people have them: paths, encoded bytes, PIL images, uint8 arrays.

    `saccade.open` makes one.

    Args:
        engine: runs the bundle, as `open_engine` opens it.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def bundle(self) -> Bundle:
        """The bundle behind it."""
        return self.engine.bundle

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class, by index."""
        return self.bundle.manifest.class_names

    def explain(
        self,
        images: Iterable[ImageSource] | ImageSource,
        *,
        target: str | int | Sequence[str | int] | None = None,
        query: MaskQuery | None = None,
        batch_size: int | None = None,
    ) -> list[ImageExplanation]:
        """Predict and explain.

        Args:
            images: one image or several; arrays are uint8 (H, W, 3), or (N, H, W, 3) for several.
            target: class name or index; None for the predicted class. Several in a list give an answer for each, one
                after the other for every image.
            query: which masks of a bundle that holds them as functions, an answer for each; None for its own areas.
            batch_size: images that go through the engine together; None takes the bundle's own.

        Returns:
            An answer for each image, in order; for several classes or areas so many for each image.

        Raises:
            UsageError: there is no such class, or the bundle holds no such masks.
            ImageError: one of them cannot be read. Use `saccade.explain_images` to go on with the others.
        """
        asked = [target] if target is None or isinstance(target, (str, int)) else target
        indices = tuple(self.bundle.target_index(one) for one in asked)
        config = PipelineConfig(batch_size=batch_size, targets=indices, query=query)
        results = []
        for result in explain_images(self.engine, _as_sources(images), config):
            if isinstance(result, Failure):
                raise ImageError(result.reason)
            results.append(result)
        return results

    def predict(self, images: Iterable[ImageSource] | ImageSource) -> Floats:
        """Probabilities alone, float32 (N, K); masks are not computed. The images go through the engine as one batch.

        Raises:
            ImageError: one of them cannot be read.
        """
        loaded = [load_image(image) for image in _as_sources(images)]
        if not self.bundle.manifest.any_size:
            loaded = [resize_image(image, self.bundle.manifest.image) for image in loaded]
        return self.engine.probabilities(np.stack(loaded))


def open(
    bundle: str | Path | Bundle,
    engine: str = "onnx",
    *,
    providers: Sequence[str] | None = None,
    provider_options: Mapping[str, Mapping[str, str]] | None = None,
    threads: int | None = None,
    precision: str = "fp32",
) -> Explainer:
    """Open a bundle to explain images with it; arguments as `open_engine`.

    Example:
        ```python
        explainer = saccade.open("bundle")
        (result,) = explainer.explain("cat.jpg")
        print(result.class_name, result.probability, result.mask.shape)
        result.overlay().save("cat.overlay.png")
        ```
    """
    return Explainer(
        open_engine(
            bundle,
            engine,
            providers=providers,
            provider_options=provider_options,
            threads=threads,
            precision=precision,
        )
    )


def _as_sources(images: Iterable[ImageSource] | ImageSource) -> list[ImageSource]:
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, (str, bytes, os.PathLike)) or not isinstance(images, Iterable):
        return [images]
    return list(images)
