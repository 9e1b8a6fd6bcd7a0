"""``saccade demo``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from ..accel.bundle import Bundle
    from ..accel.results import ImageExplanation
    from ..contracts import MaskQuery, Uint8
    from .demo_page import Method

    Export = Callable[[Path, Callable[[str], None]], Bundle]

__all__ = ["demo"]

LTX = {"shared": "LTX, shared trunk", "own": "LTX, own backbone"}
GRADIENTS = {
    "scenes:resnet": {"gradcam": "Grad-CAM", "dix2": "DIX, two layers", "iia2": "IIA, two integrals"},
    "scenes:vit": {"class-rollout": "class rollout", "dix2": "DIX, two blocks", "iia2": "IIA, two integrals"},
}
FUNCTIONS: dict[str, tuple[tuple[float, ...], int]] = {"INR, four areas": ((), 0), "INR, two masks": ((0.04,), 2)}
"""Areas, and masks without a common pixel."""
SCENES = 12
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

    Takes a ResNet and a vision transformer that read digits on photographs, compiles each with several methods into one
    ONNX graph per method, proves the graphs, explains held-out scenes whose evidence is known and some plain
    photographs, and writes one HTML file.

    \b
    Example:
      saccade demo
    """
    from ..errors import require

    for package in ("torch", "onnx", "onnxscript", "safetensors", "sklearn", "skimage", "matplotlib"):
        require(package, extra="train,scenes", purpose="the demo")
    from rich.console import Console

    from ..errors import OutputError
    from .demo_page import Model, write_page

    console = Console(stderr=True)
    began = time.perf_counter()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write into '{out}': {error.strerror or error}; choose another folder with --out"
        ) from None
    with console.status("loading") as status:
        resnet, vit = (_methods(model, out, status.update, console) for model in GRADIENTS)
        status.update("writing the page")
        models = [
            Model(
                "ResNet",
                "680,000 parameters, 96×96 pixels. LTX and masks of areas were trained, the others need no training.",
                resnet,
            ),
            Model(
                "Vision transformer",
                "940,000 parameters, 12×12 patches. LTX reads its tokens, the others its attention.",
                vit,
            ),
        ]
        page = write_page(out / "index.html", models, *_truth(), seconds=time.perf_counter() - began)
    console.print(f"[bold]{page}[/bold] shows what was explained; open it in a browser.", highlight=False)
    console.print(f"{time.perf_counter() - began:.0f} s in all. Next:", highlight=False)
    click.echo(f"  saccade explain YOUR_PHOTO.jpg --bundle {resnet[0].bundle}")


def _trained(model: str, kind: str) -> Export:
    """Exports one of the trained explainers that come with Saccade."""
    from ..evaluate.weights_folder import WEIGHTS
    from ..export.write_bundle import export_trained
    from ..methods.checkpoint import load_checkpoint
    from .data import sample_images

    def export(folder: Path, on_stage: Callable[[str], None]) -> Bundle:
        explainer, record = load_checkpoint(WEIGHTS / f"{model.replace(':', '_')}_{kind}")
        images = sample_images(record.data, record.image_spec)
        out = folder / f"{model.replace(':', '-')}-{kind.replace('_', '-')}"
        return export_trained(explainer, record, images, out, overwrite=True, on_stage=on_stage)

    return export


def _methods(model: str, out: Path, status: Callable[[str], None], console: Console) -> list[Method]:
    from ..contracts import MaskQuery

    exports = {title: _trained(model, f"ltx_{form}") for form, title in LTX.items()}
    exports |= {title: _gradient(model, method) for method, title in GRADIENTS[model].items()}
    methods = [_prepare(title, out, export, status, console) for title, export in exports.items()]
    if model == "scenes:resnet":
        functions = _once(_trained(model, "inr"))
        for title, (areas, parts) in FUNCTIONS.items():
            query = MaskQuery(areas=areas, parts=parts)
            methods.append(_prepare(title, out, functions, status, console, query))
    return methods


def _once(export: Export) -> Export:
    """An export whose bundle is made by the first call and kept."""
    made: list[Bundle] = []

    def kept(folder: Path, on_stage: Callable[[str], None]) -> Bundle:
        if not made:
            made.append(export(folder, on_stage))
        return made[0]

    return kept


def _gradient(model: str, method: str) -> Export:
    """Exports a method of a classifier that comes with Saccade."""
    from ..export.write_bundle import export_gradient
    from ..methods.explainee import load_explainee
    from ..methods.gradient.config import GradientConfig
    from .data import SCENES as OWN
    from .data import sample_images
    from .options import SHORT_SPECS

    def export(folder: Path, on_stage: Callable[[str], None]) -> Bundle:
        explainee = load_explainee(SHORT_SPECS[model])
        images = sample_images(OWN, explainee.image_spec)
        out = folder / f"{model.replace(':', '-')}-{method}"
        config = GradientConfig(method=method, preset="fast")
        return export_gradient(explainee, config, images, out, overwrite=True, on_stage=on_stage)

    return export


def _prepare(
    title: str,
    out: Path,
    export: Export,
    status: Callable[[str], None],
    console: Console,
    query: MaskQuery | None = None,
) -> Method:
    """Export one explainer, verify it, explain everything, measure its cost.

    Of an explainer whose masks are functions, the masks that are asked for are shown in one picture.
    """
    from ..accel.bench import bench_engine
    from ..accel.engines import open_engine
    from ..accel.pipeline import PipelineConfig, explain_images
    from ..accel.results import ImageExplanation, together
    from ..accel.verify import verify_engine
    from ..errors import ParityError
    from ..evaluate.scene_material import load_photograph
    from .demo_page import Method

    made = export(out / "bundles", lambda stage: status(f"{title}: {stage}"))
    bundle = made.path
    status(f"{title}: verifying")
    engine = open_engine(made, check=False)
    checks = verify_engine(engine)
    if failed := [check.name for check in checks if not check.passed]:
        raise ParityError(f"the bundle '{bundle}' does not pass: {', '.join(failed)}")
    status(f"{title}: explaining")
    sources = [*_scene_images(), *(load_photograph(name) for name in PHOTOGRAPHS)]
    found = explain_images(engine, sources, PipelineConfig(query=query))
    results: list[ImageExplanation] = [result for result in found if isinstance(result, ImageExplanation)]
    if query is not None and query.parts:
        results = [result for result in results if result.parts]
    elif query is not None:  # the largest first, so that the smaller ones lie on it
        each = len(made.manifest.areas)
        results = [together(results[at : at + each][::-1]) for at in range(0, len(results), each)]
    status(f"{title}: measuring the cost")
    rows = bench_engine(engine, (1, 8), seconds=1.5, min_runs=5)
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
