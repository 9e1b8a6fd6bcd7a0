"""Holding an engine against the PyTorch explainer's own answers, which every bundle carries, without PyTorch."""

from __future__ import annotations

import hashlib
import platform

import numpy as np

from ..contracts import Explanation
from ..errors import ParityError
from .bundle import file_sha256
from .cache import cache_folder
from .compare import max_abs
from .engine import Engine, run_in_batches
from .manifest import MANIFEST_FILE, PrecisionReport
from .precision import losses, measure_precision

__all__ = ["compare_golden", "ensure_golden", "golden_precision", "run_golden"]


def run_golden(engine: Engine, batch: int) -> Explanation:
    """An engine's answers for the golden samples, in batches of at most so many."""
    golden = engine.bundle.golden
    return run_in_batches(engine, golden.images, golden.target, batch)


def compare_golden(engine: Engine) -> tuple[float, float]:
    """Run the golden samples; (largest difference of a mask pixel, largest difference of a probability)."""
    golden = engine.bundle.golden
    answer = run_golden(engine, engine.bundle.manifest.batch)
    return float(max_abs(answer.mask, golden.mask).max()), float(
        max_abs(answer.probabilities, golden.probabilities).max()
    )


def ensure_golden(engine: Engine, identity: str) -> None:
    """Refuse an engine that does not reproduce the golden samples; a pass is remembered per machine, engine and bundle.

    Raises:
        ParityError: a mask or a probability is further from the original than the bars of the bundle, or of a lower
            precision.
    """
    marker = cache_folder("golden") / _key(engine, identity)
    if marker.exists():
        return
    if found := _failures(engine):
        raise ParityError(
            f"{identity} does not compute what the original explainer computes: {found}; "
            "use another engine or provider, or export the bundle again"
        )
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError:
        pass  # a machine without a writable cache checks again next time


def golden_precision(engine: Engine) -> PrecisionReport:
    """What an engine in lower precision loses on the golden samples."""
    golden = engine.bundle.golden
    explained = np.where(golden.target < 0, golden.probabilities.argmax(1), golden.target)
    original = Explanation(probabilities=golden.probabilities, target=explained, mask=golden.mask)
    return measure_precision(run_golden(engine, engine.bundle.manifest.batch), original)


def _failures(engine: Engine) -> str:
    """What is not as the bars of the engine's precision ask; empty if all is."""
    if engine.precision != "fp32":
        return "; ".join(losses(golden_precision(engine), engine.precision))
    mask, probabilities = compare_golden(engine)
    bars = engine.bundle.manifest.parity
    if mask <= bars.mask_bar and probabilities <= bars.probabilities_bar:
        return ""
    return (
        f"masks differ by up to {mask:.1e} (allowed {bars.mask_bar:.0e}), probabilities by {probabilities:.1e} "
        f"(allowed {bars.probabilities_bar:.0e})"
    )


def _key(engine: Engine, identity: str) -> str:
    bundle = file_sha256(engine.bundle.path / MANIFEST_FILE)
    machine = f"{platform.node()} {platform.machine()} {platform.processor()}"
    return hashlib.sha256(f"{bundle} {identity} {machine}".encode()).hexdigest()
