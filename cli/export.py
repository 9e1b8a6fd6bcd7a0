"""``saccade export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..accel.manifest import ParityReport

__all__ = ["export"]


@click.command()
@click.option(
    "--checkpoint", required=True, type=click.Path(path_type=Path), metavar="DIR", help="What saccade train wrote."
)
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="BUNDLE", help="Folder of the bundle.")
@click.option(
    "--any-size", is_flag=True, help="Resize inside the graph, so that it takes images of any size (ONNX Runtime only)."
)
@click.option(
    "--data", metavar="DIR|scenes", help="Images for the parity gate, at least 16. [default: kept with the checkpoint]"
)
@click.option("--model", "spec", metavar="SPEC", help="Where the classifier is now, if it has moved.")
@click.option("--weights", metavar="FILE", help="Where its weights are now, if they have moved.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is there.")
def export(
    checkpoint: Path,
    out: Path,
    any_size: bool,
    data: str | None,
    spec: str | None,
    weights: str | None,
    overwrite: bool,
) -> None:
    """Compile classifier, explainer and preprocessing into one verified ONNX graph.

    The bundle is written only if the graph explains what PyTorch explains, image by image.

    \b
    Example:
      saccade export --checkpoint runs/ltx --out bundle
    """
    from ..errors import require

    for package in ("torch", "onnx", "onnxscript", "safetensors"):
        require(package, extra="train", purpose="exporting")
    from rich.console import Console

    from ..export.write_bundle import export_ltx
    from ..methods.ltx.checkpoint import load_checkpoint, load_samples, read_record
    from .data import sample_images
    from .options import resolve_model

    console = Console(stderr=True)
    with console.status("loading the checkpoint") as status:
        record = read_record(checkpoint)
        images = None if data else load_samples(checkpoint)
        if images is None:
            images = sample_images(data or record.data, record.image_spec)
        explainer, record = load_checkpoint(checkpoint, spec=resolve_model(spec) if spec else None, weights=weights)
        bundle = export_ltx(
            explainer, record, images, out, any_size=any_size, overwrite=overwrite, on_stage=status.update
        )
    _print(bundle.manifest.parity, out, sum(entry.bytes for entry in bundle.manifest.files.values()))


def _print(report: ParityReport, out: Path, size: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"Parity with PyTorch on {report.images} images, batches {', '.join(map(str, report.batches))}",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for heading in ("worst image", "measured", "bar"):
        table.add_column(heading)
    table.add_row("mask, max |Δ|", f"{report.mask_max_abs:.1e}", f"≤ {report.mask_bar:.0e}")
    table.add_row("probabilities, max |Δ|", f"{report.probabilities_max_abs:.1e}", f"≤ {report.probabilities_bar:.0e}")
    table.add_row("mask, cosine", f"{report.mask_cosine:.7f}", "")
    table.add_row("mask, rank correlation", f"{report.mask_spearman:.7f}", "")
    table.add_row("mask, top 10 % overlap", f"{report.mask_top10_iou:.5f}", "")
    table.add_row("batch against single", f"{report.batch_max_abs:.1e}", "≤ 1e-05")
    table.add_row("change from image to image", f"{report.input_dependence:.3f}", "≥ 0.01")
    console = Console()
    console.print(table)
    console.print(f"Bundle in [bold]{out}[/bold], {size / 1e6:.1f} MB. Next:", highlight=False)
    console.print(f"  saccade explain photo.jpg --bundle {out}", highlight=False, soft_wrap=True)
