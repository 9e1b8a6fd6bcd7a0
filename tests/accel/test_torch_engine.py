"""The PyTorch engine on a graph whose answers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from saccade.accel.bundle import Bundle
from saccade.accel.manifest import Manifest, ParityReport
from saccade.accel.torch_engine import TorchEngine
from saccade.contracts import ImageSpec, MaskQuery
from saccade.errors import OutOfMemory, UsageError

PROVEN = ParityReport(
    images=16,
    batches=(1,),
    mask_max_abs=0,
    mask_mean_abs=0,
    mask_cosine=1,
    mask_spearman=1,
    mask_top10_iou=1,
    probabilities_max_abs=0,
    targets_equal=True,
    batch_max_abs=0,
    deterministic=True,
    input_dependence=1,
)


class Known:
    """Of three classes the one whose colour is brightest; its channel is the mask."""

    outputs: tuple[str, ...] = ("probabilities", "target_class", "mask")
    largest = 0

    def predict(self, image: Tensor) -> Tensor:
        if len(image) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return image.float().mean((1, 2)).softmax(1)

    def __call__(self, image: Tensor, target: Tensor, *query: Tensor) -> tuple[Tensor, ...]:
        self.largest = max(self.largest, len(image))
        probabilities = self.predict(image)
        chosen = torch.where(target < 0, probabilities.argmax(1), target)
        mask = image.float().take_along_dim(chosen[:, None, None, None], 3).permute(0, 3, 1, 2) / 255
        answers = (probabilities, chosen, mask)
        return answers if len(self.outputs) == 3 else (*answers, mask.repeat(1, 2, 1, 1))


def engine(graph: Known, **more: object) -> TorchEngine:
    about = {
        "name": "known",
        "method": "none",
        "parameters": {},
        "class_specific": True,
        "image": ImageSpec(size=(4, 6)),
        "mask_size": (4, 6),
        "class_names": ("red", "green", "blue"),
        "explainee": {},
        "opset": 22,
        "versions": {},
        "created": "",
        "files": {},
        "parity": PROVEN,
    }
    return TorchEngine(Bundle(Path("nowhere"), Manifest(**about | more)), graph)  # type: ignore[arg-type]


@pytest.fixture
def images(rng: np.random.Generator) -> np.ndarray:
    found = rng.integers(0, 256, (2, 4, 6, 3), dtype=np.uint8)
    found.flags.writeable = False  # as those of PIL are
    return found


def test_it_answers_for_predicted_for_given_and_for_several_classes(images: np.ndarray) -> None:
    running = engine(Known())
    mean = images.astype(np.float64).mean((1, 2))
    for target, classes in ((None, mean.argmax(1)), (2, [2, 2]), (np.array([1, -1]), [1, mean[1].argmax()])):
        found = running.run(images, target)
        assert found.target.tolist() == list(classes)
        for row, label in enumerate(classes):
            np.testing.assert_allclose(found.mask[row, 0], images[row, :, :, label] / 255, rtol=1e-6)
    several = running.run(images, np.array([[0, 1, 2], [2, 1, 0]]))
    assert several.mask.shape == (2, 3, 4, 6)
    np.testing.assert_allclose(several.mask[1, 0], images[1, :, :, 2] / 255, rtol=1e-6)
    shares = np.exp(mean - mean.max(1, keepdims=True))
    np.testing.assert_allclose(running.probabilities(images), shares / shares.sum(1, keepdims=True), atol=1e-5)


def test_a_batch_that_does_not_fit_is_said_with_one_that_may(images: np.ndarray) -> None:
    with pytest.raises(OutOfMemory, match="a batch of 4 images does not fit into memory; try --batch-size 1"):
        engine(Known()).run(np.concatenate([images, images]))


def test_what_keeps_to_a_memory_budget_is_taken_apart(images: np.ndarray) -> None:
    graph = Known()
    found = engine(graph, batch=2, splits=True).run(np.concatenate([images, images[::-1]]))
    assert graph.largest == 2
    assert np.array_equal(found.mask[0], found.mask[3])


def test_masks_and_parts_are_told_apart(images: np.ndarray) -> None:
    graph = Known()
    graph.outputs = (*Known.outputs, "parts")
    running = engine(graph, areas=(0.1,), parts=2)
    assert running.run(images).mask.shape == (2, 1, 4, 6)
    assert running.run(images, query=MaskQuery(parts=2)).mask.shape == (2, 2, 4, 6)
    assert not running.run(images).diagnostics


def test_other_errors_are_not_taken_for_too_little_memory(images: np.ndarray) -> None:
    class Broken(Known):
        def predict(self, image: Tensor) -> Tensor:
            raise RuntimeError("no such operator")

    with pytest.raises(RuntimeError, match="no such operator"):
        engine(Broken()).run(images)
    with pytest.raises(UsageError, match=r"takes images of 4×6 pixels, not 5×6"):
        engine(Known()).run(np.zeros((1, 5, 6, 3), np.uint8))
