"""The parity gate: an exported graph must explain what the PyTorch explainer explains, or no bundle is written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..accel.compare import change_between, cosine, max_abs, spearman, top_iou
from ..accel.engine import Engine
from ..accel.manifest import ParityReport
from ..accel.verify import BATCH_BAR, INPUT_DEPENDENCE_BAR
from ..contracts import Explanation, Uint8
from ..errors import ParityError, UsageError
from .graph import ExplainerGraph

__all__ = ["BATCHES", "MIN_IMAGES", "explain_in_torch", "failures", "measure_parity", "require_parity"]

BATCHES = (1, 2, 7, 16)
MIN_IMAGES = 16


def explain_in_torch(graph: ExplainerGraph, images: Uint8, batch_size: int = 16) -> Explanation:
    """The original's answers about the predicted classes, by PyTorch."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(images), batch_size):
            image = torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size]))
            parts.append([value.numpy() for value in graph(image, torch.full((len(image),), -1, dtype=torch.int64))])
    probabilities, target, mask = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Explanation(probabilities=probabilities, target=target, mask=mask)


def measure_parity(
    engine: Engine,
    images: Uint8,
    original: Explanation,
    *,
    class_specific: bool,
    batches: Sequence[int] = BATCHES,
) -> ParityReport:
    """Compare an engine with the original, image by image, at several batch sizes; the report keeps the worst.

    Args:
        engine: holds the exported graph.
        images: uint8 (N, H, W, 3) at the model's size, N ≥ 16, of the user's own kind.
        original: PyTorch's answers for them.
        class_specific: also measure that the mask changes with the target class.
        batches: batch sizes to run.

    Raises:
        UsageError: fewer than 16 images.
    """
    if len(images) < MIN_IMAGES:
        raise UsageError(
            f"the parity gate needs at least {MIN_IMAGES} images and got {len(images)}; give more with --data"
        )
    runs = [_run(engine, images, batch) for batch in batches]
    reference = runs[0]
    again = _run(engine, images, batches[0])
    target_dependence = None
    if class_specific:
        classes = original.probabilities.shape[1]
        other = engine.run(images[:MIN_IMAGES], (original.target[:MIN_IMAGES] + 1) % classes)
        target_dependence = float(np.median(max_abs(other.mask, reference.mask[:MIN_IMAGES])))
    return ParityReport(
        images=len(images),
        batches=tuple(batches),
        mask_max_abs=max(float(max_abs(run.mask, original.mask).max()) for run in runs),
        mask_mean_abs=float(np.abs(reference.mask - original.mask).mean()),
        mask_cosine=min(float(cosine(run.mask, original.mask).min()) for run in runs),
        mask_spearman=min(float(spearman(run.mask, original.mask).min()) for run in runs),
        mask_top10_iou=min(float(top_iou(run.mask, original.mask).min()) for run in runs),
        probabilities_max_abs=max(float(max_abs(run.probabilities, original.probabilities).max()) for run in runs),
        targets_equal=all(np.array_equal(run.target, original.target) for run in runs),
        batch_max_abs=max(float(max_abs(run.mask, reference.mask).max()) for run in runs),
        deterministic=np.array_equal(again.mask, reference.mask)
        and np.array_equal(again.probabilities, reference.probabilities),
        input_dependence=float(np.median(change_between(reference.mask))),
        target_dependence=target_dependence,
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
    if not report.batch_max_abs <= BATCH_BAR:
        found.append(
            f"an image's mask depends on its batch, by up to {report.batch_max_abs:.1e} (allowed {BATCH_BAR:.0e})"
        )
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


def _run(engine: Engine, images: Uint8, batch: int) -> Explanation:
    parts = [engine.run(images[start : start + batch]) for start in range(0, len(images), batch)]
    return Explanation(
        probabilities=np.concatenate([part.probabilities for part in parts]),
        target=np.concatenate([part.target for part in parts]),
        mask=np.concatenate([part.mask for part in parts]),
    )
