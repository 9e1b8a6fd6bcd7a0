"""Training: one explainer network for all images, from any stream of images, no labels needed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..contracts import Floats, Uint8
from ..errors import UsageError
from .checkpoint import (
    CheckpointRecord,
    damaged_state,
    has_checkpoint,
    load_networks,
    load_training_state,
    network_state,
    read_record,
    save_checkpoint,
)
from .explainee import Explainee, guest
from .features import device_of
from .trained import method_of
from .training.average import WeightAverage
from .training.config import TrainingConfig
from .training.explainer import TrainedExplainer
from .training.processes import OneProcess, open_processes
from .training.step import take_step
from .training.stream import ImageStream, digest_of, names_of, prefetched

__all__ = ["StepReport", "Validate", "learning_rate", "masks_of", "probabilities_of", "to_float", "train_explainer"]

Validate = Callable[[TrainedExplainer], float]
"""How good an explainer is on images that it is not trained on; higher is better."""

SAVE_EVERY = 100


@dataclass(frozen=True)
class StepReport:
    """What a step did, for progress bars and curves.

    Attributes:
        step: from 1.
        terms: mean over the batch of each loss that has a weight, before weighting.
        total: their weighted sum.
        learning_rate: that the step was taken with.
        seconds: that it took.
        validation: the score after the step, where it was validated.
    """

    step: int
    terms: Mapping[str, float]
    total: float
    learning_rate: float
    seconds: float
    validation: float | None = None

    def row(self) -> dict[str, float]:
        """The report without its duration, which no resumed run can repeat."""
        row = {"step": self.step, **self.terms, "total": self.total, "learning_rate": self.learning_rate}
        return row if self.validation is None else row | {"validation": self.validation}


@dataclass
class _Course:
    """What a training knows besides the last weights and the optimiser; a resumed one goes on from it."""

    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best_step: int | None = None
    best_score: float | None = None
    best_network: dict[str, Tensor] | None = None
    validations_since_best: int = 0

    def validated(self, score: float, network: nn.Module) -> None:
        if score > (-math.inf if self.best_score is None else self.best_score):  # never true of NaN
            self.best_step, self.best_score, self.best_network = self.step, score, network_state(network)
            self.validations_since_best = 0
        else:
            self.validations_since_best += 1

    def is_over(self, config: TrainingConfig) -> bool:
        return self.step >= config.steps or 0 < config.patience <= self.validations_since_best


def train_explainer(
    explainee: Explainee,
    images: ImageStream,
    config: TrainingConfig,
    out: Path,
    *,
    data: str,
    resume: bool = False,
    validate: Validate | None = None,
    validated_on: str = "",
    processes: OneProcess | None = None,
    on_step: Callable[[StepReport, TrainedExplainer], None] | None = None,
) -> TrainedExplainer:
    """Train an explainer and keep checkpoints in a folder.

    The explainee is left as found. Each step: predict the images, mask them, and ask the explainee about what is kept
    and, for the complement term, about what is left without it; both in one batch. With several processes each takes
    its share of every step's images, the sums are those of all of them, and the first one validates and saves.

    Args:
        explainee: the classifier to explain.
        images: the training images, by step.
        config: settings.
        out: folder of the checkpoint; written every 100 steps and at the end.
        data: where the images come from, in words; goes into the checkpoint.
        resume: go on from the checkpoint in `out`, with the same config and data.
        validate: asked every `config.validate_every` steps and after the last one.
        validated_on: a digest of the images it looks at; a training resumes with no others.
        processes: where to compute; by default this process, where the explainee lies.
        on_step: called after every step, in the first process, with the weights that would be the result.

    Returns:
        The explainer with its last weights, or with its best ones where `config.patience` is set; with their running
        mean in both cases where `config.ema_decay` is set.

    Raises:
        ModelError: a loss or a gradient is not finite any more; the message names step, term and images. The weights
            are those before that step.
        UsageError: `out` holds a training and `resume` is not set, or a training with another config, other images or
            another number of processes; patience without `validate`.
    """
    if config.patience and validate is None:
        raise UsageError("patience counts validations, and there is nothing to validate with")
    processes = processes or open_processes(config.precision, device_of(explainee.model))
    if config.batch_size < processes.count:
        raise UsageError(f"{processes.count} processes cannot share a batch of {config.batch_size}; take a larger one")
    torch.manual_seed(config.seed)
    with guest(explainee.model):
        method = method_of(config)
        explainer = method.build(explainee, config)
        network = explainer.network
        processes.prepare(network)
        optimizer = torch.optim.AdamW(network.parameters(), lr=config.peak_rate, weight_decay=config.weight_decay)
        average = WeightAverage(network, config.ema_decay)
        record = CheckpointRecord.of(explainer, config, data, 0)
        made_of = {"images": digest_of(images), "validation": validated_on, "processes": processes.count}
        course = _restore(out, record, network, average, optimizer, processes, made_of, resume)
        if config.start and not course.step:
            load_networks([Path(folder) for folder in config.start], method.name, network)
        explainer.train()
        share = slice(processes.rank, None, processes.count)
        steps = 0 if course.is_over(config) else config.steps
        for step, batch in prefetched(images, course.step, steps, share):
            began = time.perf_counter()
            rate = learning_rate(step, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            pixels = to_float(batch, explainer)
            names = partial(names_of, images, step)
            terms = take_step(explainer, method, optimizer, pixels, config, processes, step, names)
            average.update()
            seconds = time.perf_counter() - began
            total = sum(getattr(config, name) * value for name, value in terms.items())
            report = StepReport(step + 1, terms, total, rate, seconds)
            course.step = step + 1
            if validate is not None and _is_due(course.step, config):
                with average.used_by(explainer):
                    score = processes.first(validate(explainer) if processes.rank == 0 else 0.0)
                course.validated(score, average.network)
                report = replace(report, validation=score)
            course.history.append(report.row())
            over = course.is_over(config)
            if processes.rank == 0 and (over or course.step % SAVE_EVERY == 0):
                _save(out, record, network, average, optimizer, processes, made_of, course, config)
            if on_step is not None and processes.rank == 0:
                with average.used_by(explainer):
                    on_step(report, explainer)
            if over:
                break
        network.load_state_dict(_result(average, course, config))
        return explainer.eval()


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Linear warm-up to the peak, then a cosine to zero, over the steps that are really trained."""
    warm = config.warmup * config.steps
    if step < warm:
        return config.peak_rate * (step + 1) / (warm + 1)
    return config.peak_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1.0, config.steps - warm)))


