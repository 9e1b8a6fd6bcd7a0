"""Options of every training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .options import Count, Number, any_json

__all__ = ["training_options"]

_DATA: tuple[Callable[..., Any], ...] = (
    click.option(
        "--model",
        "spec",
        required=True,
        metavar="SPEC",
        help="torchvision:NAME, timm:NAME, hf:FOLDER, python:MODULE:FUNCTION or scenes:resnet.",
    ),
    click.option(
        "--weights",
        metavar="FILE",
        help="Its weights: .safetensors, a .pth state dict, 'pretrained' or 'random'. [default: pretrained]",
    ),
    click.option(
        "--classes",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Class names, one per line.",
    ),
    click.option(
        "--data",
        required=True,
        metavar="DIR|scenes",
        help="Training images, with sub-folders; labels are not needed. Or planted scenes.",
    ),
    click.option(
        "--validation",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        metavar="DIR",
        help="Images to validate and report with, at most 64. [default: one in ten of --data, then not trained on]",
    ),
    click.option(
        "--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Folder of the checkpoint."
    ),
    click.option(
        "--layer",
        "layers",
        multiple=True,
        metavar="NAME",
        help="Feature maps or blocks to read, coarsest first; repeat. [default: found]",
    ),
)
_COURSE: tuple[Callable[..., Any], ...] = (
    click.option(
        "--start",
        multiple=True,
        metavar="DIR",
        help="Begin with another checkpoint's weights; repeat for the mean of several. [default: fresh ones]",
    ),
    click.option("--steps", type=Count(1), default=600, show_default=True, metavar="N", help="Optimiser steps."),
    click.option(
        "--batch-size",
        type=Count(1),
        default=48,
        show_default=True,
        metavar="N",
        help="Images per step.",
    ),
    click.option(
        "--learning-rate",
        type=Number(min=0, min_open=True),
        metavar="R",
        help="Peak learning rate. [default: 3e-3 shared, 5e-4 own]",
    ),
    click.option(
        "--clip",
        type=Number(min=0, min_open=True),
        default=1.0,
        show_default=True,
        metavar="C",
        help="Largest norm of the gradient.",
    ),
    click.option(
        "--baseline",
        type=click.Choice(["mean", "black", "blur"]),
        default="mean",
        show_default=True,
        help="What replaces a removed pixel.",
    ),
    click.option(
        "--validate-every",
        type=click.IntRange(min=0),
        default=100,
        show_default=True,
        metavar="N",
        help="Steps from one validation (insertion − deletion on held-out images) to the next; 0 for never.",
    ),
    click.option(
        "--patience",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        metavar="N",
        help="Stop after so many validations without a better one, and keep the best weights; 0 for never.",
    ),
    click.option(
        "--ema-decay",
        type=Number(0, 1, max_open=True),
        default=0.0,
        show_default=True,
        metavar="D",
        help="Result: a running mean of the weights; 0.99 remembers some hundred steps. 0 for the last weights.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "bf16", "fp16"]),
        default="fp32",
        show_default=True,
        help="bf16 is faster where the processor has it; fp16 needs a GPU.",
    ),
    click.option(
        "--devices",
        type=Count(1),
        default=1,
        show_default=True,
        metavar="N",
        help="GPUs (with --device cpu: processes) that share each step's images.",
    ),
    click.option(
        "--num-nodes",
        type=Count(1),
        default=1,
        show_default=True,
        metavar="N",
        help="Machines with --devices each.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed of weights and data."),
    click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, … [default: cuda where there is one]"),
    click.option("--resume", is_flag=True, help="Go on from the checkpoint in --out."),
    any_json,
)


def training_options(*own: Callable[..., Any]) -> Callable[..., Any]:
    """The options that every training has; a method's own ones come after the data."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed((*_DATA, *own, *_COURSE)):
            function = option(function)
        return function

    return decorate
