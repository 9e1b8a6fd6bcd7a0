"""``saccade explain --finetune``: per-image fine-tuning in PyTorch, the tuned masks beside the pretrained ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table
from torch import nn

from ..accel.image import ImageSource
from ..accel.results import Failure, ImageExplanation
from ..contracts import Uint8
from ..errors import UsageError
from ..evaluate.metrics import Sample, difference, estimate, make_metrics, measure
from ..methods.checkpoint import load_checkpoint
from ..methods.features import best_device, device_of
from ..methods.fold import fast_for_input_gradients
from ..methods.ltx.config import LTXConfig
from ..methods.ltx.finetune import FinetuneConfig, FineTuned, finetune
from ..methods.ltx.model import LTXExplainer
from ..methods.train import to_float
from .evaluate import mean_colour
from .loading import Answers, Question, asked_classes, chunks, explained, loaded
from .options import resolve_model
from .outcome import Outcome
from .plain import plain
from .progress import counting_progress

__all__ = ["explain_finetuned"]

_METRICS = ("insertion", "deletion", "insertion-deletion")


@dataclass
class _Gains:
    """What runs cost and gained, over all images so far.

    `rows` has those whose pretrained mask explains the same class; how many others there are is `incomparable`.
    """

    seconds: float = 0.0
    forwards: int = 0
    backwards: int = 0
    steps: list[int] = field(default_factory=list)
    incomparable: int = 0
    rows: list[tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]] = field(default_factory=list)


def explain_finetuned(
    files: Sequence[ImageSource],
    checkpoint: Path,
    settings: dict[str, Any],
    targets: Sequence[str],
    out: Path | None,
    formats: tuple[str, ...],
    batch_size: int,
    max_pixels: int,
    as_json: bool,
    *,
    spec: str | None = None,
    weights: str | None = None,
) -> int:
    """Fine-tune on each image, and write both explanations.

    Args:
        files: the images.
        checkpoint: of the pretrained explainer.
        settings: of `FinetuneConfig`.
        targets: class names or indices, each an explanation of its own; empty for the predicted class.
        out: folder for the results.
        formats: see `ResultWriter`.
        batch_size: explanations that are tuned together.
        max_pixels: an image with more is refused.
        as_json: print records instead of a table.
        spec: the classifier's spec, where the checkpoint's is not to be found any more.
        weights: its weights, where they were moved.

    Returns:
        The exit code: 1 if an image could not be read.
    """
    config = FinetuneConfig(**settings)
    explainer, record = load_checkpoint(checkpoint, spec=resolve_model(spec) if spec else None, weights=weights)
    if not isinstance(explainer, LTXExplainer) or not isinstance(record.config, LTXConfig):
        raise UsageError(
            f"'{checkpoint}' is a checkpoint of train {record.method}; --finetune goes on from one of train ltx"
        )
    losses = record.config
    explainer.to(best_device())
    asked = asked_classes(targets, record.class_names)
    gains = _Gains()
    classifier = fast_for_input_gradients(explainer.explainee).model
    with Outcome(out, formats, as_json) as outcome, counting_progress() as progress:
        bar = progress.add_task("fine-tuning", total=len(files) * len(asked) * config.steps)
        before = 0
        work = loaded(files, explainer.explainee.image_spec, max_pixels)
        for chunk in chunks(work, max(1, batch_size // len(asked))):
            readable = [item for item in chunk if not isinstance(item, Failure)]
            count = len(readable) * len(asked)
            job = _Job(explainer, classifier, losses, config, gains, several=len(asked) > 1, measured=not as_json)
            on_step = partial(_advance, progress, bar, before, count)
            tuned = explained(partial(_explain, job, on_step=on_step), readable, asked, "fine-tuning")
            before += count * config.steps
            for item in chunk:
                for result in [item] if isinstance(item, Failure) else tuned.pop(0):
                    outcome.take(result, progress.console)
    if gains.steps and not as_json:
        _print(gains, config, outcome.folder)
    return outcome.exit_code


@dataclass(frozen=True)
class _Job:
    """What is the same for every image."""

    explainer: LTXExplainer
    classifier: nn.Module
    losses: LTXConfig
    config: FinetuneConfig
    gains: _Gains
    several: bool
    measured: bool


def _explain(job: _Job, questions: Sequence[Question], *, on_step: Callable[[int], None]) -> list[Answers]:
    explainer, gains = job.explainer, job.gains
    pixels = np.stack([question.image.input for question in questions])
    target = torch.tensor([question.target for question in questions], device=device_of(explainer))
    began = time.perf_counter()
    found = finetune(
        explainer,
        to_float(pixels, explainer),
        job.losses,
        job.config,
        target=target,
        classifier=job.classifier,
        on_step=on_step,
    )
    seconds = time.perf_counter() - began
    gains.seconds += seconds
    gains.forwards, gains.backwards = found.forwards, found.backwards
    gains.steps += found.step.tolist()
    comparable = (found.target == found.logits.argmax(1)).cpu().numpy() | explainer.class_specific
    gains.incomparable += int((~comparable).sum())
    if job.measured and comparable.any():
        gains.rows.append(_measured(explainer, pixels, found, comparable))
    milliseconds = seconds * 1e3 / len(target)
    return [_pair(job, question, found, index, milliseconds) for index, question in enumerate(questions)]


def _pair(job: _Job, question: Question, found: FineTuned, index: int, milliseconds: float) -> Answers:
    """The pretrained and the tuned explanation of one image and class."""
    explainer, image = job.explainer, question.image
    names, label = explainer.explainee.class_names, int(found.target[index])
    tuned = {"step": float(found.step[index]), "loss": float(found.score[index])}
    tuned |= {"forwards": float(found.forwards), "backwards": float(found.backwards)}
    kinds = {"pretrained": (found.start, {"loss": float(found.start_score[index])}), "finetuned": (found.mask, tuned)}
    return [
        ImageExplanation(
            source=image.name,
            image=image.whole,
            probabilities=found.logits[index].softmax(0).cpu().numpy(),
            target=label,
            class_names=names,
            mask=masks[index, 0].cpu().numpy(),
            spec=explainer.explainee.image_spec,
            class_specific=explainer.class_specific or kind == "finetuned",
            milliseconds=milliseconds if kind == "finetuned" else None,
            diagnostics=diagnostics,
            variant=f"{names[label]}.{kind}" if job.several else kind,
        )
        for kind, (masks, diagnostics) in kinds.items()
    ]


def _measured(
    explainer: LTXExplainer, pixels: Uint8, found: FineTuned, part: NDArray[np.bool_]
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """Rows of the metrics of a part of the images, before and after."""

    def predict(images: Uint8) -> NDArray[Any]:
        with torch.inference_mode():
            logits = explainer.classifier(explainer.explainee.normalise(to_float(images, explainer)))
            return np.asarray(logits.softmax(1).cpu().numpy())

    def rows(masks: torch.Tensor) -> dict[str, NDArray[np.float64]]:
        values = masks[:, 0].cpu().numpy()
        samples = [
            Sample(image, mask, int(label))
            for image, mask, label, taken in zip(pixels, values, found.target.tolist(), part, strict=True)
            if taken
        ]
        return measure(make_metrics(_METRICS, fill=mean_colour(explainer.explainee.image_spec.mean)), samples, predict)

    return rows(found.start), rows(found.mask)


def _advance(progress: Progress, bar: TaskID, before: int, count: int, step: int) -> None:
    progress.update(bar, completed=before + step * count)


def _print(gains: _Gains, config: FinetuneConfig, folder: Path | None) -> None:
    console = Console()
    count = len(gains.steps)
    compared = count - gains.incomparable
    table = Table(
        title=f"{count} explanation{'s' * (count > 1)} tuned for {config.steps} steps"
        + (f", {compared} compared" if compared < count else ""),
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("")
    for heading in ("pretrained", "finetuned", "change", "95 %"):
        table.add_column(heading, justify="right")
    if compared:
        for metric in make_metrics(_METRICS):
            before, after = (np.concatenate([pair[side][metric.name] for pair in gains.rows]) for side in (0, 1))
            change = difference(metric, after, before)
            table.add_row(
                f"{metric.name} {'↑' if metric.higher_is_better else '↓'}",
                f"{estimate(metric, before).value:.4f}",
                f"{estimate(metric, after).value:.4f}",
                f"{change.value:+.4f}",
                f"{change.low:+.4f} … {change.high:+.4f}" if compared > 1 else "",
            )
        console.print(table)
    if gains.incomparable:
        console.print(
            f"{gains.incomparable} of {count} explain another class than the predicted one, of which the pretrained "
            "explainer has no mask to compare with; train ltx --class-conditional makes one that has",
            highlight=False,
        )
    chosen = (
        f"chosen step: {np.median(gains.steps):.0f} in the median" if count > 1 else f"chosen step: {gains.steps[0]}"
    )
    console.print(
        f"Each cost {gains.forwards} forwards and {gains.backwards} backwards of the classifier, "
        f"{gains.seconds / count:.2f} s; {chosen}" + (f"; results in [bold]{plain(folder)}[/bold]" if folder else ""),
        highlight=False,
    )
