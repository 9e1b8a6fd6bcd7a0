"""``saccade explain --method inr``: masks that are optimised for each image, in PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ..accel.image import ImageSource
from ..accel.results import Failure, ImageExplanation, together
from ..methods.explainee import Explainee, load_explainee
from ..methods.features import best_device, device_of
from ..methods.fold import fast_for_input_gradients
from ..methods.inr.config import INRConfig
from ..methods.inr.fit import Fitted, fit_masks
from ..methods.inr.several import ROOM, SeveralConfig, SeveralMasks, several_masks
from .loading import Answers, Question, asked_classes, chunks, explained, loaded
from .options import resolve_model
from .outcome import Outcome
from .plain import plain
from .progress import counting_progress

__all__ = ["INRJob", "explain_by_optimisation"]

_LOST = 0.1  # share of the class's probability, below which a mask is no explanation


@dataclass(frozen=True)
class INRJob:
    """What is asked of every image.

    Attributes:
        spec: of the classifier.
        weights: its weights.
        targets: class names or indices; empty for the predicted class.
        config: of the optimisation.
        several: masks that do not overlap, in place of one mask per area; None for those.
    """

    spec: str
    weights: str
    targets: tuple[str, ...]
    config: INRConfig
    several: SeveralConfig | None = None


def explain_by_optimisation(
    files: Sequence[ImageSource],
    job: INRJob,
    out: Path | None,
    formats: tuple[str, ...],
    batch_size: int,
    max_pixels: int,
    as_json: bool,
) -> int:
    """Explain images by masks of given areas, or by several masks that do not overlap.

    Args:
        files: the images.
        job: classifier and settings.
        out: folder for the results; None for the default, or none with JSON.
        formats: see `ResultWriter`.
        batch_size: images that are optimised together.
        max_pixels: an image with more is refused.
        as_json: print records instead of a table.

    Returns:
        The exit code: 1 if an image could not be read.
    """
    explainee = load_explainee(resolve_model(job.spec), job.weights)
    explainee.model.to(best_device())
    explainee = fast_for_input_gradients(explainee)
    asked = asked_classes(job.targets, explainee.class_names)
    rounds = job.several.most if job.several else 1
    fewer = lost = 0
    with Outcome(out, formats, as_json) as outcome, counting_progress() as progress:
        bar = progress.add_task("optimising", total=len(files) * len(asked) * rounds * job.config.steps)
        work = loaded(files, explainee.image_spec, max_pixels)
        for done, chunk in enumerate(chunks(work, max(1, batch_size // len(asked)))):
            readable = [item for item in chunk if not isinstance(item, Failure)]
            whole = len(chunk) * len(asked) * rounds * job.config.steps
            start = done * max(1, batch_size // len(asked)) * len(asked) * rounds * job.config.steps

            def advance(share: float, start: int = start, whole: int = whole) -> None:
                reached = progress.tasks[bar].completed  # a mask that is looked for again does not turn the bar back
                progress.update(bar, completed=max(reached, start + share * whole))

            answers = explained(partial(_explain, explainee, job, advance=advance), readable, asked, "optimising")
            advance(1.0)
            for item in chunk:
                results: Answers = [item] if isinstance(item, Failure) else answers.pop(0)
                masks = [one for one in results if isinstance(one, ImageExplanation) and not one.parts]
                fewer += 0 < len(masks) < rounds * len(asked)
                lost += any(_lost(one) for one in masks)
                for result in results:
                    outcome.take(result, progress.console)
    if not as_json:
        _print(outcome)
        if lost:
            Console().print(
                f"{lost} of the images with a mask that holds on to less than {_LOST:.0%} of the class's probability: "
                "it explains nothing; ask for larger --areas or more --steps, or lower the --learning-rate",
                style="dim",
            )
        if job.several and fewer:
            Console().print(
                f"{fewer} of the images with fewer than {rounds} masks: a further one would hold on to less than "
                f"{job.several.least:.0%} of what the image adds to the class's probability",
                style="dim",
            )
    return outcome.exit_code


def _lost(result: ImageExplanation) -> bool:
    """Whether a mask was found that does not hold on to the class; several masks end before such a one."""
    kept = result.diagnostics.get("kept_probability")
    return kept is not None and kept < _LOST * result.probability


def _explain(
    explainee: Explainee,
    job: INRJob,
    questions: Sequence[Question],
    *,
    advance: Callable[[float], None],
) -> list[Answers]:
    """The explanations that answer each question: one for each area, or for each of several masks."""
    device, several_classes = device_of(explainee.model), len(set(job.targets)) > 1
    pixels = np.stack([question.image.input for question in questions])
    values = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 255
    target = torch.tensor([question.target for question in questions], device=device)
    began = time.perf_counter()
    found: Fitted | SeveralMasks
    steps = job.config.steps
    if job.several is None:
        found = fit_masks(
            explainee, values, job.config, target=target, on_step=lambda step, left: advance(step / steps)
        )
        masks = found.render(*explainee.image_spec.size)
        names = [f"{area:.3g}" for area in job.config.areas]
        numbers = [
            [{"asked_area": area, "kept_probability": kept} for area, kept in zip(job.config.areas, row, strict=True)]
            for row in found.kept.tolist()
        ]
    else:
        most = job.several.most
        found = several_masks(
            explainee,
            values,
            job.several,
            job.config,
            target=target,
            on_step=lambda mask, step: advance((mask + step / steps) / most),
        )
        masks = found.masks
        names = [f"mask {place + 1}" for place in range(most)]
        numbers = [[{"retention": retention} for retention in row] for row in found.retention.tolist()]
    milliseconds = (time.perf_counter() - began) * 1e3 / len(pixels)
    probabilities = found.logits.softmax(1).cpu().numpy()
    shapes = masks.cpu().numpy()
    answers: list[Answers] = []
    for row, (image, _, _) in enumerate(questions):
        one: Answers = []
        label = int(found.target[row])
        class_name = explainee.class_names[label]
        if job.several is not None and not shapes[row].any():
            one.append(Failure(image.name, _why_none(image.name, found, row, job, class_name)))
        kept: list[ImageExplanation] = []
        for place, name in enumerate(names):
            if job.several is not None and not shapes[row, place].any():
                continue
            kept.append(
                ImageExplanation(
                    source=image.name,
                    image=image.whole,
                    probabilities=probabilities[row],
                    target=label,
                    class_names=explainee.class_names,
                    mask=shapes[row, place],
                    spec=explainee.image_spec,
                    class_specific=True,
                    milliseconds=milliseconds,
                    diagnostics=numbers[row][place],
                    variant=f"{class_name}.{name}" if several_classes else name,
                )
            )
        one.extend(kept)
        if isinstance(found, SeveralMasks) and len(kept) > 1:
            one.append(together(kept, class_name if several_classes else "", retention=float(found.union[row])))
        answers.append(one)
    return answers


def _why_none(name: str, found: Fitted | SeveralMasks, row: int, job: INRJob, label: str) -> str:
    """Why an image has no mask at all."""
    assert isinstance(found, SeveralMasks), "every area has its mask"
    assert job.several is not None, "several masks were asked for"
    if float(found.room[row]) >= ROOM:
        return (
            f"{name}: no mask of {job.several.area:.3g} of the image holds on to {job.several.least:.0%} of what the "
            f"image adds to the probability of '{label}'; ask for a larger area with --areas, or for more --steps"
        )
    probability = float(found.logits[row].softmax(0)[found.target[row]])
    nothing = probability - float(found.room[row])
    if probability < 2 * ROOM:
        return f"{name}: the model gives '{label}' a probability of {probability:.2g}: there is no evidence to find"
    return (
        f"{name}: the image adds nothing to the probability of '{label}', {nothing:.0%} without any of its pixels; "
        "put something else in their place with --baseline"
    )


def _print(outcome: Outcome) -> None:
    console = Console()
    table = Table(box=None, pad_edge=False)
    table.add_column("image", overflow="fold")
    table.add_column("class")
    table.add_column("mask")
    for heading in ("probability", "kept", "area", "s"):
        table.add_column(heading, justify="right")
    for result in outcome.shown:
        kept = result.diagnostics.get("kept_probability")
        if kept is None:
            kept = result.diagnostics["retention"] * result.probability
        table.add_row(
            plain(result.source),
            plain(result.class_name),
            plain(result.variant),
            f"{result.probability:.1%}",
            f"{kept:.1%}",
            f"{result.mask.mean():.1%}",
            f"{(result.milliseconds or 0) / 1e3:.1f}",
        )
    console.print(table)
    if outcome.more:
        console.print(f"… and {outcome.more} more", style="dim")
    console.print(
        "kept: the class's probability where only the mask is shown"
        + (f"; results in [bold]{plain(outcome.folder)}[/bold]" if outcome.folder else ""),
        highlight=False,
    )
