"""``saccade evaluate``."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import Count, EngineOptions, Number, any_json, bundle_argument, engine_options
from .plain import plain

if TYPE_CHECKING:
    from ..evaluate.metrics import Estimate, Metric
    from .evaluation import Evaluation

__all__ = ["evaluate", "mean_colour", "print_result", "record"]


@click.command()
@bundle_argument
@click.option(
    "--data",
    default="scenes",
    show_default=True,
    metavar="DIR|scenes",
    help="Images: a folder, a folder per class, or planted scenes.",
)
@click.option(
    "--masks",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Ground truth: one mask per image, of the same relative path; evidence is bright.",
)
@click.option("--count", type=Count(1), metavar="N", help="Images. [default: 500 scenes, or the whole folder]")
@click.option("--first", type=Count(0), default=0, metavar="N", help="Leave out so many images before.")
@click.option("--context", is_flag=True, help="Scenes with a second patch of evidence.")
@click.option(
    "--against",
    multiple=True,
    metavar="BUNDLE|NAME",
    help="A rival: another bundle of the classifier, random, centre, grad-cam, integrated-gradients; repeatable.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The classifier's weights, for grad-cam and integrated-gradients of a model that has its own file.",
)
@click.option(
    "--metrics",
    "names",
    metavar="NAME,NAME,…|all",
    help="What to measure; --metrics help lists all. [default: the quick ones]",
)
@click.option(
    "--target",
    type=click.Choice(["predicted", "label"]),
    default="predicted",
    show_default=True,
    help="The class to explain and to watch.",
)
@click.option(
    "--protocol",
    type=click.Choice(["rise", "ltx"]),
    default="rise",
    show_default=True,
    help="Of the four curves: RISE's definition, or that of LTX's published code.",
)
@click.option(
    "--fill",
    type=click.Choice(["mean", "black", "blur"]),
    default="mean",
    show_default=True,
    help="What stands in the place of a removed pixel; mean is the colour that the model takes for zero.",
)
@click.option("--steps", type=Count(1), default=16, show_default=True, metavar="N", help="Of each curve.")
@click.option(
    "--tolerance", type=Number(0), default=15.0, show_default=True, metavar="PX", help="Of the pointing game."
)
@click.option(
    "--memory-budget",
    type=Number(min=0.1),
    default=2.0,
    show_default=True,
    metavar="GIB",
    help="Memory that the process may take; sets the batch size.",
)
@click.option("--batch-size", type=Count(1), metavar="N", help="Images per call, in place of the budget.")
@click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), metavar="PAGE.html", help="Write a page with pictures."
)
@engine_options
@any_json
def evaluate(
    bundle: Path,
    data: str,
    masks: Path | None,
    count: int | None,
    first: int,
    context: bool,
    against: tuple[str, ...],
    weights: Path | None,
    names: str | None,
    target: str,
    protocol: str,
    fill: str,
    steps: int,
    tolerance: float,
    memory_budget: float,
    batch_size: int | None,
    report: Path | None,
    engine: EngineOptions,
    as_json: bool,
) -> int:
    """Measure whether a bundle's explanations are faithful; no PyTorch is needed, except by two of the baselines.

    Removes pixels by importance and watches the classifier, and holds masks against ground truth where there is some.
    Each value comes with a 95 % bootstrap interval over the images, each rival with its difference on the same images.

    \b
    Examples:
      saccade evaluate bundle --data photos/
      saccade evaluate bundle --data photos/ --masks truth/ --report report.html
      saccade evaluate bundle --against other-bundle --against random
      saccade evaluate bundle --metrics insertion,deletion,sic --json
    """
    if names == "help":
        _list_metrics()
        return 0
    if report and not report.parent.is_dir():
        from ..errors import OutputError

        raise OutputError(f"there is no folder '{report.parent}' for the report")

    from ..accel.engines import open_engine
    from ..accel.memory import largest_batch
    from ..evaluate.metrics import METRIC_NAMES, QUICK, QUICK_WITH_EVIDENCE, make_metrics
    from .contenders import bundle_contender, make_contender
    from .evaluation import evaluate_contenders
    from .evaluation_data import open_data
    from .progress import counting_progress

    settings = engine.settings()
    running = open_engine(bundle, **settings)
    manifest = running.bundle.manifest
    images = open_data(
        data, manifest.image, manifest.class_names, masks=masks, count=count, first=first, context=context
    )
    default = QUICK_WITH_EVIDENCE if images.has_evidence else QUICK
    everything = [name for name in METRIC_NAMES if images.has_evidence or not _needs_evidence(name)]
    wanted = everything if names == "all" else names.split(",") if names else default
    metrics = make_metrics(
        wanted,
        protocol=protocol,  # type: ignore[arg-type]
        fill=mean_colour(manifest.image.mean) if fill == "mean" else fill,  # type: ignore[arg-type]
        steps=steps,
        tolerance=tolerance,
    )
    with ExitStack() as stack:
        contenders = [bundle_contender(running, stack)]
        contenders += [
            make_contender(name, running, stack, {**settings, "precision": "fp32"}, weights) for name in against
        ]
        size = batch_size or largest_batch(running, memory_budget * 1024)
        progress = stack.enter_context(counting_progress())
        bars = {
            contender.name: progress.add_task(plain(contender.name), total=images.count) for contender in contenders
        }
        result = evaluate_contenders(
            contenders,
            metrics,
            images,
            running.probabilities,
            of_label=target == "label",
            batch_size=size,
            on_progress=lambda name, done: progress.update(bars[name], completed=done),
        )
    about = {
        "data": images.title,
        "target": target,
        "protocol": protocol,
        "fill": fill,
        "steps": steps,
        "tolerance": tolerance,
        "batch_size": size,
        "engine": engine.engine,
    }
    for name, reason in images.failures.items():
        click.echo(f"skipped {reason or name}", err=True)
    if report:
        from .evaluation_page import write_page

        write_page(report, result, about, manifest.class_names)
    if as_json:
        click.echo(json.dumps(record(result, about), indent=2))
    else:
        print_result(result, images.title)
        if report:
            click.echo(f"curves and pictures in {report}")
    return 1 if images.failures else 0


def record(result: Evaluation, about: dict[str, Any]) -> dict[str, Any]:
    """The result for programs."""

    def plain(estimate: Estimate) -> dict[str, float | int | None]:
        return {
            "value": _finite(estimate.value),
            "low": _finite(estimate.low),
            "high": _finite(estimate.high),
            "images": estimate.images,
        }

    return {
        **about,
        "images": result.images,
        "accuracy": result.accuracy,
        "higher_is_better": {metric.name: metric.higher_is_better for metric in result.metrics},
        "explainers": [
            {
                "name": score.name,
                "metrics": {name: plain(value) for name, value in score.values.items()},
                "more_than_the_first": {name: plain(value) for name, value in score.differences.items()},
                "curves": {
                    name: {"x": curve.x.tolist(), "y": [_finite(float(y)) for y in curve.y]}
                    for name, curve in score.curves.items()
                },
            }
            for score in result.scores
        ],
    }


def _finite(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


def print_result(result: Evaluation, title: str) -> None:
    """The result for people, as a table; `title` says what the images are."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    rivals = len(result.scores) > 1
    table = Table(box=None, pad_edge=False)
    for heading, justify in (
        ("metric", "left"),
        *((("explainer", "left"),) if rivals else ()),
        ("value", "right"),
        ("95 % interval", "left"),
        *((("difference", "right"), ("95 % interval", "left")) if rivals else ()),
    ):
        table.add_column(heading, justify=justify, overflow="fold")
    for metric in result.metrics:
        for index, score in enumerate(result.scores):
            value = _cells(score.values.get(metric.name), "", "bold")
            name = f"{metric.name} {_direction(metric)}" if index == 0 else ""
            if rivals:
                gap = score.differences.get(metric.name)
                table.add_row(name, plain(score.name), *value, *_cells(gap, "+", _colour(metric, gap)))
            else:
                table.add_row(name, *value)
    console.print(table)
    parts = [plain(title)]
    if result.accuracy is not None:
        parts.append(f"accuracy {result.accuracy:.1%}")
    parts.append("intervals: bootstrap over images")
    if rivals:
        parts.append(f"differences: to {plain(result.scores[0].name)}, on the same images")
    console.print("; ".join(parts), style="dim")


