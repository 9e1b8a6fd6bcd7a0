"""How much memory the process takes, and how many images an engine may take at once within a budget."""

from __future__ import annotations

import os

from ..errors import UsageError
from .engine import Engine

__all__ = ["largest_batch", "peak_mib", "physical_bytes", "reset_peak", "resident_mib"]

_PROBE = 8  # images
_MOST = 64  # images; larger batches make a CPU no faster
_RESERVE = 0.5  # of what is left: allocators grow in powers of two, and the copies themselves need room
_UNKNOWN_MIB_PER_MEGAPIXEL = 1200.0  # where the system does not tell; ResNet-50 takes about a third


def largest_batch(engine: Engine, budget_mib: float) -> int:
    """The number of images per call, up to 64, whose prediction and explanation keep the process within a budget.

    One image and then eight are run, and the growth of the process is measured.

    Args:
        engine: an opened engine.
        budget_mib: for the whole process, MiB.

    Raises:
        UsageError: not even one image fits.
    """
    golden = engine.bundle.golden.images
    engine.run(golden[:1])
    engine.probabilities(golden[:1])
    reset_peak()
    before = peak_mib()
    images = golden[[index % len(golden) for index in range(_PROBE)]]
    engine.run(images)
    engine.probabilities(images)
    after = peak_mib()
    if before is None or after is None:
        height, width = engine.bundle.manifest.image.size
        return max(1, min(_MOST, int(budget_mib * _RESERVE / (_UNKNOWN_MIB_PER_MEGAPIXEL * height * width / 1e6))))
    per_image = max((after - before) / (_PROBE - 1), images[0].nbytes * 16 / 2**20)
    room = (budget_mib - after) * _RESERVE
    if room < per_image and budget_mib < after:
        raise UsageError(
            f"a memory budget of {budget_mib:.0f} MiB is too small: the process takes {after:.0f} MiB with a batch of "
            f"{_PROBE} images; give it --memory-budget {after * 1.25 / 1024:.1f} (GiB) or more"
        )
    return max(_PROBE, min(_MOST, _PROBE + int(room / per_image)))


def reset_peak() -> None:
    """Forget the peak that `peak_mib` tells, where the system lets us."""
    try:
        with open("/proc/self/clear_refs", "w") as stream:
            stream.write("5")
    except OSError:
        pass  # not Linux, or not allowed: the peak is then that of the whole process


def peak_mib() -> float | None:
    """Largest resident memory of this process so far, MiB; None where the system does not tell."""
    return _status("VmHWM:")


def resident_mib() -> float | None:
    """Resident memory of this process, MiB; None where the system does not tell."""
    return _status("VmRSS:")


def physical_bytes() -> int | None:
    """Memory of the machine; None where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # Windows has no such function
        return None


def _status(field: str) -> float | None:
    try:
        with open("/proc/self/status") as stream:
            for line in stream:
                if line.startswith(field):
                    return int(line.split()[1]) / 1024
    except OSError:
        pass
    return None
