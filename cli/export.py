"""``saccade export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import Count, Number
from .plain import plain
from .plan import PlanOptions, build_plans_of, check_plans, plan_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from ..accel.bundle import Bundle
    from ..accel.manifest import Manifest
    from ..methods.gradient.config import GradientConfig

__all__ = ["export"]


@click.command()
@click.option(
    "--method",
    metavar="NAME",
    help="A method that needs no training: gradcam, dix, iia, ig …; --method help lists all.",
)
@click.option("--model", "spec", metavar="SPEC", help="The classifier; with --checkpoint, where it is now.")
@click.option("--weights", metavar="FILE", help="Its weights; with --checkpoint, where they are now.")
@click.option("--classes", type=click.Path(path_type=Path), metavar="FILE", help="Class names, one per line.")
@click.option("--layer", "layers", multiple=True, metavar="NAME", help="Layer to read, the last one first; repeatable.")
@click.option(
    "--preset",
    type=click.Choice(["published", "fast"]),
    default="published",
    show_default=True,
    help="The published number of steps, or the fewest Gauss points that give nearly the same mask as very many.",
)
@click.option("--steps", type=Count(1), metavar="N", help="Of every integral. [default: the preset's]")
@click.option(
    "--quadrature",
    "rule",
    type=click.Choice(["riemann", "gauss", "midpoint"]),
    help="Of every integral. [default: the preset's]",
)
@click.option(
    "--mode",
    type=click.Choice(["paper", "code"]),
    default="paper",
    show_default=True,
    help="The published formulas, or what the published code computes.",
)
@click.option(
    "--memory-budget",
    type=Number(0, min_open=True),
    default=4.0,
    show_default=True,
    metavar="GIB",
    help="What a process that explains a batch of --batch images may take; sets the points of a path per pass.",
)
@click.option("--batch", type=Count(1), default=1, show_default=True, metavar="N", help="See --memory-budget.")
@click.option("--verbose", is_flag=True, help="Say which layers, steps and points per pass were chosen.")
@click.option("--checkpoint", type=click.Path(path_type=Path), metavar="DIR", help="A trained explainer.")
@click.option(
    "--bundle",
    "existing",
    type=click.Path(path_type=Path),
    metavar="BUNDLE",
    help="With --format tensorrt: a bundle that is there gets plans; this needs no PyTorch.",
)
@click.option("--out", type=click.Path(path_type=Path), metavar="BUNDLE", help="Folder of the new bundle.")
@click.option(
    "--any-size", is_flag=True, help="Resize inside the graph, so that it takes images of any size (ONNX Runtime only)."
)
@click.option(
    "--data",
    metavar="DIR|scenes",
    help="Images for the parity gate, at least 16. [default: kept with the checkpoint; without one, noise]",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(["fp16", "bf16", "int8"]),
    help="A lower precision in which the bundle holds the graph as well; repeatable. Layers that the explanation does "
    "not survive in stay in single precision.",
)
@click.option(
    "--calibrate",
    metavar="DIR|scenes",
    help="With --precision int8: images whose values' ranges are taken. [default: those of the parity gate]",
)
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is there.")
@plan_options
def export(
    method: str | None,
    spec: str | None,
    weights: str | None,
    classes: Path | None,
    layers: tuple[str, ...],
    preset: str,
    steps: int | None,
    rule: str | None,
    mode: str,
    memory_budget: float,
    batch: int,
    verbose: bool,
    checkpoint: Path | None,
    existing: Path | None,
    out: Path | None,
    any_size: bool,
    data: str | None,
    precisions: tuple[str, ...],
    calibrate: str | None,
    overwrite: bool,
    plan: PlanOptions,
) -> None:
    """Compile classifier, explainer and preprocessing into one verified ONNX graph.

    Either a gradient method of any classifier, whose gradients become forward operators of the graph, or an explainer
    that was trained. The bundle is written only if the graph explains what PyTorch explains, image by image.

    \b
    Examples:
      saccade export --method gradcam --model torchvision:resnet50 --data photos/ --out bundle
      saccade export --method dix --model timm:vit_base_patch16_224 --data photos/ --out bundle
      saccade export --checkpoint runs/ltx --out bundle
      saccade export --checkpoint runs/ltx --precision fp16 --out bundle
      saccade export --bundle bundle --format tensorrt --precision fp16
    """
    if method == "help":
        _list_methods()
        return
    from ..errors import UsageError, require

    if existing is not None:
        if any((method, checkpoint, out, data, calibrate, spec, any_size, overwrite)):
            raise UsageError(
                "--bundle takes a bundle that is there; without it, --method or --checkpoint make a new one"
            )
        if not plan.wanted:
            raise UsageError("--bundle goes with --format tensorrt or --format tensorrt-rtx")
        from ..accel.bundle import open_bundle

        build_plans_of(open_bundle(existing), plan, precisions)
        return
    if out is None:
        raise UsageError("say where the bundle goes: --out FOLDER")
    if (method is None) == (checkpoint is None):
        raise UsageError("give either --checkpoint DIR or --method NAME --model SPEC")
    if calibrate and "int8" not in precisions:
        raise UsageError("--calibrate goes with --precision int8")
    if method is not None and spec is None:
        raise UsageError(f"--method {method} needs the classifier: --model SPEC, for example torchvision:resnet50")
    if plan.wanted:
        check_plans(plan, precisions, any_size)
    for package in ("torch", "onnx", "onnxscript", "safetensors"):
        require(package, extra="train", purpose="exporting")
    from rich.console import Console

    with Console(stderr=True).status("loading the classifier") as status:
        if checkpoint is not None:
            bundle = _export_checkpoint(
                checkpoint, spec, weights, data, out, any_size, precisions, calibrate, overwrite, status.update
            )
        else:
            from ..methods.gradient.config import ALIASES, GradientConfig

            assert method is not None, "one of the two was given"
            assert spec is not None, "checked above"
            config = GradientConfig(
                method=ALIASES.get(method, method),
                layers=layers,
                preset=preset,  # type: ignore[arg-type]
                steps=steps or 0,
                rule=rule,  # type: ignore[arg-type]
                mode=mode,  # type: ignore[arg-type]
                memory_budget=memory_budget,
                batch=batch,
            )
            bundle = _export_method(
                config, spec, weights, classes, data, out, any_size, precisions, calibrate, overwrite, status.update
            )
    if verbose:
        _print_choices(bundle.manifest)
    _print(bundle.manifest, out)
    if plan.wanted:
        build_plans_of(bundle, plan, precisions)


def _export_checkpoint(
    checkpoint: Path,
    spec: str | None,
    weights: str | None,
    data: str | None,
    out: Path,
    any_size: bool,
    precisions: tuple[str, ...],
    calibrate: str | None,
    overwrite: bool,
    on_stage: Callable[[str], None],
) -> Bundle:
    from ..export.parity import MIN_IMAGES
    from ..export.write_bundle import export_trained
    from ..methods.checkpoint import load_checkpoint, load_samples, read_record
    from .data import enough_images, sample_images
    from .options import resolve_model

    record = read_record(checkpoint)
    images = None if data else load_samples(checkpoint)
    if images is None:
        images = sample_images(data or record.data, record.image_spec)
    images = enough_images(images, MIN_IMAGES, f"'{data or checkpoint}'")
    explainer, record = load_checkpoint(checkpoint, spec=resolve_model(spec) if spec else None, weights=weights)
    return export_trained(
        explainer,
        record,
        images,
        out,
        any_size=any_size,
        precisions=precisions,
        calibration=sample_images(calibrate, record.image_spec) if calibrate else None,
        overwrite=overwrite,
        on_stage=on_stage,
    )


def _export_method(
    config: GradientConfig,
    spec: str,
    weights: str | None,
    classes: Path | None,
    data: str | None,
    out: Path,
    any_size: bool,
    precisions: tuple[str, ...],
    calibrate: str | None,
    overwrite: bool,
    on_stage: Callable[[str], None],
) -> Bundle:
    from ..export.parity import MIN_IMAGES
    from ..export.write_bundle import export_gradient
    from ..methods.explainee import load_explainee
    from .data import SCENES, enough_images, noise_images, sample_images
    from .options import SHORT_SPECS, read_class_names, resolve_model

    explainee = load_explainee(resolve_model(spec), weights, class_names=read_class_names(classes))
    own = data or (SCENES if resolve_model(spec) in SHORT_SPECS.values() else None)
    images = sample_images(own, explainee.image_spec, MIN_IMAGES) if own else noise_images(explainee.image_spec)
    images = enough_images(images, MIN_IMAGES, f"'{own}'")
    return export_gradient(
        explainee,
        config,
        images,
        out,
        any_size=any_size,
        precisions=precisions,
        calibration=sample_images(calibrate, explainee.image_spec) if calibrate else None,
        overwrite=overwrite,
        on_stage=on_stage,
    )


def _list_methods() -> None:
    from rich.console import Console
    from rich.table import Table

    from ..methods.gradient.config import ALIASES, METHODS

    short = {name: alias for alias, name in ALIASES.items()}
    table = Table("method", "also", "what it is", box=None, pad_edge=False)
    for name, what in METHODS.items():
        table.add_row(name, short.get(name, ""), what)
    Console().print(table)


def _print_choices(manifest: Manifest) -> None:
    """What a method chose for itself, one line each."""
    from rich.console import Console

    console = Console(stderr=True)
    for name in ("layers", "steps", "inner_steps", "rule", "points_per_pass", "mode", "memory_budget"):
        if name not in manifest.parameters:
            continue
        value = manifest.parameters[name]
        shown = ", ".join(value) or "attention or pixels" if isinstance(value, list) else str(value)
        if name == "points_per_pass":
            shown = str(value or "all")
        console.print(f"{name.replace('_', ' ')}: {plain(shown)}", highlight=False)
    console.print(f"batch: {manifest.batch}", highlight=False)


def _print(manifest: Manifest, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from ..accel.verify import batch_bar

    report, size = manifest.parity, sum(entry.bytes for entry in manifest.files.values())
    table = Table(box=None, pad_edge=False)
    for heading in ("worst image", "measured", "bar"):
        table.add_column(heading)
    table.add_row("mask, max |Δ|", f"{report.mask_max_abs:.1e}", f"≤ {report.mask_bar:.0e}")
    table.add_row("probabilities, max |Δ|", f"{report.probabilities_max_abs:.1e}", f"≤ {report.probabilities_bar:.0e}")
    table.add_row("mask, cosine", f"{report.mask_cosine:.7f}", "")
    table.add_row("mask, rank correlation", f"{report.mask_spearman:.7f}", "")
    table.add_row("mask, top 10 % overlap", f"{report.mask_top10_iou:.5f}", "")
    table.add_row("batch against single", f"{report.batch_max_abs:.1e}", f"≤ {batch_bar(report):.0e}")
    table.add_row("change from image to image", f"{report.input_dependence:.3f}", "≥ 0.01")
    if report.target_dependence is not None:
        table.add_row("change from class to class", f"{report.target_dependence:.3f}", "≥ 0.01")
    console = Console()
    batches = ", ".join(map(str, report.batches))
    console.print(f"Parity with PyTorch on {report.images} images, batches {batches}", highlight=False, soft_wrap=True)
    console.print(table)
    if manifest.precisions:
        _print_lower_precisions(manifest, console)
    console.print(f"Bundle in [bold]{plain(out)}[/bold], {size / 1e6:.1f} MB. Next:", highlight=False)
    console.print(f"  saccade explain photo.jpg --bundle {plain(out)}", highlight=False, soft_wrap=True)


def _print_lower_precisions(manifest: Manifest, console: Console) -> None:
    """What each lower precision loses, and what it takes."""
    from rich.table import Table

    from ..accel.manifest import GRAPH_FILE
    from ..accel.precision import BARS, graph_file

    table = Table(title="In lower precision", title_justify="left", box=None, pad_edge=False)
    for heading in ("worst image", "cosine", "top 10 % overlap", "probabilities", "file"):
        table.add_column(heading, no_wrap=True)
    whole = manifest.files[GRAPH_FILE].bytes
    for precision, report in manifest.precisions.items():
        bars = BARS[precision]
        table.add_row(
            precision,
            f"{report.mask_cosine:.5f} ≥ {bars.cosine}",
            f"{report.mask_top10_iou:.3f}" + (f" ≥ {bars.top10_iou}" if bars.top10_iou else ""),
            f"{report.probabilities_max_abs:.1e} ≤ {bars.probabilities}",
            f"{manifest.files[graph_file(precision)].bytes / whole:.0%}",
        )
    console.print(table)
    for precision, report in manifest.precisions.items():
        if report.kept:
            layers = ", ".join(report.kept)
            console.print(f"{precision}: in single precision are {plain(layers)}", highlight=False, soft_wrap=True)
