"""The parity gate's self-contained part: what can be proven about a bundle without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..contracts import Floats, Uint8
from .compare import change_between, max_abs
from .engine import Engine, run_in_batches
from .golden import compare_golden, run_golden
from .manifest import ParityReport

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
    mask_error, probability_error = compare_golden(engine)
    batch = min(len(golden.images), max(2, manifest.batch))
    first, second = run_golden(engine, batch), run_golden(engine, batch)
    alone = run_golden(engine, 1).mask
    batch_error = float(max_abs(alone, first.mask).max())
    change = float(np.median(change_between(first.mask)))
    same = np.array_equal(first.mask, second.mask) and np.array_equal(first.probabilities, second.probabilities)
    only = engine.probabilities(golden.images)
    predict_error = float(max_abs(only, first.probabilities).max())
    in_range = bool(np.isfinite(first.mask).all() and first.mask.min() >= 0 and first.mask.max() <= 1)
    parity = manifest.parity
    together = beside_another(engine, golden.images, golden.target, first.mask, batch)
    several = Check(
        "two classes at once equal each alone",
        f"{together:.1e}",
        f"≤ {batch_bar(parity):.0e}",
        together <= batch_bar(parity),
    )
    checks = [
        Check("masks equal PyTorch's", f"{mask_error:.1e}", f"≤ {parity.mask_bar:.0e}", mask_error <= parity.mask_bar),
        Check(
            "probabilities equal PyTorch's",
            f"{probability_error:.1e}",
            f"≤ {parity.probabilities_bar:.0e}",
            probability_error <= parity.probabilities_bar,
        ),
        Check("prediction alone is the same", f"{predict_error:.1e}", f"≤ {BATCH_BAR:.0e}", predict_error <= BATCH_BAR),
        Check("two runs are the same", "bit-equal" if same else "different", "bit-equal", same),
        Check(
            f"batch of {batch} equals {batch} of 1",
            f"{batch_error:.1e}",
            f"≤ {batch_bar(parity):.0e}",
            batch_error <= batch_bar(parity),
        ),
        Check(
            "mask depends on the image", f"{change:.3f}", f"≥ {INPUT_DEPENDENCE_BAR}", change >= INPUT_DEPENDENCE_BAR
        ),
        Check("mask is finite and in [0, 1]", "yes" if in_range else "no", "yes", in_range),
    ]
    return [*checks, several] if manifest.several_targets else checks
