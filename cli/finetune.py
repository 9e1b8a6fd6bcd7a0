"""``saccade explain --finetune``: per-image fine-tuning in PyTorch, the tuned masks beside the pretrained ones."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..accel.bundle import class_index
from ..accel.image import ImageSource, load_image, resize_image, source_name
from ..accel.results import Failure, ImageExplanation, ResultWriter
from ..contracts import Uint8
from ..errors import ImageError
from ..evaluate.metrics import Sample, difference, estimate, make_metrics, measure
from ..methods.features import device_of
from ..methods.ltx.checkpoint import load_checkpoint
from ..methods.ltx.finetune import FinetuneConfig, FineTuned, finetune
from ..methods.ltx.model import LTXExplainer
from ..methods.ltx.train import to_float

__all__ = ["explain_finetuned"]

_METRICS = ("insertion", "deletion", "insertion-deletion")


@dataclass
class _Gains:
    """What runs cost and gained, over all images so far."""

    seconds: float = 0.0
    forwards: int = 0
    backwards: int = 0
    steps: list[int] = field(default_factory=list)
    rows: list[tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]] = field(default_factory=list)


def explain_finetuned(
    files: Sequence[ImageSource],
    checkpoint: Path,
    settings: dict[str, Any],
    targets: Sequence[str],
    out: Path | None,
    formats: tuple[str, ...],
    batch_size: int,
    max_pixels: int,
    as_json: bool,
) -> int:
    """Fine-tune on each image, and write both explanations.

    Args:
        files: the images.
        checkpoint: of the pretrained explainer.
        settings: of `FinetuneConfig`.
        targets: class names or indices, each an explanation of its own; empty for the predicted class.
        out: folder for the results.
        formats: see `ResultWriter`.
        batch_size: explanations that are tuned together.
        max_pixels: an image with more is refused.
        as_json: print records instead of a table.

    Returns:
        The exit code: 1 if an image could not be read.
    """
    config = FinetuneConfig(**settings)
    explainer, record = load_checkpoint(checkpoint)
    explainer.to("cuda" if torch.cuda.is_available() else "cpu")
    asked = [class_index(target, record.class_names) for target in targets] or [-1]
    folder = out or (None if as_json else Path("explanations"))
    writer = ResultWriter(folder, formats) if folder else None
    gains, failed = _Gains(), 0
    total = len(files) * len(asked)
    try:
        with _progress() as progress:
            bar = progress.add_task("fine-tuning", total=total * config.steps)
            work = _loaded(files, explainer, max_pixels)
            for chunk in _chunks(work, batch_size, len(asked)):
                readable = [item for item in chunk if not isinstance(item, Failure)]
                results: list[ImageExplanation | Failure] = [item for item in chunk if isinstance(item, Failure)]
                failed += len(results)
                if readable:
                    count = len(readable) * len(asked)
                    results += _explain(
                        explainer,
                        readable,
                        asked,
                        record.config,
                        config,
                        gains,
                        lambda step, count=count: progress.advance(bar, count),
                    )
                for result in results:
                    line = writer.write(result) if writer else result.record()
                    if as_json:
                        click.echo(json.dumps(line, ensure_ascii=False))
                    elif isinstance(result, Failure):
                        progress.console.print(f"[red]skipped[/red] {result.reason}", highlight=False, soft_wrap=True)
    except BaseException:
        if writer:
            writer.discard()
        raise
    if writer:
        writer.close()
    if gains.rows and not as_json:
        _print(gains, config, folder)
    return 1 if failed else 0


_Image = tuple[str, Uint8, Uint8]  # name, as loaded, as the model takes it


def _loaded(files: Sequence[ImageSource], explainer: LTXExplainer, max_pixels: int) -> Iterator[_Image | Failure]:
    for file in files:
        try:
            image = load_image(file, max_pixels=max_pixels)
        except ImageError as error:
            yield Failure(source_name(file), str(error))
            continue
        yield source_name(file), image, resize_image(image, explainer.explainee.image_spec)


def _chunks(work: Iterator[_Image | Failure], batch_size: int, targets: int) -> Iterator[list[_Image | Failure]]:
    while chunk := list(itertools.islice(work, max(1, batch_size // targets))):
        yield chunk


def _explain(
    explainer: LTXExplainer,
    images: list[_Image],
    asked: list[int],
    losses: Any,
    config: FinetuneConfig,
    gains: _Gains,
    on_step: Any,
) -> list[ImageExplanation | Failure]:
    pixels = np.repeat(np.stack([item[2] for item in images]), len(asked), axis=0)
    target = torch.tensor(asked * len(images), device=device_of(explainer))
    began = time.perf_counter()
    found = finetune(explainer, to_float(pixels, explainer), losses, config, target=target, on_step=on_step)
    seconds = time.perf_counter() - began
    gains.seconds += seconds
    gains.forwards, gains.backwards = found.forwards, found.backwards
    gains.steps += found.step.tolist()
    gains.rows.append(_measured(explainer, pixels, found))
    probabilities = found.logits.softmax(1).cpu().numpy()
    names = explainer.explainee.class_names
    results: list[ImageExplanation | Failure] = []
    for index, label in enumerate(found.target.tolist()):
        name, image, _ = images[index // len(asked)]
        for kind, masks in (("pretrained", found.start), ("finetuned", found.mask)):
            variant = kind if len(asked) == 1 else f"{names[label]}.{kind}"
            results.append(
                ImageExplanation(
                    source=name,
                    image=image,
                    probabilities=probabilities[index],
                    target=label,
                    class_names=names,
                    mask=masks[index, 0].cpu().numpy(),
                    spec=explainer.explainee.image_spec,
                    class_specific=True,
                    milliseconds=seconds * 1e3 / len(found.target),
                    diagnostics={"step": float(found.step[index])} if kind == "finetuned" else {},
                    variant=variant,
                )
            )
    return results


def _measured(
    explainer: LTXExplainer, pixels: Uint8, found: FineTuned
) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
    """Rows of the metrics, before and after."""

    def predict(images: Uint8) -> NDArray[Any]:
        with torch.inference_mode():
            logits = explainer.classifier(explainer.explainee.normalise(to_float(images, explainer)))
            return np.asarray(logits.softmax(1).cpu().numpy())

    def rows(masks: torch.Tensor) -> dict[str, NDArray[np.float64]]:
        values = masks[:, 0].cpu().numpy()
        samples = [
            Sample(image, mask, int(label))
            for image, mask, label in zip(pixels, values, found.target.tolist(), strict=True)
        ]
        return measure(make_metrics(_METRICS), samples, predict)

    return rows(found.start), rows(found.mask)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _print(gains: _Gains, config: FinetuneConfig, folder: Path | None) -> None:
    console = Console()
    count = len(gains.steps)
    table = Table(
        title=f"{count} explanation{'s' * (count > 1)} tuned for {config.steps} steps",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("")
    for heading in ("pretrained", "finetuned", "change", "95 %"):
        table.add_column(heading, justify="right")
    for metric in make_metrics(_METRICS):
        before, after = (np.concatenate([pair[side][metric.name] for pair in gains.rows]) for side in (0, 1))
        change = difference(metric, after, before)
        table.add_row(
            f"{metric.name} {'↑' if metric.higher_is_better else '↓'}",
            f"{estimate(metric, before).value:.4f}",
            f"{estimate(metric, after).value:.4f}",
            f"{change.value:+.4f}",
            f"{change.low:+.4f} … {change.high:+.4f}" if count > 1 else "",
        )
    console.print(table)
    chosen = (
        f"chosen step: {np.median(gains.steps):.0f} in the median" if count > 1 else f"chosen step: {gains.steps[0]}"
    )
    console.print(
        f"Each cost {gains.forwards} forwards and {gains.backwards} backwards of the classifier, "
        f"{gains.seconds / count:.2f} s; {chosen}" + (f"; results in [bold]{folder}[/bold]" if folder else ""),
        highlight=False,
    )
