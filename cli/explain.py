"""``saccade explain``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import Areas, Box, Count, EngineOptions, ImageSize, Number, any_json, engine_options, megapixels_option
from .plain import plain

if TYPE_CHECKING:
    from ..accel.engine import Engine
    from .outcome import Outcome

__all__ = ["explain"]

_OF_ENGINES = ("engine", "providers", "provider_options", "threads")


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH...")
@click.option("--bundle", type=click.Path(path_type=Path), metavar="DIR", help="The bundle that explains.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="NAME|INDEX",
    help="Class to explain; repeat for several. [default: the predicted class]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder for the results. [default: explanations; with --json none]",
)
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(["overlay", "mask", "npz"]),
    default=("overlay", "mask"),
    show_default=True,
    help="What to write for each image; repeat for several.",
)
@click.option(
    "--batch-size",
    type=Count(1),
    metavar="N",
    help="Images per call of the engine. [default: what the explainer was made for, mostly 8; 16 with --finetune and "
    "--method inr]",
)
@megapixels_option()
@click.option(
    "--finetune",
    "steps",
    type=Count(1),
    metavar="N",
    help="Fine-tune the explainer of --checkpoint for N steps on each image; needs PyTorch.",
)
@click.option("--checkpoint", type=click.Path(path_type=Path), metavar="DIR", help="A trained explainer, in PyTorch.")
@click.option(
    "--method",
    metavar="NAME",
    help="Explain --model in PyTorch, without a bundle: by a gradient method (gradcam, dix, iia, ig …; all are listed "
    "by: saccade export --method help), or by masks that are optimised for each image (inr).",
)
@click.option(
    "--model",
    "spec",
    metavar="SPEC",
    help="With --method: the classifier, such as torchvision:resnet50. With --checkpoint: where its spec has changed.",
)
@click.option(
    "--weights",
    metavar="FILE",
    help="The classifier's weights. [default: pretrained; with --checkpoint as trained with]",
)
@click.option(
    "--areas",
    type=Areas(),
    default="0.05,0.1,0.2,0.3",
    show_default=True,
    metavar="A,B,…",
    help="Fractions of the image that masks keep: with --method inr, or an explainer of train inr.",
)
@click.option(
    "--several",
    type=Count(1),
    metavar="N",
    help="As --areas, but up to N masks without a common pixel, of the first of --areas each.",
)
@click.option(
    "--size",
    type=ImageSize(),
    metavar="H[xW]",
    help="Pixels of the masks of an explainer of train inr, as npz holds them. [default: the model's input size]",
)
@click.option(
    "--box",
    type=Box(),
    metavar="L,T,R,B",
    help="Render only this part of the masks of an explainer of train inr, as fractions of what the model sees.",
)
@click.option(
    "--objective",
    type=click.Choice(["preserve", "delete", "dual"]),
    default="preserve",
    show_default=True,
    help="With --method inr: what is kept is enough, what is left is not, or both.",
)
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    default=("blur",),
    show_default=True,
    metavar="NAME|COLOUR",
    help="With --method inr: what takes the place of a removed pixel: blur, pyramid, mean, black, or '#808080'; "
    "repeat to take several in turn.",
)
@click.option(
    "--margin",
    type=Number(0, 0.5, max_open=True),
    default=0.05,
    show_default=True,
    metavar="F",
    help="With --several and --method inr: what is left free around each mask, as a fraction of the image's side.",
)
@click.option(
    "--steps",
    "updates",
    type=Count(1),
    default=300,
    show_default=True,
    metavar="N",
    help="With --method inr: updates at most.",
)
@click.option(
    "--learning-rate",
    type=Number(0, min_open=True),
    default=3e-3,
    show_default=True,
    help="With --method inr: lower it if an optimisation diverges.",
)
@click.option(
    "--tune",
    type=click.Choice(["head", "mask"]),
    default="head",
    show_default=True,
    help="With --finetune: what each image has of its own.",
)
@click.option(
    "--select",
    type=click.Choice(["loss", "pos", "insertion-deletion"]),
    default="loss",
    show_default=True,
    help="With --finetune: what the best step is chosen by; never a label.",
)
@engine_options
@any_json
@click.pass_context
def explain(
    context: click.Context,
    /,
    paths: tuple[Path, ...],
    bundle: Path | None,
    targets: tuple[str, ...],
    out: Path | None,
    formats: tuple[str, ...],
    batch_size: int | None,
    max_megapixels: float,
    steps: int | None,
    checkpoint: Path | None,
    method: str | None,
    spec: str | None,
    weights: str | None,
    areas: tuple[float, ...],
    several: int | None,
    size: tuple[int, int] | None,
    box: tuple[float, float, float, float] | None,
    objective: str,
    baselines: tuple[str, ...],
    margin: float,
    updates: int,
    learning_rate: float,
    tune: str,
    select: str,
    engine: EngineOptions,
    as_json: bool,
) -> int:
    """Explain images and folders of images: by a bundle, which needs no PyTorch, or with --method or --checkpoint in
    PyTorch, on a GPU where there is one.

    Writes an overlay and a mask for each image, and one line of JSON each in results.jsonl. Images that cannot be
    read are reported, the others go on, and the exit code is 1.

    \b
    Examples:
      saccade explain cat.jpg --bundle bundle
      saccade explain photos/ --bundle bundle --out explained --format overlay --format npz
      saccade explain cat.jpg --bundle bundle --json | jq .class
      saccade explain pets.jpg --bundle bundle --target cat --target dog
      saccade explain cat.jpg --method dix --model timm:vit_base_patch16_224
      saccade explain photos/ --checkpoint runs/ltx --finetune 25
      saccade explain cat.jpg --method inr --model torchvision:resnet50 --areas 0.05,0.1,0.2
      saccade explain cat.jpg --bundle functions --areas 0.03,0.08 --format mask
      saccade explain cat.jpg --bundle functions --areas 0.1 --box 0,0,0.5,0.5 --size 512 --format npz
    """
    from PIL import Image

    from ..accel.engines import open_engine
    from ..accel.image import find_images
    from ..accel.pipeline import PipelineConfig, explain_images
    from ..contracts import MaskQuery
    from ..errors import require
    from .outcome import Outcome
    from .progress import counting_progress
    from .target import target_indices

    Image.MAX_IMAGE_PIXELS = None  # this process is ours: --max-megapixels is the limit, checked before decoding
    pixels = int(max_megapixels * 1e6)
    if method is not None:
        others = ["bundle", "engine", "providers", "provider_options", "threads", "size", "box"]
        others += ["checkpoint", "steps", "tune", "select", "precision"]
        _refuse_given(context, others, "does not go with --method")
        if spec is None:
            raise click.UsageError("--method needs the classifier: --model SPEC, such as torchvision:resnet50")
    if method == "inr":
        for package in ("torch", "safetensors"):
            require(package, extra="train", purpose="--method inr")
        from ..methods.inr.config import INRConfig
        from ..methods.inr.several import SeveralConfig
        from .inr import INRJob, explain_by_optimisation

        if several is None:
            _refuse_given(context, ("margin",), "goes with --several")
        config = INRConfig(
            areas=areas,
            objective=objective,  # type: ignore[arg-type]
            baselines=baselines,
            steps=updates,
            learning_rate=learning_rate,
        )
        masks = None if several is None else SeveralConfig(most=several, area=config.areas[0], margin=margin)
        assert spec is not None, "checked above"
        job = INRJob(spec, weights or "pretrained", targets, config, masks)
        return explain_by_optimisation(find_images(list(paths)), job, out, formats, batch_size or 16, pixels, as_json)
    _refuse_given(context, ("objective", "baselines", "margin", "updates", "learning_rate"), "belongs to --method inr")
    if steps is not None:
        _refuse_given(context, ("areas", "several", "size", "box"), "does not go with --finetune")
        _refuse_given(context, ("bundle", *_OF_ENGINES), "belongs to a bundle, not to --finetune")
        if checkpoint is None:
            raise click.UsageError("--finetune fine-tunes a trained explainer: --checkpoint DIR")
        for package in ("torch", "safetensors"):
            require(package, extra="train", purpose="--finetune")
        from .finetune import explain_finetuned

        if engine.precision not in ("fp32", "bf16"):
            raise click.UsageError("--finetune takes --precision fp32 or bf16")
        settings = {"steps": steps, "tune": tune, "select": select, "precision": engine.precision}
        return explain_finetuned(
            find_images(list(paths)),
            checkpoint,
            settings,
            targets,
            out,
            formats,
            batch_size or 16,
            pixels,
            as_json,
            spec=spec,
            weights=weights,
        )
    _refuse_given(context, ("tune", "select"), "belongs to --finetune")
    running: Engine
    if method is None and checkpoint is None and bundle is None:
        raise click.UsageError("Missing option '--bundle'; or --method with --model, or --checkpoint.")
    files = find_images(list(paths))
    if method is not None or checkpoint is not None:
        _refuse_given(context, ("bundle",), "does not go with --checkpoint; give one of them")
        _refuse_given(context, (*_OF_ENGINES, "precision"), "belongs to a bundle, not to PyTorch")
        for package in ("torch", "onnx", "onnxscript", "safetensors"):
            require(package, extra="train", purpose="explaining in PyTorch")
        from .in_torch import open_checkpoint, open_method

        if checkpoint is not None:
            running = open_checkpoint(checkpoint, spec, weights)
        else:
            assert method is not None, "one of the two was given"
            assert spec is not None, "checked above"
            running = open_method(method, spec, weights, batch_size)
    else:
        _refuse_given(context, ("spec", "weights"), "belongs to --method or --checkpoint")
        assert bundle is not None, "checked above"
        running = open_engine(bundle, **engine.settings())
    indices = target_indices(running.bundle, targets)
    asked = areas if _is_given(context, "areas") else ()
    whole = MaskQuery()
    query = MaskQuery(areas=asked, size=size, box=box or whole.box, parts=several or 0)
    pipeline = PipelineConfig(
        batch_size=batch_size, targets=indices, query=None if query == whole else query, max_pixels=pixels
    )
    with Outcome(out, formats, as_json) as outcome, counting_progress() as progress:
        bar = progress.add_task("explaining", total=len(files) * len(indices))
        for result in explain_images(running, files, pipeline):
            outcome.take(result, progress.console)
            progress.advance(bar)
    if not as_json:
        _print_table(outcome)
    return outcome.exit_code


def _refuse_given(context: click.Context, names: Sequence[str], why: str) -> None:
    """Refuse options of the other mode, rather than ignore them."""
    for parameter in context.command.params:
        if parameter.name in names and _is_given(context, parameter.name):
            raise click.UsageError(f"{parameter.opts[0]} {why}")


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT


def _print_table(outcome: Outcome) -> None:
    from rich.console import Console
    from rich.table import Table

    console, shown = Console(), outcome.shown
    if shown:
        table = Table(box=None, pad_edge=False)
        named = any(result.variant not in ("", result.class_name) for result in shown)
        for heading, justify in (
            ("image", "left"),
            ("class", "left"),
            *([("mask", "left")] if named else []),
            ("probability", "right"),
            ("mask area", "right"),
            ("peak x, y", "right"),
            ("ms", "right"),
        ):
            table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
        for result in shown:
            x, y = result.peak()
            table.add_row(
                plain(result.source),
                plain(result.class_name),
                *([plain(result.variant)] if named else []),
                f"{result.probability:.1%}",
                f"{result.mask.mean():.1%}",
                f"{x}, {y}",
                f"{result.milliseconds or 0:.1f}",
            )
        console.print(table)
        if outcome.more:
            console.print(f"… and {outcome.more} more", style="dim")
    parts = [f"{outcome.done} explained"]
    if outcome.failed:
        parts.append(f"[red]{outcome.failed} could not be read[/red]")
    where = f"; results in [bold]{plain(outcome.folder)}[/bold]" if outcome.folder else ""
    console.print(", ".join(parts) + where, highlight=False)
