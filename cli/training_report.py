"""What a training reached: the score that validates it, and the report at its end."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..contracts import ImageSpec, Uint8
from ..errors import OutputError
from ..evaluate.metrics import make_metrics
from ..methods.train import masks_of, probabilities_of
from .evaluate import mean_colour, record
from .evaluation import Contender, Evaluation, evaluate_contenders
from .evaluation_data import EvaluationData

if TYPE_CHECKING:
    from ..methods.train import Validate
    from ..methods.training.explainer import TrainedExplainer

__all__ = ["REPORT_FILE", "compare", "validation", "write_report"]

REPORT_FILE = "report.json"
_METRICS = ("insertion", "deletion", "insertion-deletion", "area")
_POINTS = 8  # of the curves that validate; half of the report's, for half of the forwards
_BATCH = 64


def validation(data: EvaluationData, spec: ImageSpec) -> Validate:
    """Insertion − deletion on images that are not trained on: the mean, −1 to 1, higher is better."""
    metrics = make_metrics(["insertion-deletion"], fill=mean_colour(spec.mean), steps=_POINTS)

    def score(explainer: TrainedExplainer) -> float:
        result = evaluate_contenders(
            [_contender("explainer", explainer)], metrics, data, partial(probabilities_of, explainer), batch_size=_BATCH
        )
        return float(result.scores[0].values["insertion-deletion"].value)

    return score


def compare(before: TrainedExplainer, trained: TrainedExplainer, data: EvaluationData, name: str) -> Evaluation:
    """Both explainers by the metrics of ``saccade evaluate``, on the same images; `name` is the first one's."""
    names = ("pointing", *_METRICS) if data.has_evidence else _METRICS
    fill: Any = mean_colour(trained.explainee.image_spec.mean)
    return evaluate_contenders(
        [_contender(name, before), _contender("trained", trained)],
        make_metrics(names, fill=fill),
        data,
        partial(probabilities_of, trained),
        batch_size=_BATCH,
    )


def write_report(folder: Path, result: Evaluation, about: dict[str, Any]) -> str:
    """Write `report.json`; returns its text.

    Raises:
        OutputError: the folder cannot be written.
    """
    text = json.dumps(record(result, about), indent=2)
    try:
        (folder / REPORT_FILE).write_text(text + "\n")
    except OSError as error:
        raise OutputError(f"cannot write '{folder / REPORT_FILE}': {error.strerror or error}") from None
    return text


def _contender(name: str, explainer: TrainedExplainer) -> Contender:
    def explain(images: Uint8, target: NDArray[np.int64]) -> NDArray[Any]:
        return masks_of(explainer, images)[1][:, 0]

    return Contender(name, explain)