@torch.no_grad()
def masks_of(explainer: TrainedExplainer, images: Uint8) -> tuple[Floats, Floats]:
    """Probabilities (N, K) and masks (N, 1, H, W) of images uint8 (N, H, W, 3), in eval mode, on the model's device."""
    was_training = explainer.training
    explainer.eval()
    logits, mask = explainer(explainer.explainee.normalise(to_float(images, explainer)))
    explainer.train(was_training)
    return logits.softmax(1).cpu().numpy(), mask.cpu().numpy()


@torch.no_grad()
def probabilities_of(explainer: TrainedExplainer, images: Uint8) -> Floats:
    """The explainee's probabilities (N, K) of images uint8 (N, H, W, 3)."""
    explainee = explainer.explainee
    logits: Tensor = explainer.classifier(explainee.normalise(to_float(images, explainer)))
    return logits.softmax(1).cpu().numpy()


def to_float(images: Uint8, module: nn.Module) -> Tensor:
    """uint8 (N, H, W, 3) to float (N, 3, H, W) in [0, 1], on the module's device."""
    device = next(module.parameters()).device
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float() / 255


def _is_due(step: int, config: TrainingConfig) -> bool:
    return config.validate_every > 0 and (step % config.validate_every == 0 or step == config.steps)


def _result(average: WeightAverage, course: _Course, config: TrainingConfig) -> dict[str, Tensor]:
    """The weights that the training is for."""
    if config.patience and course.best_network is not None:
        return course.best_network
    return network_state(average.network)


def _save(
    out: Path,
    record: CheckpointRecord,
    network: nn.Module,
    average: WeightAverage,
    optimizer: torch.optim.Optimizer,
    processes: OneProcess,
    made_of: dict[str, Any],
    course: _Course,
    config: TrainingConfig,
) -> None:
    state = {
        "course": vars(course),
        "network": network_state(network),
        "average": average.state(),
        "optimizer": optimizer.state_dict(),
        "processes": processes.state(),
        "made_of": made_of,
    }
    record = replace(record, step=course.step, best_step=course.best_step, best_score=course.best_score)
    save_checkpoint(out, record, _result(average, course, config), state, course.history)


def _restore(
    out: Path,
    wanted: CheckpointRecord,
    network: nn.Module,
    average: WeightAverage,
    optimizer: torch.optim.Optimizer,
    processes: OneProcess,
    made_of: dict[str, Any],
    resume: bool,
) -> _Course:
    if not has_checkpoint(out):
        return _Course()
    if not resume:
        raise UsageError(f"'{out}' already holds a training; go on with --resume, or choose another --out")
    record = read_record(out)
    if record.fingerprint != wanted.fingerprint:
        raise UsageError(f"'{out}' was trained for another explainee, {record.explainee}; choose another --out")
    if record.config != wanted.config:
        raise UsageError(
            f"'{out}' was trained with other settings; resume with the same options, or choose another --out"
        )
    if record.data != wanted.data and not made_of["images"]:
        raise UsageError(
            f"'{out}' was trained on other images, {record.data}; resume with them, or choose another --out"
        )
    state = load_training_state(out)
    if state is None:
        raise UsageError(f"'{out}' holds no training state to go on from, only its result; choose another --out")
    try:
        course = _Course(**state["course"])
        network.load_state_dict(state["network"])
        average.restore(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        processes.restore(state["processes"])
        before = state["made_of"]
        others = next((name for name in ("images", "validation") if before[name] != made_of[name]), None)
        count = before["processes"]
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise damaged_state(out, error) from None
    if others:
        which = f"images of {wanted.data}" if others == "images" else "images to validate with"
        raise UsageError(
            f"the {which} are not those of '{out}' until step {course.step}: some were added, removed or changed; "
            f"bring them back, or begin another training with --start {out}"
        )
    if count != made_of["processes"]:
        raise UsageError(f"'{out}' was trained in {count} process{'es' * (count > 1)}; resume with as many devices")
    return course
