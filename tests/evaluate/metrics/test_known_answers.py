"""Planted scenes and a trained classifier: the ground truth as a mask wins in every metric with a direction."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from saccade.evaluate.metrics import (
    ADD,
    ADP,
    METRIC_NAMES,
    PIC,
    InformationCurve,
    Metric,
    Sample,
    TotalVariation,
    difference,
    make_metrics,
    measure,
)
from saccade.evaluate.metrics.information import Focus
from saccade.evaluate.scenes import SceneBatch, SceneSource
from saccade.evaluate.scenes_models import IMAGE_SPEC, resnet

Array = np.ndarray
COUNT = 24

MASKING = ("adp", "pic", "add")
"""These see a digit's silhouette, black on the photograph, and read it: they get the digit's box instead. See below."""
INTERPOLATING = ("aic", "sic")
APART = (*MASKING, *INTERPOLATING, "sensitivity", "randomisation", "area")


class Classifier:
    """The trained residual network on images as they are."""

    def __init__(self) -> None:
        self.model = resnet()
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGE_SPEC.mean, IMAGE_SPEC.std))

    @torch.no_grad()
    def __call__(self, images: Array) -> Array:
        x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 255
        return np.asarray(self.model((x - self.mean) / self.std).softmax(1).numpy())


@pytest.fixture(scope="module")
def classifier() -> Iterator[Classifier]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small batches of a small network: more threads wait for each other
    yield Classifier()
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def scenes() -> SceneBatch:
    return SceneSource("test").batch(range(COUNT))


def samples_of(scenes: SceneBatch, masks: Array) -> list[Sample]:
    return [
        Sample(image, mask.astype(np.float32), int(label), evidence)
        for image, mask, label, evidence in zip(scenes.images, masks, scenes.labels, scenes.evidence, strict=False)
    ]


def boxes_of(scenes: SceneBatch, margin: int = 3) -> Array:
    masks = np.zeros(scenes.evidence.shape)
    for mask, (left, top, right, bottom) in zip(masks, scenes.boxes, strict=True):
        mask[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin] = 1
    return masks


def rivals_of(masks: Array) -> dict[str, Array]:
    return {"random": np.random.default_rng(0).random(masks.shape), "inverted": 1 - masks}


def assert_better(metric: Metric, rows: Array, other: Array, rival: str, *, certain: bool) -> None:
    """Better by the metric's own direction, and by more than the choice of these images."""
    sign = 1 if metric.higher_is_better else -1
    better, worse = metric.aggregate(rows), metric.aggregate(other)
    assert sign * (better - worse) > 0, f"{metric.name}: {better} is no better than {worse} of the {rival} mask"
    if certain:
        found = difference(metric, rows, other, resamples=300)
        assert found.certain, f"{metric.name} against the {rival} mask: {found}"


@pytest.fixture(scope="module")
def measured(classifier: Classifier, scenes: SceneBatch) -> tuple[list[Metric], dict[str, dict[str, Array]]]:
    """Rows of the metrics that take the exact ground truth, for it and its rivals."""
    metrics = make_metrics([name for name in METRIC_NAMES if name not in APART], steps=6)
    truth = scenes.evidence.astype(np.float32)
    masks = {"truth": truth, **rivals_of(truth)}
    return metrics, {kind: measure(metrics, samples_of(scenes, mask), classifier) for kind, mask in masks.items()}


def test_the_classifier_knows_these_scenes(classifier: Classifier, scenes: SceneBatch) -> None:
    assert (classifier(scenes.images).argmax(1) == scenes.labels).mean() > 0.9, "or nothing here means anything"


@pytest.mark.parametrize("rival", ["random", "inverted"])
@pytest.mark.parametrize("name", [name for name in METRIC_NAMES if name not in APART])
def test_the_ground_truth_beats_its_rivals(
    name: str, rival: str, measured: tuple[list[Metric], dict[str, dict[str, Array]]]
) -> None:
    metrics, rows = measured
    metric = next(metric for metric in metrics if metric.name == name)
    assert metric.higher_is_better is not None
    if (name, rival) == ("smoothness", "inverted"):  # |a − b| = |(1 − a) − (1 − b)|
        np.testing.assert_allclose(rows["truth"][name], rows[rival][name], rtol=1e-9)
        return
    certain = name != "contrast"  # of the ground truth it is infinite
    assert_better(metric, rows["truth"][name], rows[rival][name], rival, certain=certain)


def test_the_box_of_the_ground_truth_beats_its_rivals_where_pixels_are_weighed(
    classifier: Classifier, scenes: SceneBatch
) -> None:
    """ADP, PIC and ADD multiply the image by the mask, so what is removed is black."""
    metrics = (ADP(), PIC(), ADD())
    masks = boxes_of(scenes)
    rows = measure(metrics, samples_of(scenes, masks), classifier)
    for rival, other in rivals_of(masks).items():
        found = measure(metrics, samples_of(scenes, other), classifier)
        for metric in metrics:
            # with 24 images a few gain, too few for an interval without 0; of the drops there is no doubt
            assert_better(metric, rows[metric.name], found[metric.name], rival, certain=metric.name != "pic")


def test_the_exact_shape_of_a_digit_still_shows_the_digit_when_it_is_black(
    classifier: Classifier, scenes: SceneBatch
) -> None:
    """Why the test above takes the box: with its digit cut out of it, a scene is still read, and no drop is seen."""
    cut_out = scenes.images * ~scenes.evidence[..., None]
    assert (classifier(cut_out).argmax(1) == scenes.labels).mean() > 0.7
    without_box = (scenes.images * (1 - boxes_of(scenes))[..., None]).astype(np.uint8)
    assert (classifier(without_box).argmax(1) == scenes.labels).mean() < 0.3


def test_the_ground_truth_beats_its_rivals_in_information(classifier: Classifier, scenes: SceneBatch) -> None:
    focus = Focus(thresholds=(0.01, 0.03, 0.07, 0.21))  # interpolating at all thirteen takes long
    metrics = (
        InformationCurve("sic", "probability", focus=focus),
        InformationCurve("aic", "accuracy", focus=focus),
    )
    truth = scenes.evidence[:8].astype(np.float32)
    rows = measure(metrics, samples_of(scenes, truth), classifier)
    for rival, other in rivals_of(truth).items():
        found = measure(metrics, samples_of(scenes, other), classifier)
        for metric in metrics:
            assert np.count_nonzero(~np.isnan(metric.per_image(rows[metric.name]))) >= 5
            assert_better(metric, rows[metric.name], found[metric.name], rival, certain=False)


def test_a_smoothed_ground_truth_is_smoother_than_the_ground_truth(scenes: SceneBatch) -> None:
    """The one direction that the ground truth itself does not win: its border is a cliff."""
    truth = scenes.evidence.astype(np.float64)
    soft = truth.copy()
    for _ in range(6):
        soft = sum(np.roll(soft, step, axis) for axis in (1, 2) for step in (-1, 1)) / 4
    metric = TotalVariation()
    rows, other = (
        measure([metric], samples_of(scenes, masks), lambda images: np.zeros((len(images), 10)))["smoothness"]
        for masks in (soft, truth)
    )
    assert (rows < other).all()
