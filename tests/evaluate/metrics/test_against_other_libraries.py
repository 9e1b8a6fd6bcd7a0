"""The same numbers as PAIR's `saliency` and as Quantus, where they measure the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from saliency.metrics import pic
from torch import nn

from saccade.evaluate.metrics import (
    InformationCurve,
    NoiseSensitivity,
    Pointing,
    Precision,
    Predict,
    Sample,
    aic,
    deletion,
    measure,
    sic,
)

Array = np.ndarray
THRESHOLDS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.10, 0.13, 0.21, 0.34, 0.5, 0.75)  # of its docstring

quantus = pytest.importorskip("quantus")


@pytest.fixture
def _trapz(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy 2.4 has it under its new name only; PAIR 0.2.1 asks for the old one."""
    monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)


# PAIR rounds interpolated values as float32. Halfway between pixels the exact value is often n + 0.5, which float64
# would round to the other side; that moves the size of an image by up to 4 %, and areas by up to 0.03.
@pytest.mark.usefixtures("_trapz")
@pytest.mark.parametrize("metric", [sic(), aic()], ids=lambda metric: metric.name)
def test_information_curves_are_those_of_pair(
    metric: InformationCurve, make_samples: Callable[..., list[Sample]], sharp: Predict
) -> None:
    samples = make_samples(14, 32, 33, predicted=sharp)
    rows = measure([metric], samples, sharp)[metric.name]
    results, areas = [], []
    for sample in samples:
        chosen = np.random.default_rng(sample.seed).choice(32 * 33, int(32 * 33 * 0.01), replace=False)
        random_mask = np.isin(np.arange(32 * 33), chosen).reshape(32, 33)

        def respond(images: Array, target: int = sample.target) -> Array:
            answers = sharp(images)
            return answers[:, target] if metric.name == "sic" else (answers.argmax(1) == target).astype(float)

        try:
            results.append(pic.compute_pic_metric(sample.image, sample.mask, random_mask, respond, THRESHOLDS))
            areas.append(results[-1].auc)
        except pic.ComputePicMetricError:
            areas.append(np.nan)
    assert len(results) >= 5
    assert np.isnan(areas).any(), "both leave out the same images"
    np.testing.assert_allclose(metric.per_image(rows), areas, atol=1e-3)
    together = pic.aggregate_individual_pic_results(results, method="median")
    assert metric.aggregate(rows) == pytest.approx(together.auc, abs=1e-3)
    grid, curve = metric.curve(rows)
    np.testing.assert_allclose(grid, together.curve_x, atol=1e-9)
    np.testing.assert_allclose(curve, together.curve_y, atol=1e-3)


