"""``saccade train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..contracts import Uint8
    from ..methods.ltx.model import LTXExplainer
    from ..methods.ltx.train import StepReport

__all__ = ["train"]

PREVIEW_EVERY = 50


@click.group()
def train() -> None:
    """Train an explainer for a classifier."""


@train.command()
@click.option(
    "--model",
    "spec",
    required=True,
    metavar="SPEC",
    help="torchvision:NAME, timm:NAME, hf:FOLDER, python:MODULE:FUNCTION or scenes:resnet.",
)
@click.option(
    "--weights",
    metavar="FILE",
    help="The classifier's weights: .safetensors, a .pth state dict, 'pretrained' or 'random'. [default: pretrained]",
)
@click.option(
    "--classes",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Class names, one per line.",
)
@click.option(
    "--data",
    required=True,
    metavar="DIR|scenes",
    help="Training images, with sub-folders; labels are not needed. Or planted scenes.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder of the checkpoint.")
@click.option(
    "--form",
    type=click.Choice(["shared", "own"]),
    default="shared",
    show_default=True,
    help="Decoder on the classifier's own features, or a trained copy of it (twice the cost).",
)
@click.option(
    "--layer",
    "layers",
    multiple=True,
    metavar="NAME",
    help="Feature maps to read, coarsest first; repeat. [default: found]",
)
@click.option("--steps", type=click.IntRange(1), default=600, show_default=True, metavar="N", help="Optimiser steps.")
@click.option(
    "--batch-size", type=click.IntRange(1), default=48, show_default=True, metavar="N", help="Images per step."
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="R",
    help="Peak learning rate. [default: 3e-3 shared, 5e-4 own]",
)
@click.option(
    "--preserve",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    metavar="W",
    help="Weight: what is kept must be enough.",
)
@click.option(
    "--complement",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    metavar="W",
    help="Weight: without it the class must go.",
)
@click.option(
    "--area",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    metavar="W",
    help="Weight: the mask must be small.",
)
@click.option(
    "--area-form",
    type=click.Choice(["l1", "softplus"]),
    default="l1",
    show_default=True,
    help="Mean of the mask, or as published.",
)
@click.option(
    "--evidence/--no-evidence",
    default=True,
    show_default=True,
    help="Multiply by the class activation, where the head is linear; off as published.",
)
@click.option(
    "--baseline",
    type=click.Choice(["mean", "black", "blur"]),
    default="mean",
    show_default=True,
    help="What replaces a removed pixel.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="bf16 is faster where the processor has it.",
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed of weights and data.")
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, … [default: cuda where there is one]")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in --out.")
def ltx(
    spec: str,
    weights: str | None,
    classes: Path | None,
    data: str,
    out: Path,
    device: str | None,
    resume: bool,
    **settings: object,
) -> None:
    """Learn to explain: train a network that emits the mask of any image in one pass (Barkan et al. 2023).

    Needs images of the classifier's kind but no labels: the class explained is the one predicted. Checkpoints are
    written every 100 steps; go on after an interruption with --resume. preview.png shows held-out masks while it
    trains.

    \b
    Examples:
      saccade train ltx --model torchvision:resnet50 --data photos/ --out runs/ltx
      saccade train ltx --model scenes:resnet --data scenes --form own --out runs/own
    """
    from ..errors import require

    for package in ("torch", "safetensors"):
        require(package, extra="train", purpose="training")

    from ..methods.explainee import load_explainee
    from ..methods.ltx.checkpoint import save_samples
    from ..methods.ltx.config import LTXConfig
    from ..methods.ltx.train import train_ltx
    from .data import SCENES, image_stream, sample_images
    from .options import read_class_names, resolve_model
    from .preview import TrainingDisplay

    config = LTXConfig(**settings)  # type: ignore[arg-type]  # click has checked the types
    explainee = load_explainee(resolve_model(spec), weights, class_names=read_class_names(classes))
    explainee.model.to(_device(device))
    stream = image_stream(data, explainee.image_spec, config.batch_size, config.seed)
    samples = sample_images(data, explainee.image_spec)
    if data != SCENES:
        save_samples(out, samples)

    with TrainingDisplay(config.steps, out) as display:

        def on_step(report: StepReport, explainer: LTXExplainer) -> None:
            display.step(report)
            if report.step % PREVIEW_EVERY == 0 or report.step == config.steps:
                display.masks(samples, _masks(explainer, samples))

        train_ltx(
            explainee,
            stream,
            config,
            out,
            data=data if data == SCENES else str(Path(data).resolve()),
            resume=resume,
            on_step=on_step,
        )
    click.echo(f"Checkpoint in {out}. Next:\n  saccade export --checkpoint {out} --out bundle")


def _masks(explainer: LTXExplainer, samples: Uint8) -> tuple[list[str], object]:
    from ..methods.ltx.train import masks_of

    probabilities, masks = masks_of(explainer, samples[:8])
    names = explainer.explainee.class_names
    return [f"{names[int(row.argmax())]} {row.max():.0%}" for row in probabilities], masks[:, 0]


def _device(name: str | None) -> str:
    import torch

    from ..errors import UsageError

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"the device '{name}' is not usable here: {str(error).splitlines()[0]}; see: saccade doctor"
        ) from None
    return name
