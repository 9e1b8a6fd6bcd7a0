"""Is a mask a good explanation? The field's metrics, exact, on any engine, without PyTorch.

A classifier is a function from images uint8 (N, H, W, 3) to probabilities (N, K). `measure` runs any number of metrics
over a stream of `Sample`s; `estimate` and `difference` say how sure the numbers are.

Example:
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> def predict(images):  # class 1 is "the top left corner is bright"
    ...     bright = images[:, :2, :2].mean((1, 2, 3)) / 255
    ...     return np.stack([1 - bright, bright], axis=1)
    >>> image = np.zeros((8, 8, 3), np.uint8)
    >>> image[:2, :2] = 255
    >>> mask = np.zeros((8, 8), np.float32)
    >>> mask[:2, :2] = 1
    >>> metrics = [insertion(fill="black"), deletion(fill="black")]
    >>> rows = measure(metrics, [Sample(image, mask, target=1)], predict)
    >>> [round(metric.aggregate(rows[metric.name]), 2) for metric in metrics]
    [0.97, 0.03]
"""

from .catalogue import METRIC_NAMES, QUICK, QUICK_WITH_EVIDENCE, make_metrics
from .information import InformationCurve, aic, sic
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
    InsertionMinusDeletion,
    Perturbation,
    deletion,
    insertion,
    insertion_minus_deletion,
    negative_perturbation,
    positive_perturbation,
)
from .run import Explain, Predict, measure
from .sample import Sample
from .shape import Area, AreaError, TotalVariation, overlap
from .stability import NoiseSensitivity, Randomisation
from .statistics import Estimate, difference, estimate

__all__ = [
    "ADD",
    "ADP",
    "F1",
    "METRIC_NAMES",
    "PIC",
    "QUICK",
    "QUICK_WITH_EVIDENCE",
    "Area",
    "AreaError",
    "AveragePrecision",
    "Contrast",
    "Estimate",
    "Explain",
    "InformationCurve",
    "InsertionMinusDeletion",
    "MeanIoU",
    "Metric",
    "NoiseSensitivity",
    "Perturbation",
    "PixelAccuracy",
    "Pointing",
    "PointingBox",
    "Precision",
    "Predict",
    "Randomisation",
    "RowF1",
    "Sample",
    "TotalVariation",
    "aic",
    "deletion",
    "difference",
    "estimate",
    "insertion",
    "insertion_minus_deletion",
    "make_metrics",
    "measure",
    "negative_perturbation",
    "overlap",
    "positive_perturbation",
    "sic",
]
