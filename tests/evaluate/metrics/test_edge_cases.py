"""Masks without information have a defined value in every metric; what cannot be measured is refused with a reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from saccade.errors import UsageError
from saccade.evaluate.metrics import (
    METRIC_NAMES,
    QUICK,
    QUICK_WITH_EVIDENCE,
    Area,
    Pointing,
    Predict,
    Sample,
    deletion,
    estimate,
    make_metrics,
    measure,
)

Array = np.ndarray
SHAPE = (32, 33)
NEED_EVIDENCE = (
    "pointing",
    "pointing-box",
    "precision",
    "contrast",
    "pa",
    "miou",
    "map",
    "f1",
    "f1-rows",
    "area-error",
)
EXPLAINERS = {
    "explain": lambda images, target: images.mean(3) / 255,
    "randomised": lambda images, target: images.max(3) / 255,
}


def single(y: int, x: int) -> Array:
    mask = np.zeros(SHAPE, np.float32)
    mask[y, x] = 1
    return mask


EVIDENCE = np.zeros(SHAPE, dtype=np.bool_)
EVIDENCE[8:16, 10:20] = True

MASKS = {
    "zeros": np.zeros(SHAPE, np.float32),
    "ones": np.ones(SHAPE, np.float32),
    "constant": np.full(SHAPE, 0.3, np.float32),
    "pixel inside": single(9, 12),
    "pixel outside": single(31, 0),
    "tiny": np.full(SHAPE, 1e-40, np.float32),
}

# what the docstrings say of each metric for these masks
EXACT: dict[tuple[str, str], float] = {
    **{("pointing", mask): 0 for mask in ("zeros", "ones", "constant", "tiny", "pixel outside")},
    **{("pointing-box", mask): 0 for mask in ("zeros", "ones", "constant", "tiny", "pixel outside")},
    ("pointing", "pixel inside"): 100,
    ("pointing-box", "pixel inside"): 100,
    ("precision", "zeros"): 0,
    ("precision", "ones"): 80 / (32 * 33),
    ("precision", "constant"): 80 / (32 * 33),
    ("precision", "pixel inside"): 1,
    ("precision", "pixel outside"): 0,
    ("contrast", "zeros"): np.nan,
    ("contrast", "ones"): 1,
    ("contrast", "constant"): 1,
    ("contrast", "pixel inside"): np.nan,  # and infinite over all images
    ("contrast", "pixel outside"): 0,
    **{("f1", mask): 0 for mask in ("zeros", "ones", "constant", "pixel outside")},
    ("f1", "pixel inside"): 200 / 81,
    **{("f1-rows", mask): 0 for mask in ("zeros", "ones", "constant", "pixel outside")},
    **{("pa", mask): 100 * (1 - 80 / (32 * 33)) for mask in ("zeros", "ones", "constant")},
    **{("miou", mask): 50 * (1 - 80 / (32 * 33)) for mask in ("zeros", "ones", "constant")},
    **{("area", mask): value for mask, value in (("zeros", 0), ("ones", 1), ("pixel inside", 1 / (32 * 33)))},
    **{("smoothness", mask): 0 for mask in ("zeros", "ones", "constant")},
    ("smoothness", "pixel outside"): 1 / (31 * 33) + 1 / (32 * 32),
    **{("randomisation", mask): 0 for mask in ("zeros", "ones", "constant")},
    ("sensitivity", "zeros"): np.nan,
    ("adp", "ones"): 0,
    ("add", "zeros"): 0,
    ("pic", "ones"): 0,
}


@pytest.fixture
def image(make_samples: Callable[..., list[Sample]], sharp: Predict) -> Array:
    """An image that the classifier is sure of, so that no curve leaves it out."""
    samples = make_samples(8, *SHAPE, predicted=sharp)
    return samples[0].image


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_masks_without_information_have_a_defined_value_in_every_metric(
    kind: str, dtype: type, image: Array, sharp: Predict
) -> None:
    target = int(sharp(image[None])[0].argmax())
    sample = Sample(image, MASKS[kind].astype(dtype), target, EVIDENCE)
    metrics = make_metrics(METRIC_NAMES)
    rows = measure(metrics, [sample, sample], sharp, explainers=EXPLAINERS)
    for metric in metrics:
        value = metric.per_image(rows[metric.name])[0]
        expected = EXACT.get((metric.name, kind))
        if expected is not None:
            assert value == pytest.approx(expected, rel=1e-3 if dtype == np.float16 else 1e-6, nan_ok=True), metric.name
        elif dtype != np.float16 or kind != "tiny" or metric.name not in ("contrast", "sensitivity"):  # 0 in float16
            assert np.isfinite(value), f"{metric.name} of {kind}"
    if kind == "pixel inside":
        contrast = next(metric for metric in metrics if metric.name == "contrast")
        assert contrast.aggregate(rows["contrast"]) == np.inf


@pytest.mark.parametrize("kind", MASKS)
def test_masks_without_information_have_an_estimate_in_every_metric_but_contrast(
    kind: str, image: Array, sharp: Predict
) -> None:
    sample = Sample(image, MASKS[kind], int(sharp(image[None])[0].argmax()), EVIDENCE)
    metrics = make_metrics([name for name in METRIC_NAMES if name not in ("contrast", "sensitivity")])
    rows = measure(metrics, [sample, sample, sample], sharp, explainers=EXPLAINERS)
    for metric in metrics:
        found = estimate(metric, rows[metric.name], resamples=20)
        assert found.images == 3
        assert found.low == pytest.approx(found.value, abs=0.02), "equal images leave no doubt"
        assert found.high == pytest.approx(found.value, abs=0.02)


def test_all_names_make_metrics_of_those_names() -> None:
    metrics = make_metrics(METRIC_NAMES)
    assert tuple(metric.name for metric in metrics) == METRIC_NAMES
    assert len(set(METRIC_NAMES)) == len(METRIC_NAMES)
    assert set(QUICK) < set(QUICK_WITH_EVIDENCE) < set(METRIC_NAMES)
    assert not any(metric.needs_evidence for metric in make_metrics(QUICK))
    assert tuple(metric.name for metric in metrics if metric.needs_evidence) == NEED_EVIDENCE
    assert [metric.name for metric in make_metrics(["f1", "area", "f1"])] == ["f1", "area"], "each once"


def test_each_metric_says_what_it_is_in_one_line() -> None:
    summaries = {metric.name: metric.summary for metric in make_metrics(METRIC_NAMES)}
    for name, summary in summaries.items():
        assert summary == " ".join(summary.split()), name
        assert 20 < len(summary) < 400, name
        assert "Attributes:" not in summary, name
    assert len(set(summaries.values())) >= len(summaries) - 1, "only the two information curves share theirs"


def test_settings_reach_the_metrics() -> None:
    curve, pointing = make_metrics(["deletion", "pointing"], fill="black", steps=5, tolerance=3)
    assert curve == deletion(fill="black", steps=5)
    assert pointing == Pointing(3)
    assert make_metrics(["deletion"], protocol="ltx") == [deletion("ltx")]


@pytest.mark.parametrize(
    ("typed", "near"), [("insertoin", "insertion"), ("f1-row", "f1-rows"), ("smothness", "smoothness")]
)
def test_an_unknown_name_is_refused_with_the_nearest(typed: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"'{typed}'.*did you mean {near}"):
        make_metrics(["area", typed])


def sample_with(samples: list[Sample], **changes: Any) -> Sample:
    first = samples[0]
    parts = {"image": first.image, "mask": first.mask, "target": 0, "evidence": first.evidence, "name": "a bee"}
    return Sample(**{**parts, **changes})


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((20, 28, 3), np.float32),
        np.zeros((20, 28, 3), np.int64),
        np.zeros((20, 28), np.uint8),
        np.zeros((20, 28, 1), np.uint8),
        np.zeros((20, 28, 4), np.uint8),
        np.zeros((3, 20, 28), np.uint8),
        np.zeros((1, 20, 28, 3), np.uint8),
    ],
    ids=lambda image: f"{image.dtype}{image.shape}",
)
def test_images_of_another_shape_or_type_are_refused(image: Array, samples: list[Sample]) -> None:
    with pytest.raises(UsageError, match=r"a bee: an image is uint8 \(H, W, 3\)"):
        sample_with(samples, image=image)


@pytest.mark.parametrize("shape", [(28, 20), (20, 27), (1, 20, 28), (20, 28, 1), (560,)], ids=str)
def test_masks_of_another_shape_are_refused(shape: tuple[int, ...], samples: list[Sample]) -> None:
    with pytest.raises(UsageError, match="a bee: a mask of"):
        sample_with(samples, mask=np.zeros(shape, np.float32))


# An unsigned mask would wrap round when it is negated to be sorted.
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, np.bool_, np.complex64])
def test_masks_that_are_not_floating_point_are_refused(dtype: type, samples: list[Sample]) -> None:
    with pytest.raises(UsageError, match=r"a bee: .*mask"):
        sample_with(samples, mask=np.eye(20, 28).astype(dtype))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_masks_that_are_not_finite_are_refused(value: float, samples: list[Sample]) -> None:
    mask = samples[0].mask.copy()
    mask[7, 3] = value
    with pytest.raises(UsageError, match="a bee: the mask has values that are not finite"):
        sample_with(samples, mask=mask)


@pytest.mark.parametrize(
    "evidence",
    [np.ones((28, 20), np.bool_), np.ones((20, 28), np.uint8), np.ones((20, 28), np.float32), np.ones(560, np.bool_)],
    ids=lambda evidence: f"{evidence.dtype}{evidence.shape}",
)
def test_ground_truth_of_another_shape_or_type_is_refused(evidence: Array, samples: list[Sample]) -> None:
    with pytest.raises(UsageError, match="a bee: ground truth is bool"):
        sample_with(samples, evidence=evidence)


def test_ground_truth_without_a_pixel_is_refused(samples: list[Sample]) -> None:
    with pytest.raises(UsageError, match="a bee: the ground truth has no pixel"):
        sample_with(samples, evidence=np.zeros((20, 28), np.bool_))


@pytest.mark.parametrize("name", NEED_EVIDENCE)
def test_a_metric_without_its_ground_truth_is_refused(name: str, samples: list[Sample], toy: Predict) -> None:
    with pytest.raises(UsageError, match=f"a bee: the metric '{name}' needs ground truth"):
        measure(make_metrics([name]), [*samples, sample_with(samples, evidence=None)], toy)


@pytest.mark.parametrize(("name", "explainer"), [("sensitivity", "explain"), ("randomisation", "randomised")])
def test_a_metric_without_its_explainer_is_refused(
    name: str, explainer: str, samples: list[Sample], toy: Predict
) -> None:
    others = {key: answer for key, answer in EXPLAINERS.items() if key != explainer}
    with pytest.raises(UsageError, match=f"'{explainer}', which was not given"):
        measure(make_metrics([name]), samples, toy, explainers=others)


@pytest.mark.parametrize("target", [-1, 5, 1000])
@pytest.mark.parametrize("name", ["deletion", "adp", "sic"])
def test_a_target_that_is_no_class_is_refused(name: str, target: int, samples: list[Sample], toy: Predict) -> None:
    with pytest.raises(UsageError, match=f"a bee: class {target} is none of the 5"):
        measure(make_metrics([name]), [*samples, sample_with(samples, target=target)], toy)


@pytest.mark.parametrize("difference", [-1, 1])
def test_another_number_of_answers_than_images_is_refused(difference: int, samples: list[Sample], toy: Predict) -> None:
    def miscount(images: Array) -> Array:
        return np.resize(toy(images), (len(images) + difference, 5))

    with pytest.raises(UsageError, match=f"a batch of 16 images got {16 + difference} answers"):
        measure([deletion()], samples, miscount, batch_size=16)


def test_no_samples_are_refused(toy: Predict) -> None:
    def nothing() -> Iterator[Sample]:
        yield from ()

    for samples in ([], nothing()):
        for metric in (Area(), deletion()):
            with pytest.raises(UsageError, match="no image to measure on"):
                measure([metric], samples, toy)


@pytest.mark.parametrize("name", ["deletion", "sensitivity", "sic", "area", "pointing"])
def test_images_of_different_sizes_are_refused(
    name: str, samples: list[Sample], make_samples: Callable[..., list[Sample]]
) -> None:
    other = make_samples(1, 28, 20)
    with pytest.raises(UsageError, match=r"image 0: \(28, 20\) pixels, but the first image had another size"):
        measure(make_metrics([name]), [*samples, *other], lambda x: np.ones((len(x), 5)), explainers=EXPLAINERS)


@pytest.mark.parametrize("batch_size", [0, -3])
def test_a_batch_without_an_image_is_refused(batch_size: int, samples: list[Sample], toy: Predict) -> None:
    with pytest.raises(UsageError, match="at least one image"):
        measure([deletion()], samples, toy, batch_size=batch_size)


def test_two_metrics_of_one_name_are_refused(samples: list[Sample], toy: Predict) -> None:
    with pytest.raises(UsageError, match="two metrics have the same name: deletion, deletion"):
        measure([deletion(), deletion(fill="black")], samples, toy)


def test_answers_that_are_not_finite_are_refused(samples: list[Sample], toy: Predict) -> None:
    def broken(images: Array) -> Array:
        answers = np.array(toy(images))
        answers[0, 1] = np.nan
        return answers

    with pytest.raises(UsageError, match="not finite"):
        measure([deletion()], samples, broken)


def test_a_classifier_that_answers_with_one_number_per_image_is_refused(samples: list[Sample]) -> None:
    with pytest.raises(UsageError, match=r"probabilities \(N, K\)"):
        measure([deletion()], samples, lambda images: np.ones(len(images)))


@pytest.mark.parametrize("name", ["sensitivity", "randomisation"])
def test_masks_of_another_size_are_refused(name: str, samples: list[Sample], toy: Predict) -> None:
    explain = {key: lambda images, target: np.ones((len(images), 3, 3)) for key in ("explain", "randomised")}
    with pytest.raises(UsageError, match=r"masks of \(3, 3\)"):
        measure(make_metrics([name]), samples, toy, explainers=explain)


def test_a_line_of_pixels_cannot_be_interpolated(toy: Predict) -> None:
    line = Sample(np.zeros((1, 9, 3), np.uint8), np.linspace(0, 1, 9, dtype=np.float32)[None], 0)
    with pytest.raises(UsageError, match="over an area"):
        measure(make_metrics(["sic"]), [line], lambda images: np.ones((len(images), 2)) / 2)
