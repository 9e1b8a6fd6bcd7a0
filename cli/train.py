"""``saccade train``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from .options import Areas, Count, Number
from .training_options import training_options

if TYPE_CHECKING:
    from ..methods.training.config import TrainingConfig

__all__ = ["train"]


def _weight(name: str, default: float, what: str) -> Callable[..., Any]:
    return click.option(
        f"--{name}",
        type=Number(min=0),
        default=default,
        show_default=True,
        metavar="W",
        help=f"Weight: {what}.",
    )


@click.group()
def train() -> None:
    """Train an explainer for a classifier."""


@train.command()
@training_options(
    click.option(
        "--recipe",
        type=click.Choice(["saccade", "published"]),
        default="saccade",
        show_default=True,
        help="Defaults of the options below: ours, or those of the published code of LTX for this model.",
    ),
    click.option(
        "--form",
        type=click.Choice(["shared", "own"]),
        default="shared",
        show_default=True,
        help="Decoder on the classifier's own features, or a trained copy of it (twice the cost).",
    ),
    click.option(
        "--class-conditional", is_flag=True, help="One explainer for any class that is asked for. Shared form."
    ),
    click.option(
        "--backbone",
        default="",
        metavar="SPEC",
        help="Another architecture than the classifier's for --form own, by spec. [default: a copy of it]",
    ),
    click.option(
        "--backbone-weights",
        default="",
        metavar="FILE",
        help="The backbone's weights. [default: the library's pretrained]",
    ),
    _weight("preserve", 1.0, "what is kept must be enough"),
    _weight("complement", 1.0, "without it the class must go"),
    _weight("area", 2.0, "the mask must be small"),
    click.option(
        "--area-form",
        type=click.Choice(["l1", "softplus"]),
        default="l1",
        show_default=True,
        help="Mean of the mask, or as published.",
    ),
    _weight("entropy", 0.0, "every pixel must be kept or removed, not half of each"),
    _weight("elsewhere", 2.0, "with --class-conditional: nothing of another class's image is kept"),
    click.option(
        "--evidence/--no-evidence",
        default=True,
        show_default=True,
        help="Multiply by the class activation, or without a linear head by the neighbourhood; off as published.",
    ),
)
@click.pass_context
def ltx(context: click.Context, /, recipe: str, **options: Any) -> None:
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
    from .options import resolve_model

    spec = options["spec"]

    def make_config(given: dict[str, Any]) -> TrainingConfig:
        from ..methods.ltx.config import LTXConfig

        if given.get("backbone"):
            given["backbone"] = resolve_model(given["backbone"])
        return LTXConfig.published(spec, **given) if recipe == "published" else LTXConfig(**given)

    _run(context, make_config, options)


@train.command()
@training_options(
    click.option(
        "--class-conditional/--predicted-class",
        default=False,
        show_default=True,
        help="One explainer for any class that is asked for, or for the predicted one.",
    ),
    click.option(
        "--areas",
        type=Areas(),
        default="0.05,0.1,0.2,0.3",
        show_default=True,
        metavar="A,A,…",
        help="Areas that the bundle gives unless asked for others.",
    ),
    click.option(
        "--smallest",
        type=Number(0, 1),
        default=0.02,
        show_default=True,
        metavar="A",
        help="Smallest area trained.",
    ),
    click.option(
        "--largest",
        type=Number(0, 1),
        default=0.5,
        show_default=True,
        metavar="A",
        help="Largest area trained.",
    ),
    click.option(
        "--parts",
        type=Count(1),
        default=1,
        show_default=True,
        metavar="N",
        help="Masks of one image without a common pixel, each sufficient where it can be.",
    ),
    _weight("preserve", 1.0, "what a mask keeps must be enough"),
    _weight("complement", 0.5, "without what a mask keeps the class must go"),
    _weight("binary", 40.0, "every pixel is kept or removed, not half of each"),
    _weight("smooth", 1.0, "little changes from a point to the next"),
    _weight("nested", 1.0, "a larger mask holds the smaller ones"),
    _weight("elsewhere", 2.0, "with --class-conditional: nothing of another class's image is kept"),
    click.option(
        "--gain",
        type=Number(0, min_open=True),
        default=6.0,
        show_default=True,
        metavar="G",
        help="Factor of the logits of masks once trained: more leaves fewer pixels half kept.",
    ),
    click.option(
        "--grid",
        type=Count(0),
        default=0,
        show_default=True,
        metavar="N",
        help="Positions a side at which the network is asked; 0 for half the image, at most 56.",
    ),
)
@click.pass_context
def inr(context: click.Context, /, **options: Any) -> None:
    """Learn masks as functions: one network emits, for any image, the mask of any area at any resolution in one pass.

    What `saccade explain --method inr` finds by hundreds of passes for each image (Byra & Skibbe 2025), this network
    reads off the classifier's own features. Needs images of the classifier's kind but no labels. In --out lies what
    `saccade train ltx` writes there too.

    \b
    Examples:
      saccade train inr --model torchvision:resnet50 --data photos/ --out runs/inr
      saccade train inr --model scenes:resnet --data scenes --parts 2 --steps 500 --batch-size 24 --out runs/inr
    """

    def make_config(given: dict[str, Any]) -> TrainingConfig:
        from ..methods.inr.amortized_config import AmortizedConfig

        return AmortizedConfig(**given)

    _run(context, make_config, options)


def _run(
    context: click.Context, make_config: Callable[[dict[str, Any]], TrainingConfig], options: dict[str, Any]
) -> None:
    """Train with what the user gave; a method's own defaults for the rest."""
    from dataclasses import fields

    from ..errors import require

    for package in ("torch", "safetensors", "matplotlib"):
        require(package, extra="train", purpose="training")
    from .training import TrainingJob, run_training

    job = TrainingJob(**{field.name: options.pop(field.name) for field in fields(TrainingJob)})
    given = {name: value for name, value in options.items() if _is_given(context, name)}
    if not run_training(make_config(given), job):
        context.exit(1)


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
