"""The parity gate's self-contained part: what can be proven about a bundle without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..contracts import Floats, Uint8
from .compare import change_between, cosine, max_abs
from .engine import Engine, run_in_batches
from .golden import compare_golden, golden_precision, run_golden
from .manifest import ParityReport
from .precision import BARS, PrecisionBars

__all__ = ["BATCH_BAR", "INPUT_DEPENDENCE_BAR", "Check", "batch_bar", "beside_another", "verify_engine"]

INPUT_DEPENDENCE_BAR = 0.01
BATCH_BAR = 1e-5


def batch_bar(parity: ParityReport) -> float:
    """How far an image's mask may be from its mask in another batch: rounding, or what the original itself allows."""
    return min(BATCH_BAR * parity.rounding, parity.mask_bar) if parity.mask_bar <= 1e-4 else parity.mask_bar


def beside_another(engine: Engine, images: Uint8, target: NDArray[np.int64], masks: Floats, batch: int) -> float:
    """The largest difference between masks alone and beside that of another class; 0 where one pass answers for one.

    Args:
        engine: of an opened bundle.
        images: uint8 (N, H, W, 3).
        target: the classes that were asked for, (N,).
        masks: what they gave, (N, 1, H, W).
        batch: images per call.
    """
    manifest = engine.bundle.manifest
    if not manifest.several_targets:
        return 0.0
    other = (target + 1) % len(manifest.class_names)
    both = run_in_batches(engine, images, np.stack([target, other], 1), batch).mask
    alone = run_in_batches(engine, images, other, batch).mask
    return float(np.abs(both - np.concatenate([masks, alone], 1)).max())


@dataclass(frozen=True)
class Check:
    """One thing that was checked: what was measured, what it may be, and whether it passed."""

    name: str
    measured: str
    bar: str
    passed: bool


def verify_engine(engine: Engine) -> list[Check]:
    """Check golden samples, determinism, batch invariance and input dependence of an opened bundle."""
    manifest, golden = engine.bundle.manifest, engine.bundle.golden
    batch = min(len(golden.images), max(2, manifest.batch))
    first, second = run_golden(engine, batch), run_golden(engine, batch)
    alone = run_golden(engine, 1).mask
    change = float(np.median(change_between(first.mask)))
    same = np.array_equal(first.mask, second.mask) and np.array_equal(first.probabilities, second.probabilities)
    only = engine.probabilities(golden.images)
    predict_error = float(max_abs(only, first.probabilities).max())
    in_range = bool(np.isfinite(first.mask).all() and first.mask.min() >= 0 and first.mask.max() <= 1)
    parity = manifest.parity
    bars = BARS.get(engine.precision)
    predict_bar = BATCH_BAR if bars is None else bars.probabilities
    together = beside_another(engine, golden.images, golden.target, first.mask, batch)
    several = Check(
        "two classes at once equal each alone",
        f"{together:.1e}",
        f"≤ {batch_bar(parity):.0e}",
        together <= batch_bar(parity),
    )
    checks = [
        *(_against_pytorch(engine) if bars is None else _against_pytorch_in(engine, bars)),
        Check(
            "prediction alone is the same", f"{predict_error:.1e}", f"≤ {predict_bar:.0e}", predict_error <= predict_bar
        ),
        Check("two runs are the same", "bit-equal" if same else "different", "bit-equal", same),
        _batches(batch, alone, first.mask, parity, bars),
        Check(
            "mask depends on the image", f"{change:.3f}", f"≥ {INPUT_DEPENDENCE_BAR}", change >= INPUT_DEPENDENCE_BAR
        ),
        Check("mask is finite and in [0, 1]", "yes" if in_range else "no", "yes", in_range),
    ]
    return [*checks, several] if manifest.several_targets and bars is None else checks


def _against_pytorch(engine: Engine) -> list[Check]:
    """Masks and probabilities of the golden samples, in single precision."""
    parity, (mask, probabilities) = engine.bundle.manifest.parity, compare_golden(engine)
    return [
        Check("masks equal PyTorch's", f"{mask:.1e}", f"≤ {parity.mask_bar:.0e}", mask <= parity.mask_bar),
        Check(
            "probabilities equal PyTorch's",
            f"{probabilities:.1e}",
            f"≤ {parity.probabilities_bar:.0e}",
            probabilities <= parity.probabilities_bar,
        ),
    ]


def _against_pytorch_in(engine: Engine, bars: PrecisionBars) -> list[Check]:
    """The same in lower precision."""
    found = golden_precision(engine)
    checks = [
        Check(
            "masks' cosine with PyTorch's",
            f"{found.mask_cosine:.5f}",
            f"≥ {bars.cosine}",
            found.mask_cosine >= bars.cosine,
        ),
        Check(
            "probabilities are near PyTorch's",
            f"{found.probabilities_max_abs:.1e}",
            f"≤ {bars.probabilities}",
            found.probabilities_max_abs <= bars.probabilities,
        ),
    ]
    if bars.top10_iou:
        checks.append(
            Check(
                "masks' top 10 % overlap with PyTorch's",
                f"{found.mask_top10_iou:.3f}",
                f"≥ {bars.top10_iou}",
                found.mask_top10_iou >= bars.top10_iou,
            )
        )
    return checks


def _batches(batch: int, alone: Floats, together: Floats, parity: ParityReport, bars: PrecisionBars | None) -> Check:
    """Masks in a batch against each alone; in lower precision these round otherwise, and are as near as PyTorch's."""
    name = f"batch of {batch} equals {batch} of 1"
    if bars is not None:
        least = float(cosine(alone, together).min())
        return Check(name, f"cosine {least:.5f}", f"≥ {bars.cosine}", least >= bars.cosine)
    error = float(max_abs(alone, together).max())
    return Check(name, f"{error:.1e}", f"≤ {batch_bar(parity):.0e}", error <= batch_bar(parity))
