"""LTX pretraining: one explainer network for all images, from any stream of images, no labels needed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...contracts import Floats, Uint8
from ...errors import ModelError, UsageError
from ..explainee import Explainee, guest
from ..perturb import make_baseline, perturb
from .checkpoint import CheckpointRecord, load_training_state, network_state, read_record, save_checkpoint
from .config import LTXConfig
from .losses import LTXLosses, total_loss
from .model import LTXExplainer, build_ltx

__all__ = ["ImageStream", "StepReport", "train_ltx"]

ImageStream = Callable[[int], Uint8]
"""From a step to that step's images, uint8 (B, H, W, 3) at the model's size. A pure function of the step, so that an
interrupted training goes on as if nothing had happened."""

SAVE_EVERY = 100


@dataclass(frozen=True)
class StepReport:
    """What a step did, for progress bars and curves; the terms are before weighting."""

    step: int
    preserve: float
    complement: float
    area: float
    total: float
    learning_rate: float
    seconds: float

    def row(self) -> dict[str, float]:
        """The report without its duration, which no resumed run can repeat."""
        return {name: value for name, value in vars(self).items() if name != "seconds"}


def train_ltx(
    explainee: Explainee,
    images: ImageStream,
    config: LTXConfig,
    out: Path,
    *,
    data: str,
    resume: bool = False,
    on_step: Callable[[StepReport, LTXExplainer], None] | None = None,
) -> LTXExplainer:
    """Train an explainer and keep checkpoints in a folder.

    The explainee is left as found. Each step: predict the images, mask them, and ask the explainee about what is kept
    and, for the complement term, about what is left without it; both in one batch.

    Args:
        explainee: the classifier to explain.
        images: the training images, by step.
        config: settings.
        out: folder of the checkpoint; written every 100 steps and at the end.
        data: where the images come from, in words; goes into the checkpoint.
        resume: go on from the checkpoint in `out`, with the same config.
        on_step: called after every step.

    Raises:
        ModelError: the loss is not finite any more; the message names step and term.
        UsageError: `out` holds a training and `resume` is not set, or a training with another config.
    """
    torch.manual_seed(config.seed)
    with guest(explainee.model):
        explainer = build_ltx(explainee, config)
        optimizer = torch.optim.AdamW(
            explainer.network.parameters(), lr=config.peak_rate, weight_decay=config.weight_decay
        )
        first, history = _restore(out, explainer, optimizer, config, resume)
        explainer.train()
        for step, batch in _prefetched(images, first, config.steps):
            began = time.perf_counter()
            rate = learning_rate(step, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            losses = _train_step(explainer, optimizer, batch, config, step)
            report = StepReport(
                step=step + 1,
                preserve=float(losses.preserve),
                complement=float(losses.complement),
                area=float(losses.area),
                total=float(losses.total),
                learning_rate=rate,
                seconds=time.perf_counter() - began,
            )
            history.append(report.row())
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == config.steps:
                state = {
                    "step": step + 1,
                    "network": network_state(explainer.network),
                    "optimizer": optimizer.state_dict(),
                    "history": history,
                }
                save_checkpoint(out, explainer, CheckpointRecord.of(explainer, config, data, step + 1), state, history)
            if on_step is not None:
                on_step(report, explainer)
                explainer.train()
        explainer.eval()
    return explainer


def learning_rate(step: int, config: LTXConfig) -> float:
    """Linear warm-up to the peak, then a cosine to zero, over the steps that are really trained."""
    warm = config.warmup * config.steps
    if step < warm:
        return config.peak_rate * (step + 1) / (warm + 1)
    return config.peak_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1.0, config.steps - warm)))


@torch.no_grad()
def masks_of(explainer: LTXExplainer, images: Uint8) -> tuple[Floats, Floats]:
    """Probabilities (N, K) and masks (N, 1, H, W) of images uint8 (N, H, W, 3), in eval mode, on the model's device."""
    was_training = explainer.training
    explainer.eval()
    logits, mask = explainer(explainer.explainee.normalise(to_float(images, explainer)))
    explainer.train(was_training)
    return logits.softmax(1).cpu().numpy(), mask.cpu().numpy()


def to_float(images: Uint8, module: nn.Module) -> Tensor:
    """uint8 (N, H, W, 3) to float (N, 3, H, W) in [0, 1], on the module's device."""
    device = next(module.parameters()).device
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float() / 255


def _train_step(
    explainer: LTXExplainer, optimizer: torch.optim.Optimizer, batch: Uint8, config: LTXConfig, step: int
) -> LTXLosses:
    explainee = explainer.explainee
    pixels = to_float(batch, explainer)
    baseline = make_baseline(pixels, config.baseline, explainee.image_spec.mean)
    with _autocast(pixels.device.type, config):
        # the explainee is frozen, so this leaves a graph for the network alone
        plain = explainer.predict(explainee.normalise(pixels))
        mask = explainer.upsample(plain.selection.float())
        views = [perturb(pixels, mask, baseline)]
        if config.complement > 0:
            views.append(perturb(pixels, 1 - mask, baseline))
        logits = explainer.classifier(explainee.normalise(torch.cat(views))).float()
        kept, removed = logits[: len(pixels)], logits[len(pixels) :] if config.complement > 0 else None
        losses = total_loss(kept, removed, mask, plain.target[:, 0], config)
    _refuse_nan(losses, step)
    optimizer.zero_grad(set_to_none=True)
    losses.total.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(explainer.network.parameters(), config.clip)
    optimizer.step()
    return losses.detached()


def _refuse_nan(losses: LTXLosses, step: int) -> None:
    for name in ("preserve", "complement", "area"):
        if not bool(torch.isfinite(getattr(losses, name))):
            raise ModelError(
                f"training stopped at step {step + 1}: the {name} loss is not finite; "
                "lower --learning-rate, or check the images and weights"
            )


def _autocast(device: str, config: LTXConfig) -> AbstractContextManager[Any]:
    return torch.autocast(device, torch.bfloat16) if config.precision == "bf16" else nullcontext()


def _restore(
    out: Path, explainer: LTXExplainer, optimizer: torch.optim.Optimizer, config: LTXConfig, resume: bool
) -> tuple[int, list[dict[str, float]]]:
    state = load_training_state(out)
    if state is None:
        return 0, []
    if not resume:
        raise UsageError(f"'{out}' already holds a training; go on with --resume, or choose another --out")
    record = read_record(out)
    if record.fingerprint != explainer.explainee.fingerprint:
        raise UsageError(f"'{out}' was trained for another explainee, {record.explainee}; choose another --out")
    if record.config != config:
        raise UsageError(
            f"'{out}' was trained with other settings; resume with the same options, or choose another --out"
        )
    explainer.network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]), list(state["history"])


def _prefetched(images: ImageStream, first: int, steps: int) -> Iterator[tuple[int, Uint8]]:
    """Steps with their images, the next ones being made in a thread meanwhile."""
    with ThreadPoolExecutor(1, thread_name_prefix="saccade-images") as pool:
        ahead = [pool.submit(images, step) for step in range(first, min(first + 3, steps))]
        for step in range(first, steps):
            done = ahead.pop(0)
            if step + 3 < steps:
                ahead.append(pool.submit(images, step + 3))
            yield step, done.result()