class TorchToy(nn.Module):
    """The toy classifier for Quantus: float images (N, 3, H, W) of 0 … 255 to logits."""

    def __init__(self, predict: Any) -> None:
        super().__init__()
        weights = predict.weights.reshape(predict.height, predict.width, 3, -1).transpose(2, 0, 1, 3)
        self.linear = nn.Linear(weights[..., 0].size, weights.shape[-1])
        with torch.no_grad():
            scaled = torch.tensor(weights.reshape(-1, weights.shape[-1]).T * predict.scale, dtype=torch.float32)
            self.linear.weight.copy_(scaled)
            self.linear.bias.copy_(-128 * scaled.sum(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.linear(x.flatten(1))
        return logits


def channels_first(samples: list[Sample]) -> Array:
    return np.stack([sample.image for sample in samples]).transpose(0, 3, 1, 2).astype(np.float32)


def masks_of(samples: list[Sample]) -> Array:
    return np.stack([sample.mask for sample in samples])[:, None].astype(np.float64)


def evidence_of(samples: list[Sample]) -> Array:
    return np.stack([sample.evidence for sample in samples if sample.evidence is not None])[:, None]


def targets_of(samples: list[Sample]) -> Array:
    return np.array([sample.target for sample in samples])


@pytest.fixture
def torch_toy(toy: Predict) -> Iterator[TorchToy]:
    with torch.no_grad():
        yield TorchToy(toy).eval()


def test_the_torch_classifier_is_the_toy_classifier(samples: list[Sample], toy: Predict, torch_toy: TorchToy) -> None:
    found = torch_toy(torch.from_numpy(channels_first(samples))).softmax(1).numpy()
    np.testing.assert_allclose(found, toy(np.stack([sample.image for sample in samples])), atol=1e-4)


def test_deletion_is_quantus_pixel_flipping(make_samples: Callable[..., list[Sample]], toy: Any) -> None:
    """Its features are single values, so a pixel is three: of 24×28 pixels, 12 equal steps are 56 pixels each.

    Its "black" is an image's smallest value, so each image gets a black pixel; its curve starts after the first step.
    """
    toy = replace(toy, height=24, width=28)
    samples = []
    for sample in make_samples(8, 24, 28, predicted=toy):
        image = sample.image.copy()
        image[np.unravel_index(sample.mask.argmin(), sample.mask.shape)] = 0
        samples.append(Sample(image, sample.mask, sample.target))
    metric = quantus.PixelFlipping(
        features_in_step=3 * 56, perturb_baseline="black", normalise=False, disable_warnings=True
    )
    curves = metric(
        model=TorchToy(toy).eval(),
        x_batch=channels_first(samples),
        y_batch=targets_of(samples),
        a_batch=masks_of(samples),
        softmax=True,
    )
    rows = measure([deletion(fill="black", steps=12)], samples, toy)["deletion"]
    assert np.shape(curves) == (len(samples), 12)
    assert np.ptp(curves) > 0.5
    np.testing.assert_allclose(rows[:, 1:], curves, atol=1e-3)


def test_precision_is_quantus_relevance_mass_accuracy(samples: list[Sample], torch_toy: TorchToy) -> None:
    metric = quantus.RelevanceMassAccuracy(normalise=False, disable_warnings=True)
    shares = metric(
        model=torch_toy,
        x_batch=channels_first(samples),
        y_batch=targets_of(samples),
        a_batch=masks_of(samples),
        s_batch=evidence_of(samples),
    )
    rows = measure([Precision()], samples, lambda images: images)["precision"]
    np.testing.assert_allclose(rows[:, 0], shares, atol=1e-6)


def test_pointing_without_tolerance_is_quantus_pointing_game(
    samples: list[Sample], torch_toy: TorchToy, rng: np.random.Generator
) -> None:
    """With one peak each: of several it takes any, we take the first."""
    moved = []
    for sample in samples * 4:
        mask = np.roll(sample.mask, rng.integers(0, 12, 2), (0, 1))
        moved.append(Sample(sample.image, mask, sample.target, sample.evidence))
    metric = quantus.PointingGame(normalise=False, disable_warnings=True)
    hits = metric(
        model=torch_toy,
        x_batch=channels_first(moved),
        y_batch=targets_of(moved),
        a_batch=masks_of(moved),
        s_batch=evidence_of(moved),
    )
    rows = measure([Pointing(tolerance=0)], moved, lambda images: images)["pointing"]
    assert 0 < np.mean(hits) < 1
    assert rows[:, 0].tolist() == [100.0 * bool(hit) for hit in hits]


def test_sensitivity_is_quantus_max_sensitivity_on_the_same_noise(samples: list[Sample], torch_toy: TorchToy) -> None:
    """Its noise comes from NumPy's global generator and is not rounded, so it is given ours, draw by draw."""
    draws = 6

    def explain(images: Array, target: Array) -> Array:
        return np.asarray(np.tanh(images.astype(np.float64) / 90 * np.cos(target)[:, None, None, None]).sum(3))

    shown: list[Array] = []

    def record(images: Array, target: Array) -> Array:
        shown.extend(images.copy())
        return explain(images, target)

    own = explain(np.stack([sample.image for sample in samples]), targets_of(samples))
    explained = [Sample(sample.image, mask, sample.target) for sample, mask in zip(samples, own, strict=True)]
    rows = measure([NoiseSensitivity(0.1, draws)], explained, lambda images: images, explainers={"explain": record})
    by_draw = iter(np.stack(shown).reshape(len(samples), draws, *samples[0].image.shape).swapaxes(0, 1))

    def perturb(arr: Array, indices: Array, **_: object) -> Array:
        return next(by_draw).transpose(0, 3, 1, 2).reshape(arr.shape).astype(arr.dtype)

    def explain_for_quantus(model: nn.Module, inputs: Array, targets: Array, **_: object) -> Array:
        images = np.asarray(inputs).transpose(0, 2, 3, 1).round().astype(np.uint8)
        return explain(images, np.asarray(targets))[:, None]

    metric = quantus.MaxSensitivity(nr_samples=draws, perturb_func=perturb, disable_warnings=True)
    largest = metric(
        model=torch_toy,
        x_batch=channels_first(samples),
        y_batch=targets_of(samples),
        a_batch=masks_of(explained),
        explain_func=explain_for_quantus,
    )
    np.testing.assert_allclose(rows["sensitivity"][:, 0], largest, atol=1e-6)
    assert np.ptp(largest) > 1e-3
