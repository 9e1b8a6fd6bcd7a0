"""Fixtures: a small exact classifier in numpy, and samples whose masks have no two equal values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from saccade.evaluate.metrics import Sample

HEIGHT, WIDTH, CLASSES = 20, 28, 5
Images = NDArray[np.uint8]


@dataclass
class ToyClassifier:
    """Softmax of a random linear map of the pixels. The weights are whole numbers, so that the logits of an image do
    not depend on the batch that it is in.
    """

    height: int = HEIGHT
    width: int = WIDTH
    sharpness: float = 1.0
    seed: int = 7

    def __post_init__(self) -> None:
        generator = np.random.default_rng(self.seed)
        coarse = generator.integers(-40, 41, (self.height // 4 + 1, self.width // 4 + 1, 3, CLASSES))
        smooth = coarse.repeat(4, 0)[: self.height].repeat(4, 1)[:, : self.width]
        self.weights = (smooth + generator.integers(-20, 21, smooth.shape)).reshape(-1, CLASSES)
        self.scale = self.sharpness / (128 * 30 * np.sqrt(len(self.weights) / 8))

    def __call__(self, images: Images) -> NDArray[np.float64]:
        assert images.dtype == np.uint8
        assert images.shape[1:] == (self.height, self.width, 3)
        logits = ((images.reshape(len(images), -1).astype(np.int64) - 128) @ self.weights) * self.scale
        powers = np.exp(logits - logits.max(1, keepdims=True))
        return np.asarray(powers / powers.sum(1, keepdims=True))


def _make_samples(
    count: int = 8,
    height: int = HEIGHT,
    width: int = WIDTH,
    seed: int = 3,
    predicted: Callable[[Images], NDArray[np.float64]] | None = None,
) -> list[Sample]:
    """Blotchy images with ground truth. All values of a mask differ, so its order is `np.argsort`'s. The targets are
    random classes; given a classifier, those of every other image are its answers.
    """
    generator = np.random.default_rng(seed)
    samples = []
    for index in range(count):
        blotches = generator.integers(0, 200, (height // 5 + 1, width // 5 + 1, 3))
        blotches = blotches.repeat(5, 0)[:height].repeat(5, 1)[:, :width]
        image = (blotches + generator.integers(0, 56, (height, width, 3))).astype(np.uint8)
        top, left = int(generator.integers(height // 2)), int(generator.integers(width // 2))
        evidence = np.zeros((height, width), dtype=np.bool_)
        evidence[top : top + height // 3, left : left + width // 4] = True
        importance = generator.random((height, width)) * (1 + 0.2 * evidence)
        ranks = importance.reshape(-1).argsort().argsort().reshape(height, width)
        mask = (((ranks + 0.5) / ranks.size) ** generator.uniform(1, 2)).astype(np.float32)
        assert np.unique(mask).size == mask.size
        target = int(generator.integers(CLASSES))
        if predicted is not None and index % 2 == 0:
            target = int(predicted(image[None])[0].argmax())
        samples.append(Sample(image, mask, target, evidence, label=target, name=f"image {index}"))
    return samples


@pytest.fixture
def toy() -> ToyClassifier:
    return ToyClassifier()


@pytest.fixture
def sharp() -> ToyClassifier:
    """Sure of itself, as the information curves want it, on images of 32×33 pixels."""
    return ToyClassifier(32, 33, sharpness=6.0)


@pytest.fixture
def make_samples() -> Callable[..., list[Sample]]:
    return _make_samples


@pytest.fixture
def samples(toy: ToyClassifier) -> list[Sample]:
    """Eight images of 20×28 pixels."""
    return _make_samples(predicted=toy)
