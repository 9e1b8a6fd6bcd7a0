"""``saccade train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import any_json

if TYPE_CHECKING:
    from ..contracts import Floats, Uint8
    from ..methods.explainee import Explainee
    from ..methods.ltx.config import LTXConfig
    from ..methods.ltx.model import LTXExplainer
    from ..methods.ltx.processes import OneProcess
    from ..methods.ltx.train import StepReport
    from .training_data import TrainingData

__all__ = ["train"]

PICTURES_EVERY = 50
_SHOWN = 8  # images in preview.png


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
@click.option(
    "--validation",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Images to validate and report with, at most 64. [default: one in ten of --data, then not trained on]",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder of the checkpoint.")
@click.option(
    "--recipe",
    type=click.Choice(["saccade", "published"]),
    default="saccade",
    show_default=True,
    help="Defaults of the options below: ours, or those of the published code of LTX for this model.",
)
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
    help="Feature maps or blocks to read, coarsest first; repeat. [default: found]",
)
@click.option("--class-conditional", is_flag=True, help="One explainer for any class that is asked for. Shared form.")
@click.option(
    "--backbone",
    default="",
    metavar="SPEC",
    help="Another architecture than the classifier's for --form own, by spec. [default: a copy of it]",
)
@click.option(
    "--backbone-weights", default="", metavar="FILE", help="The backbone's weights. [default: the library's pretrained]"
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
    "--entropy",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    metavar="W",
    help="Weight: every pixel must be kept or removed, not half of each.",
)
@click.option(
    "--elsewhere",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    metavar="W",
    help="Weight, with --class-conditional: nothing of another class's image is kept.",
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
    "--validate-every",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    metavar="N",
    help="Steps from one validation (insertion − deletion on held-out images) to the next; 0 for never.",
)
@click.option(
    "--patience",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Stop after so many validations without a better one, and keep the best weights; 0 for never.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="bf16 is faster where the processor has it; fp16 needs a GPU.",
)
@click.option(
    "--devices",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="GPUs (with --device cpu: processes) that share each step's images.",
)
@click.option(
    "--num-nodes",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Machines with --devices each.",
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed of weights and data.")
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, … [default: cuda where there is one]")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in --out.")
@any_json
@click.pass_context
def ltx(
    context: click.Context,
    /,
    spec: str,
    weights: str | None,
    classes: Path | None,
    data: str,
    validation: Path | None,
    out: Path,
    recipe: str,
    devices: int,
    num_nodes: int,
    device: str | None,
    resume: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Learn to explain: train a network that emits the mask of any image in one pass (Barkan et al. 2023).

    Needs images of the classifier's kind but no labels: the class explained is the one predicted, or with
    --class-conditional also the second that the classifier sees. One image in ten is held out; on these the
    masks are shown, validated, and at the end compared with those before the training. An interrupted training goes on
    with --resume, and ends as if it had not been interrupted.

    \b
    In --out:
      checkpoint.json …            what export takes, saved every 100 steps
      curve.png                    losses, validation and learning rate
      preview.png, masks/          held-out masks now, and after each validation
      report.json                  insertion, deletion, area before and after; with scenes also pointing

    \b
    Examples:
      saccade train ltx --model torchvision:resnet50 --data photos/ --out runs/ltx
      saccade train ltx --model torchvision:resnet50 --data photos/ --out runs/ltx --patience 5 --steps 5000
      saccade train ltx --model timm:vit_base_patch16_224 --data photos/ --class-conditional --out runs/any-class
      saccade train ltx --model scenes:resnet --data scenes --recipe published --area 20 --out runs/own
      saccade train ltx --model torchvision:resnet50 --data photos/ --out runs/ltx --devices 4 --precision bf16
    """
    from ..errors import SaccadeError, require

    for package in ("torch", "safetensors", "matplotlib"):
        require(package, extra="train", purpose="training")

    from ..methods.explainee import load_explainee
    from ..methods.ltx.config import LTXConfig
    from ..methods.ltx.processes import open_processes
    from .options import read_class_names, resolve_model
    from .training_data import open_training_data

    given = {name: value for name, value in settings.items() if _is_given(context, name)}
    if given.get("backbone"):
        given["backbone"] = resolve_model(given["backbone"])
    config = LTXConfig.published(spec, **given) if recipe == "published" else LTXConfig(**given)
    processes = open_processes(config.precision, _device(device), devices, num_nodes)
    try:
        explainee = load_explainee(resolve_model(spec), weights, class_names=read_class_names(classes))
        explainee.model.to(processes.device)
        images = open_training_data(
            data, explainee.image_spec, config.batch_size, config.seed, validation, pairs=config.class_conditional
        )
        _train(explainee, images, config, out, data, processes, resume, as_json)
    except SaccadeError:
        if processes.rank > 0:
            context.exit(1)  # the first process says it
        raise


def _train(
    explainee: Explainee,
    images: TrainingData,
    config: LTXConfig,
    out: Path,
    data: str,
    processes: OneProcess,
    resume: bool,
    as_json: bool,
) -> None:
    from ..errors import UsageError
    from ..methods.ltx.checkpoint import read_history, save_samples
    from ..methods.ltx.train import train_ltx
    from .data import SCENES, sample_images
    from .preview import TrainingDisplay
    from .training_report import validation

    if config.patience and images.held_out is None:
        raise UsageError("--patience needs images to validate with, and the folder is too small; give --validation DIR")
    shown = images.shown(_SHOWN)
    validating = images.held_out is not None and config.validate_every > 0

    with TrainingDisplay(config.steps, out, read_history(out) if resume else ()) as display:

        def on_step(report: StepReport, explainer: LTXExplainer) -> None:
            display.step(report)
            if report.validation is not None or report.step % PICTURES_EVERY == 0 or report.step == config.steps:
                titles, masks = _explained(explainer, shown)
                display.pictures(shown, titles, masks, keep=report.validation is not None or not validating)

        if processes.rank == 0:
            display.console.print(f"training on {images.about}", style="dim", highlight=False)
        explainer = train_ltx(
            explainee,
            images.stream,
            config,
            out,
            data=data if data == SCENES else str(Path(data).resolve()),
            resume=resume,
            validate=validation(images.held_out, explainee.image_spec) if images.held_out else None,
            processes=processes,
            on_step=on_step,
        )
    if processes.rank == 0:
        if data != SCENES:
            save_samples(out, sample_images(data, explainee.image_spec))
        _report(explainer, images, config, out, as_json)


def _report(explainer: LTXExplainer, images: TrainingData, config: LTXConfig, out: Path, as_json: bool) -> None:
    import torch

    from ..methods.ltx.checkpoint import read_record
    from ..methods.ltx.model import build_ltx
    from .evaluate import print_result
    from .training_report import compare, write_report

    torch.manual_seed(config.seed)
    result = compare(build_ltx(explainer.explainee, config), explainer, images.reported)
    record = read_record(out)
    about = {
        "checkpoint": str(out),
        "data": images.about_report,
        "steps": record.step,
        "best_step": record.best_step,
        "best_validation": record.best_score,
        "weights": "best" if config.patience else "last",
    }
    text = write_report(out, result, about)
    if as_json:
        click.echo(text)
        return
    print_result(result, images.about_report)
    click.echo(f"Checkpoint in {out}. Next:\n  saccade export --checkpoint {out} --out bundle")


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT


def _explained(explainer: LTXExplainer, images: Uint8) -> tuple[list[str], Floats]:
    """What the classifier says of each image, and the masks (N, H, W)."""
    from ..methods.ltx.train import masks_of

    probabilities, masks = masks_of(explainer, images)
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
