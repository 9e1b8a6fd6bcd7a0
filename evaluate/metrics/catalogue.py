"""All metrics by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...errors import UsageError, suggest
from .information import aic, sic
from .localisation import (
    F1,
    AveragePrecision,
    Contrast,
    MeanIoU,
    PixelAccuracy,
    Pointing,
    PointingBox,
    Precision,
    RowF1,
)
from .masking import ADD, ADP, PIC
from .metric import Metric
from .perturbation import (
    Protocol,
    deletion,
    insertion,
    insertion_minus_deletion,
    negative_perturbation,
    positive_perturbation,
)
from .probes import Fill
from .shape import Area, AreaError, TotalVariation
from .stability import NoiseSensitivity, Randomisation

__all__ = ["METRIC_NAMES", "QUICK", "QUICK_WITH_EVIDENCE", "make_metrics"]

_CURVES: dict[str, Callable[[Protocol, Fill, int], Metric]] = {
    "insertion": insertion,
    "deletion": deletion,
    "insertion-deletion": insertion_minus_deletion,
    "positive": positive_perturbation,
    "negative": negative_perturbation,
}
_OTHERS: dict[str, Callable[[], Metric]] = {
    "adp": ADP,
    "pic": PIC,
    "add": ADD,
    "aic": aic,
    "sic": sic,
    "pointing": Pointing,
    "pointing-box": PointingBox,
    "precision": Precision,
    "contrast": Contrast,
    "pa": PixelAccuracy,
    "miou": MeanIoU,
    "map": AveragePrecision,
    "f1": F1,
    "f1-rows": RowF1,
    "area": Area,
    "area-error": AreaError,
    "smoothness": TotalVariation,
    "sensitivity": NoiseSensitivity,
    "randomisation": Randomisation,
}

METRIC_NAMES = (*_CURVES, *_OTHERS)
QUICK = ("insertion", "deletion", "positive", "negative", "adp", "pic", "add", "area", "smoothness")
"""What is measured unless told otherwise: no ground truth, no interpolation, no second explanation."""
QUICK_WITH_EVIDENCE = (*QUICK, "pointing", "precision", "contrast", "miou", "f1")


def make_metrics(
    names: Sequence[str],
    *,
    protocol: Protocol = "rise",
    fill: Fill = (128, 128, 128),
    steps: int = 16,
    tolerance: float = 15.0,
) -> list[Metric]:
    """Metrics by name.

    Args:
        names: of `METRIC_NAMES`.
        protocol: how the four curves are computed; see `Perturbation`.
        fill: what stands in the place of removed pixels in the four curves.
        steps: of the four curves.
        tolerance: of the pointing game, pixels.

    Raises:
        UsageError: a name that there is not.
    """
    metrics: list[Metric] = []
    for name in dict.fromkeys(names):
        if name in _CURVES:
            metrics.append(_CURVES[name](protocol, fill, steps))
        elif name == "pointing":
            metrics.append(Pointing(tolerance))
        elif name in _OTHERS:
            metrics.append(_OTHERS[name]())
        else:
            raise UsageError(f"there is no metric '{name}'; {suggest(name, METRIC_NAMES)}")
    return metrics
