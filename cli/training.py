"""One training from the command line: data, display, report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
import torch

from ..contracts import Floats, Uint8
from ..errors import SaccadeError, UsageError
from ..methods.checkpoint import has_checkpoint, load_networks, read_history, read_record, save_samples
from ..methods.explainee import Explainee, load_explainee
from ..methods.features import best_device
from ..methods.train import StepReport, masks_of, train_explainer
from ..methods.trained import method_of
from ..methods.training.config import TrainingConfig
from ..methods.training.explainer import TrainedExplainer
from ..methods.training.processes import OneProcess, open_processes
from .data import SCENES, sample_images
from .evaluate import print_result
from .options import read_class_names, resolve_model
from .plain import plain
from .preview import TrainingDisplay
from .training_data import TrainingData, open_training_data
from .training_report import compare, validation, write_report

__all__ = ["TrainingJob", "run_training"]

PICTURES_EVERY = 50
_SHOWN = 8  # images in preview.png


@dataclass(frozen=True)
class TrainingJob:
    """What is trained on what, and where; the options of every training that are not settings of the network."""

    spec: str
    weights: str | None
    classes: Path | None
    data: str
    validation: Path | None
    out: Path
    devices: int
    num_nodes: int
    device: str | None
    resume: bool
    as_json: bool


def run_training(config: TrainingConfig, job: TrainingJob) -> bool:
    """Train, and report at the end.

    Returns:
        False where this is not the first process and something went wrong: the first one says it.
    """
    processes = open_processes(config.precision, _device(job.device), job.devices, job.num_nodes)
    try:
        explainee = load_explainee(resolve_model(job.spec), job.weights, class_names=read_class_names(job.classes))
        explainee.model.to(processes.device)
        images = open_training_data(
            job.data,
            explainee.image_spec,
            config.batch_size,
            config.seed,
            job.validation,
            pairs=config.class_conditional,
        )
        _train(explainee, images, config, job, processes)
    except SaccadeError:
        if processes.rank > 0:
            return False
        raise
    return True


def _train(
    explainee: Explainee, images: TrainingData, config: TrainingConfig, job: TrainingJob, processes: OneProcess
) -> None:
    if config.patience and images.held_out is None:
        raise UsageError("--patience needs images to validate with, and the folder is too small; give --validation DIR")
    before = _before(explainee, config, job.resume)  # ahead: what it starts from may not be there afterwards
    shown = images.shown(_SHOWN)
    validating = images.held_out is not None and config.validate_every > 0

    with TrainingDisplay(config.steps, job.out, read_history(job.out) if job.resume else ()) as display:

        def on_step(report: StepReport, explainer: TrainedExplainer) -> None:
            display.step(report)
            if report.validation is not None or report.step % PICTURES_EVERY == 0 or report.step == config.steps:
                titles, masks = _explained(explainer, shown)
                display.pictures(shown, titles, masks, keep=report.validation is not None or not validating)

        if processes.rank == 0:
            display.console.print(f"training on {plain(images.about)}", style="dim", highlight=False)
        explainer = train_explainer(
            explainee,
            images.stream,
            config,
            job.out,
            data=job.data if job.data == SCENES else str(Path(job.data).resolve()),
            resume=job.resume,
            validate=validation(images.held_out, explainee.image_spec) if images.held_out else None,
            validated_on=images.validation_digest,
            processes=processes,
            on_step=on_step,
        )
    if processes.rank == 0:
        if job.data != SCENES:
            save_samples(job.out, sample_images(job.data, explainee.image_spec))
        _report(before, explainer, images, config, job.out, job.as_json)


def _before(explainee: Explainee, config: TrainingConfig, resume: bool) -> tuple[str, TrainedExplainer]:
    """What the training began with, and what it is called; a resumed one needs its start no more, and is compared with
    an untrained explainer where that has gone.

    Raises:
        ModelError: a checkpoint to start from is not there.
    """
    torch.manual_seed(config.seed)
    method = method_of(config)
    explainer = method.build(explainee, config)
    folders = [Path(folder) for folder in config.start]
    if not folders or (resume and not all(map(has_checkpoint, folders))):
        return "untrained", explainer
    load_networks(folders, method.name, explainer.network)
    return "before", explainer


def _report(
    before: tuple[str, TrainedExplainer],
    explainer: TrainedExplainer,
    images: TrainingData,
    config: TrainingConfig,
    out: Path,
    as_json: bool,
) -> None:
    name, first = before
    result = compare(first, explainer, images.reported, name)
    record = read_record(out)
    chosen = "; by these the best weights were chosen too" if config.patience and images.reports_validation else ""
    about = {
        "checkpoint": str(out),
        "data": images.about_report + chosen,
        "steps": record.step,
        "best_step": record.best_step,
        "best_validation": record.best_score,
        "weights": ("best" if config.patience else "last") + (", running mean" if config.ema_decay else ""),
    }
    text = write_report(out, result, about)
    if as_json:
        click.echo(text)
        return
    print_result(result, images.about_report + chosen)
    click.echo(f"Checkpoint in {out}. Next:\n  saccade export --checkpoint {out} --out bundle")


def _explained(explainer: TrainedExplainer, images: Uint8) -> tuple[list[str], Floats]:
    """What the classifier says of each image, and the masks (N, H, W)."""
    probabilities, masks = masks_of(explainer, images)
    names = explainer.explainee.class_names
    return [f"{names[int(row.argmax())]} {row.max():.0%}" for row in probabilities], masks[:, 0]


def _device(name: str | None) -> str:
    if name is None:
        return best_device().type
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"the device '{name}' is not usable here: {str(error).splitlines()[0]}; see: saccade doctor"
        ) from None
    return name
