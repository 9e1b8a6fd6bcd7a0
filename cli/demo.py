"""``saccade demo``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from ..accel.results import ImageExplanation
    from ..contracts import Uint8
    from .demo_page import Method

__all__ = ["demo"]

FORMS = {"shared": "shared trunk", "own": "own backbone"}
SCENES = 16
PHOTOGRAPHS = ("sklearn:china.jpg", "matplotlib:grace_hopper.jpg", "skimage:retina.jpg", "skimage:rocket.jpg")


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("build/demo"),
    show_default=True,
    metavar="DIR",
    help="Folder of the page and the bundles.",
)
def demo(out: Path) -> None:
    """Export, verify and explain with the trained models that come with Saccade, and make a page of it.

    Takes a ResNet that reads digits on photographs and its two LTX explainers, compiles each into one ONNX graph,
    proves the graphs, explains held-out scenes whose evidence is known and some plain photographs, and writes one
    HTML file.

    \b
    Example:
      saccade demo
    """
    from ..errors import require

    for package in ("torch", "onnx", "onnxscript", "safetensors", "sklearn", "skimage", "matplotlib"):
        require(package, extra="train,scenes", purpose="the demo")
    from rich.console import Console

    from ..errors import OutputError
    from .demo_page import write_page

    console = Console(stderr=True)
    began = time.perf_counter()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write into '{out}': {error.strerror or error}; choose another folder with --out"
        ) from None
    with console.status("loading") as status:
        methods = [_prepare(form, title, out, status.update, console) for form, title in FORMS.items()]
        status.update("writing the page")
        page = write_page(out / "index.html", methods, *_truth(), seconds=time.perf_counter() - began)
    console.print(f"[bold]{page}[/bold] shows what was explained; open it in a browser.", highlight=False)
    console.print(f"{time.perf_counter() - began:.0f} s in all. Next:", highlight=False)
    click.echo(f"  saccade explain YOUR_PHOTO.jpg --bundle {methods[0].bundle}")


def _prepare(form: str, title: str, out: Path, status: Callable[[str], None], console: Console) -> Method:
    """Export one explainer, verify it, explain everything, measure its cost."""
    from ..accel.bench import bench_engine
    from ..accel.engine import open_engine
    from ..accel.pipeline import explain_images
    from ..accel.results import ImageExplanation
    from ..accel.verify import verify_engine
    from ..errors import ParityError
    from ..evaluate.scene_material import load_photograph
    from ..evaluate.weights_folder import WEIGHTS
    from ..export.write_bundle import export_ltx
    from ..methods.ltx.checkpoint import load_checkpoint
    from .data import sample_images
    from .demo_page import Method

    bundle = out / "bundles" / f"scenes-resnet-ltx-{form}"
    explainer, record = load_checkpoint(WEIGHTS / f"scenes_resnet_ltx_{form}")
    images = sample_images(record.data, record.image_spec)
    made = export_ltx(
        explainer, record, images, bundle, overwrite=True, on_stage=lambda stage: status(f"{title}: {stage}")
    )
    status(f"{title}: verifying")
    engine = open_engine(made, check=False)
    checks = verify_engine(engine)
    if failed := [check.name for check in checks if not check.passed]:
        raise ParityError(f"the bundle '{bundle}' does not pass: {', '.join(failed)}")
    status(f"{title}: explaining")
    sources = [*_scene_images(), *(load_photograph(name) for name in PHOTOGRAPHS)]
    results: list[ImageExplanation] = [r for r in explain_images(engine, sources) if isinstance(r, ImageExplanation)]
    status(f"{title}: measuring the cost")
    rows = bench_engine(engine, (1, 8), seconds=1.5)
    console.print(
        f"{title}: parity {made.manifest.parity.mask_max_abs:.0e}, {len(checks)} checks pass, "
        f"{' and '.join(f'{row.forwards:.2f}' for row in rows)} forwards at batch 1 and 8, bundle in {bundle}",
        highlight=False,
        soft_wrap=True,
    )
    return Method(title, bundle, made.manifest, results, rows)


def _scene_images() -> list[Uint8]:
    from ..evaluate.scenes import SceneSource

    return list(SceneSource("test").batch(range(SCENES)).images)


def _truth() -> tuple[list[object], list[str]]:
    """The scenes, and what the photographs are called."""
    from ..evaluate.scenes import SceneSource

    return [SceneSource("test").scene(index) for index in range(SCENES)], [
        name.partition(":")[2] for name in PHOTOGRAPHS
    ]
