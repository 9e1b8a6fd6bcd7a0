"""TensorRT plans from ``saccade export --format tensorrt``: their options, building them, and what is said of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import BatchSizes, Number
from .plain import plain

if TYPE_CHECKING:
    from ..accel.bundle import Bundle
    from ..accel.manifest import PlanReport
    from ..export.to_tensorrt import PlanConfig

__all__ = ["PlanOptions", "build_plans_of", "check_plans", "plan_options"]

_FORMATS = ("onnx", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What the command line says of plans; `format` is ``"onnx"`` where there are none."""

    format: str
    batches: tuple[int, ...]
    gpus: tuple[str, ...]
    workspace: float | None
    version_compatible: bool
    refit: bool
    timing_cache: Path | None

    @property
    def wanted(self) -> bool:
        """Plans are to be built."""
        return self.format != "onnx"


def plan_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of plans, which the command gets as one `PlanOptions` called ``plan``."""
    decorators = (
        click.option(
            "--format",
            type=click.Choice(_FORMATS),
            default="onnx",
            show_default=True,
            help="tensorrt: put TensorRT plans for the GPU that is here into the bundle as well, of each --precision. "
            "tensorrt-rtx: of TensorRT for RTX, which also builds for GPUs that are not here (--gpu).",
        ),
        click.option(
            "--batch-sizes",
            "batches",
            type=BatchSizes(),
            default="1,8,32",
            show_default=True,
            metavar="N,N,N",
            help="Of plans: images per call, at least, preferably and at most.",
        ),
        click.option(
            "--gpu",
            "gpus",
            multiple=True,
            metavar="SM",
            help="With --format tensorrt-rtx: architecture of a GPU that need not be here, such as sm89; repeatable.",
        ),
        click.option(
            "--workspace",
            type=Number(0, min_open=True),
            metavar="GIB",
            help="Of plans: memory that one kernel may take. [default: all]",
        ),
        click.option(
            "--version-compatible", is_flag=True, help="Of plans: later versions of TensorRT run them as well."
        ),
        click.option("--refit", is_flag=True, help="Of plans: their weights can be replaced."),
        click.option(
            "--timing-cache",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="Of plans: keep kernels' timings there, so that the next build is faster.",
        ),
    )

    @functools.wraps(function)
    def packed(*arguments: Any, **options: Any) -> Any:
        if options["format"] == "onnx":
            _refuse_given()
        names = PlanOptions.__dataclass_fields__
        plan = PlanOptions(**{name: options.pop(name) for name in names})
        return function(*arguments, plan=plan, **options)

    wrapped: Callable[..., Any] = packed
    for decorator in reversed(decorators):
        wrapped = decorator(wrapped)
    return wrapped


def _refuse_given() -> None:
    """Options of plans say nothing where there are none."""
    context = click.get_current_context()
    for parameter in context.command.params:
        if parameter.name is None or parameter.name not in {*PlanOptions.__dataclass_fields__} - {"format"}:
            continue
        if context.get_parameter_source(parameter.name) not in (None, click.core.ParameterSource.DEFAULT):
            raise click.UsageError(f"{parameter.opts[0]} goes with --format tensorrt or --format tensorrt-rtx")


def check_plans(options: PlanOptions, precisions: Sequence[str], any_size: bool = False) -> None:
    """Refuse plans that cannot be built, before a bundle is made for them.

    Raises:
        UsageError: options that do not fit together.
        EngineError: there is no GPU to build for.
        MissingDependencyError: TensorRT is not installed.
    """
    from ..errors import UsageError
    from ..export.to_tensorrt import check_config

    if any_size:
        raise UsageError("TensorRT has no antialiased resizing; leave out --any-size or --format")
    for config in _configs(options, precisions):
        check_config(config)


def build_plans_of(bundle: Bundle, options: PlanOptions, precisions: Sequence[str]) -> Bundle:
    """Build a bundle's plans, with a progress bar, and print what they are.

    Raises:
        UsageError: options that do not fit together.
        EngineError: TensorRT does not build them.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from ..export.to_tensorrt import build_plans

    configs = _configs(options, precisions)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    before = dict(bundle.manifest.plans)
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bars: dict[str, Any] = {}

        def show(precision: str, stage: str, done: float) -> None:
            title = f"{precision}: {stage}"
            if title not in bars:
                bars[title] = progress.add_task(title, total=1.0)
            progress.update(bars[title], completed=done)

        for config in configs:
            bundle = build_plans(bundle, config, functools.partial(show, config.precision))
    _print(bundle, {name: plan for name, plan in bundle.manifest.plans.items() if before.get(name) is not plan})
    return bundle


def _configs(options: PlanOptions, precisions: Sequence[str]) -> list[PlanConfig]:
    from ..errors import UsageError
    from ..export.to_tensorrt import PlanConfig

    if len(options.batches) != 3:
        raise UsageError("--batch-sizes of plans are three: the least, the best and the most images, such as 1,8,32")
    return [
        PlanConfig(
            precision=precision,
            flavour=options.format.replace("-", "_"),
            batches=(options.batches[0], options.batches[1], options.batches[2]),
            gpus=options.gpus,
            workspace=options.workspace,
            version_compatible=options.version_compatible,
            refit=options.refit,
            timing_cache=options.timing_cache,
        )
        for precision in dict.fromkeys(precisions or ("fp32",))
    ]


def _print(bundle: Bundle, plans: Mapping[str, PlanReport]) -> None:
    from rich.console import Console
    from rich.table import Table

    manifest = bundle.manifest
    table = Table(title="TensorRT plans", title_justify="left", box=None, pad_edge=False)
    for heading in ("answer", "precision", "GPUs", "batches", "MB", "cosine"):
        table.add_column(heading, no_wrap=True)
    for name, plan in plans.items():
        table.add_row(
            plan.answer,
            plan.precision,
            ", ".join(plan.gpus),
            f"{plan.batches[0]}–{plan.batches[2]}, best {plan.batches[1]}",
            f"{manifest.files[name].bytes / 1e6:.1f}",
            f"{plan.parity.mask_cosine:.5f}" if plan.parity else "on its first GPU",
        )
    console = Console()
    console.print(table)
    last = list(plans.values())[-1]
    precision = "" if last.precision == "fp32" else f" --precision {last.precision}"
    console.print(f"On such a GPU, with {last.flavour} {last.version}:", highlight=False)
    console.print(
        f"  saccade explain photo.jpg --bundle {plain(bundle.path)} --engine tensorrt{precision}",
        highlight=False,
        soft_wrap=True,
    )
