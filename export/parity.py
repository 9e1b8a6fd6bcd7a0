"""The parity gate: an exported graph must explain what the PyTorch explainer explains, or no bundle is written."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ..accel.compare import change_between, cosine, max_abs, spearman, top_iou
from ..accel.engine import Engine, run_in_batches
from ..accel.manifest import ParityReport
from ..accel.verify import INPUT_DEPENDENCE_BAR, batch_bar, beside_another
from ..contracts import Explanation, Floats, MaskQuery, Uint8
from ..errors import ParityError, UsageError
from ..methods.explainee import Explainee
from ..methods.gradient.explainer import GradientExplainer
from .graph import ExplainerGraph

__all__ = [
    "BATCHES",
    "FEW",
    "MASK_BAR",
    "MIN_IMAGES",
    "error_of_float32",
    "failures",
    "functions_error",
    "measure_parity",
    "probability_error_of_float32",
    "require_parity",
]

BATCHES = (1, 2, 7, 16)
MIN_IMAGES = 16
MASK_BAR = 1e-4
PROBABILITY_BAR = 1e-5
WORST = 4  # images whose error in float32 is measured
FEW = 4  # images that batch sizes, the second run and the other class are tried with where a method takes many passes
COSINE_BAR = 0.9999  # where float32 itself is not exact enough for the bar above


def functions_error(engine: Engine, graph: ExplainerGraph, images: Uint8, target: NDArray[np.int64]) -> float:
    """Largest difference of masks that are functions from PyTorch's, where they are asked for otherwise than a bundle
    does by itself: other areas, an odd size, a part of the image, and masks without a common pixel.

    Args:
        engine: holds the exported graph.
        graph: the original.
        images: uint8 (N, H, W, 3) at the model's size.
        target: the classes, (N,).
    """
    manifest = engine.bundle.manifest
    elsewhere = MaskQuery(areas=(0.03, 0.17, 0.6), size=(37, 51), box=(0.1, 0.2, 0.7, 0.95))
    queries = [elsewhere] + [replace(elsewhere, areas=(0.07,), parts=manifest.parts)] * (manifest.parts > 1)
    worst = 0.0
    for query in queries:
        areas = torch.tensor(query.areas)
        rows, columns = (torch.from_numpy(places) for places in query.places(manifest.mask_size))
        with torch.no_grad():
            answers = graph(torch.from_numpy(images), torch.from_numpy(target), areas, rows, columns)
        expected = answers[3 if query.parts else 2].numpy()
        worst = max(worst, float(np.abs(engine.run(images, target, query).mask - expected).max()))
    return worst


def measure_parity(
    engine: Engine,
    images: Uint8,
    original: Explanation,
    *,
    class_specific: bool,
    target: NDArray[np.int64] | None = None,
    own_error: Callable[[Uint8, NDArray[np.int64], Floats], float] | None = None,
    own_probability_error: Callable[[Uint8, Floats], float] | None = None,
    rounding: float = 1.0,
    batches: Sequence[int] = BATCHES,
    few: int | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> ParityReport:
    """Compare an engine with the original, image by image; the report keeps the worst.

    Args:
        engine: holds the exported graph.
        images: uint8 (N, H, W, 3) at the model's size, N ≥ 16, of the user's own kind.
        original: PyTorch's answers for them.
        class_specific: also measure that the mask changes with the target class.
        target: the classes that were asked for, (N,); default: the predicted ones.
        own_error: from images, targets and the original's masks to the original's own error in float32; where masks are
            further from PyTorch's than the usual bar, they may be three times as far as that: twice as far as PyTorch
            from the exact masks.
        own_probability_error: the same of probabilities, from images and the original's probabilities.
        rounding: see `ParityReport`.
        batches: batch sizes to run.
        few: all images run in the largest batch; in the others, a second time, and for another class only this many,
            and as many as fill a batch; default all.
        on_progress: told the number of images done, of about `images`.

    Raises:
        UsageError: fewer than 16 images.
    """
    if len(images) < MIN_IMAGES:
        raise UsageError(
            f"the parity gate needs at least {MIN_IMAGES} images and got {len(images)}; give more with --data"
        )
    asked = np.full(len(images), -1, dtype=np.int64) if target is None else target
    some = len(images) if few is None else few
    reference = run_in_batches(engine, images, asked, max(batches), on_progress)
    runs = [reference] + [
        run_in_batches(engine, images[: max(batch, some)], asked[: max(batch, some)], batch)
        for batch in sorted(batches, reverse=True)[1:]
    ]
    again = run_in_batches(engine, images[: len(runs[-1])], asked[: len(runs[-1])], min(batches))
    target_dependence = None
    if class_specific:
        classes = original.probabilities.shape[1]
        other = run_in_batches(engine, images[:some], (original.target[:some] + 1) % classes, max(batches))
        target_dependence = float(np.median(max_abs(other.mask, reference.mask[:some])))
    errors = max_abs(reference.mask, original.mask)
    for run in runs[1:]:
        errors[: len(run)] = np.maximum(errors[: len(run)], max_abs(run.mask, original.mask[: len(run)]))
    together = beside_another(engine, images[:some], asked[:some], reference.mask[:some], max(batches))
    bar = MASK_BAR
    if own_error is not None and errors.max() > MASK_BAR:
        worst = np.argsort(-errors)[:WORST]
        bar = max(
            bar, 3 * own_error(images[worst], asked[worst], original.mask[worst])
        )  # 2 from the exact masks, which are 1 from PyTorch's
    probability_errors = np.zeros(len(images))
    for run in runs:
        found = max_abs(run.probabilities, original.probabilities[: len(run)])
        probability_errors[: len(run)] = np.maximum(probability_errors[: len(run)], found)
    probability_bar = PROBABILITY_BAR
    if own_probability_error is not None and probability_errors.max() > PROBABILITY_BAR:
        worst = np.argsort(-probability_errors)[:WORST]
        probability_bar = max(probability_bar, 3 * own_probability_error(images[worst], original.probabilities[worst]))
    return ParityReport(
        images=len(images),
        batches=tuple(batches),
        mask_max_abs=float(errors.max()),
        mask_mean_abs=float(np.abs(reference.mask - original.mask).mean()),
        mask_cosine=min(float(cosine(run.mask, original.mask[: len(run)]).min()) for run in runs),
        mask_spearman=min(float(spearman(run.mask, original.mask[: len(run)]).min()) for run in runs),
        mask_top10_iou=min(float(top_iou(run.mask, original.mask[: len(run)]).min()) for run in runs),
        probabilities_max_abs=float(probability_errors.max()),
        targets_equal=all(np.array_equal(run.target, original.target[: len(run)]) for run in runs),
        batch_max_abs=max(together, *(float(max_abs(run.mask, reference.mask[: len(run)]).max()) for run in runs)),
        deterministic=np.array_equal(again.mask, runs[-1].mask)
        and np.array_equal(again.probabilities, runs[-1].probabilities),
        input_dependence=float(np.median(change_between(reference.mask))),
        target_dependence=target_dependence,
        mask_bar=bar,
        probabilities_bar=probability_bar,
        rounding=rounding,
    )


def failures(report: ParityReport) -> list[str]:
    """What a report does not pass, in words; empty if it passes."""
    found = []
    if not report.mask_max_abs <= report.mask_bar:
        found.append(f"masks differ from PyTorch's by up to {report.mask_max_abs:.1e} (allowed {report.mask_bar:.0e})")
    if not report.probabilities_max_abs <= report.probabilities_bar:
        found.append(
            f"probabilities differ by up to {report.probabilities_max_abs:.1e} (allowed {report.probabilities_bar:.0e})"
        )
    if not report.targets_equal:
        found.append("another class is explained than in PyTorch")
    if not report.batch_max_abs <= batch_bar(report):
        found.append(
            f"an image's mask depends on its batch, by up to {report.batch_max_abs:.1e} "
            f"(allowed {batch_bar(report):.0e})"
        )
    if report.mask_bar > MASK_BAR and not report.mask_cosine >= COSINE_BAR:
        found.append(f"a mask's cosine with PyTorch's is {report.mask_cosine:.6f} (at least {COSINE_BAR} is asked)")
    if not report.deterministic:
        found.append("two runs of the same images differ")
    if not report.input_dependence >= INPUT_DEPENDENCE_BAR:
        found.append(
            f"the mask hardly depends on the image (it changes by {report.input_dependence:.1e} from one to the next, "
            f"at least {INPUT_DEPENDENCE_BAR} is asked): an untrained explainer, or a map frozen at export"
        )
    if report.target_dependence is not None and not report.target_dependence >= INPUT_DEPENDENCE_BAR:
        found.append(f"the mask hardly depends on the target class (it changes by {report.target_dependence:.1e})")
    return found


def require_parity(report: ParityReport) -> None:
    """Refuse a report that does not pass.

    Raises:
        ParityError: with everything that failed.
    """
    if found := failures(report):
        raise ParityError(
            "the exported graph did not pass the parity gate, so no bundle was written: " + "; ".join(found)
        )


def error_of_float32(explainer: GradientExplainer, images: Uint8, target: NDArray[np.int64], masks: Floats) -> float:
    """How far PyTorch's own masks in float32 are from those in float64: the largest |Δ| over the images.

    Both of the masks given, which come from batches, and of the images one by one: the two round differently, and near
    a kink of a ReLU one of them may fall on the other side.
    """
    exact_explainee = replace(explainer.explainee, model=copy.deepcopy(explainer.explainee.model).double())
    exact = GradientExplainer(exact_explainee, replace(explainer.config, layers=explainer.layers)).double()
    largest = 0.0
    for image, label, mask in zip(images, target, masks, strict=True):
        normalised = _exactly_normalised(image, explainer.explainee)
        asked = torch.tensor([int(label)])
        expected = exact(normalised, asked)[2]
        for found in (explainer(normalised.float(), asked)[2], torch.from_numpy(mask)[None]):
            largest = max(largest, float((found.double() - expected).abs().max()))
    return largest


@torch.no_grad()
def probability_error_of_float32(explainee: Explainee, images: Uint8, probabilities: Floats) -> float:
    """How far PyTorch's own probabilities in float32, the given ones and those of the images one by one, are from those
    in float64: the largest |Δ|.
    """
    model, exact = explainee.model, copy.deepcopy(explainee.model).double()
    largest = 0.0
    for image, given in zip(images, probabilities, strict=True):
        normalised = _exactly_normalised(image, explainee)
        expected = exact(normalised).softmax(1)
        for found in (model(normalised.float()).softmax(1), torch.from_numpy(given)[None]):
            largest = max(largest, float((found.double() - expected).abs().max()))
    return largest


def _exactly_normalised(image: Uint8, explainee: Explainee) -> torch.Tensor:
    """An image uint8 (H, W, 3) as the model takes it, in float64, (1, 3, H, W)."""
    spec = explainee.image_spec
    mean, std = (torch.tensor(value, dtype=torch.float64)[:, None, None] for value in (spec.mean, spec.std))
    pixels = torch.from_numpy(np.ascontiguousarray(image[None])).permute(0, 3, 1, 2)
    return (pixels.double() / 255 - mean) / std