def _direction(metric: Metric) -> str:
    return {True: "↑", False: "↓", None: ""}[metric.higher_is_better]


def _cells(estimate: Estimate | None, sign: str, style: str) -> tuple[str, str]:
    """The value and its interval, as texts."""
    from .evaluation import decimals

    if estimate is None:
        return "", ""
    if not estimate.images:
        return "–", ""
    digits = decimals(estimate)
    value, low, high = (f"{number:{sign}.{digits}f}" for number in (estimate.value, estimate.low, estimate.high))
    return f"[{style}]{value}[/{style}]", f"[dim]{low} … {high}[/dim]"


def _colour(metric: Metric, gap: Estimate | None) -> str:
    """Green or red where the difference is certain and the metric has a direction."""
    if gap is None or not gap.certain or metric.higher_is_better is None:
        return "dim"
    return "green" if (gap.value > 0) == metric.higher_is_better else "red"


def mean_colour(mean: tuple[float, float, float]) -> tuple[int, int, int]:
    """The colour that a model takes for zero, 0–255."""
    red, green, blue = (round(255 * part) for part in mean)
    return red, green, blue


def _needs_evidence(name: str) -> bool:
    from ..evaluate.metrics import make_metrics

    return bool(make_metrics([name])[0].needs_evidence)


def _list_metrics() -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ..evaluate.metrics import METRIC_NAMES, QUICK_WITH_EVIDENCE, make_metrics

    table = Table("metric", "better", "by default", "what it is", box=None, pad_edge=False)
    for metric in make_metrics(METRIC_NAMES):
        by_default = "with ground truth" if metric.needs_evidence else "yes"
        table.add_row(
            metric.name,
            _direction(metric),
            by_default if metric.name in QUICK_WITH_EVIDENCE else "",
            escape(metric.summary),
        )
    Console().print(table)
