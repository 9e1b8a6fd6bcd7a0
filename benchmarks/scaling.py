"""How cost grows with batch, steps, resolution, areas, classes and images beside theory; the capacity model.

    python benchmarks/scaling.py --write                          all, docs/capacity.md and its picture; six minutes
    python benchmarks/scaling.py --panels areas classes --dry
    python benchmarks/scaling.py --panels --write                 measures nothing: the page, of what is stored
    python benchmarks/scaling.py --capacity --images 1e9 --cores 64      from what is stored: nothing is measured

ResNet-50, a ViT-B/16 cut down to two blocks (resolution alone; all blocks cost the same) and the scenes ResNet, whose
weights are random but for the last; ONNX Runtime. Points of a panel are measured in turn, each next to a plain forward
of one image. Points go into benchmarks/results/scaling.json as they come; those that are not measured stay.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import batch as batch_job
import numpy as np
import torch
from capacity import as_constants, fitted, need_of, need_table, short
from interleaved import Row, interleave, settled_mib, summary
from rich.console import Console
from scaling_plot import PANELS, draw_scaling
from ungated import write_ungated
from zoo import build, photographs

from saccade.accel.batch.explainer import BatchConfig, BatchExplainer
from saccade.accel.bundle import Bundle
from saccade.accel.engines import open_engine
from saccade.accel.image import load_image, resize_image
from saccade.accel.machine import core_count, machine
from saccade.accel.memory import peak_mib
from saccade.accel.onnx_engine import OnnxEngine
from saccade.accel.pipeline import PipelineConfig
from saccade.contracts import MaskQuery, Uint8
from saccade.evaluate.weights_folder import WEIGHTS
from saccade.export.write_bundle import export_trained
from saccade.methods.checkpoint import CheckpointRecord, load_checkpoint
from saccade.methods.explainee import Explainee
from saccade.methods.gradient.config import GradientConfig
from saccade.methods.gradient.explainer import GradientExplainer
from saccade.methods.inr.amortized_config import AmortizedConfig
from saccade.methods.ltx.config import LTXConfig
from saccade.methods.trained import method_of
from saccade.methods.training.config import TrainingConfig

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "scaling.json"
PAGE = ROOT / "docs" / "capacity.md"
PICTURE = ROOT / "docs" / "images" / "scaling.png"
BEGIN, END = "<!-- scaling.py writes from here -->", "<!-- to here -->"
CNN, VIT = "ResNet-50", "ViT-B/16 (timm)"
BATCHES = (1, 2, 4, 8, 16, 32)
STEPS = (4, 8, 16, 32)
SIDES = (96, 160, 224, 320, 448)
AREAS = (1, 4, 16, 64)
RENDERED = (224, 448)  # pixels a side of masks of given areas
CLASSES = (1, 2, 4, 8, 16, 32)
IMAGES = (100, 400, 1600)
PIXELS = 400  # longest side of the photographs of a job
JOB = 96  # images of ResNet-50's job


Point = tuple[str, float, Callable[[], object], Callable[[], object]]
"""Series, x, what is measured, and the plain forward of one image next to it."""


class Bench:
    """What all panels need: settings, where graphs lie while they are measured, and the file for points."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, console: Console) -> None:
        self.seconds, self.rounds, self.threads = arguments.seconds, arguments.rounds, arguments.threads
        self.folder, self.console = folder, console
        self.path, self.dry = arguments.out, arguments.dry
        self.stored: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def keep(self, name: str, found: Any) -> None:
        """Put a panel's points, or the constants, in the place of older ones."""
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        about = {"machine": machine(), "threads": self.threads, "date": today}
        self.stored[name] = {"found": found, **about}
        if not self.dry:
            self.path.write_text(json.dumps(self.stored, indent=1, ensure_ascii=False) + "\n")

    def engine(self, bundle: Bundle) -> OnnxEngine:
        """ONNX Runtime with these threads."""
        return OnnxEngine(bundle, threads=self.threads)

    def trained(self, explainee: Explainee, config: TrainingConfig, name: str) -> OnnxEngine:
        """An engine of an untrained explainer."""
        torch.manual_seed(0)
        explainer = method_of(config).build(explainee, config)
        record = CheckpointRecord.of(explainer, config, "photographs", 0)
        return self.engine(write_ungated(explainer, self.folder / name, record))

    def measure(
        self, panel: str, points: Sequence[tuple[str, float, Callable[[], object], Callable[[], object]]]
    ) -> None:
        """Measure a panel's points and keep them as they come."""
        rows = [Row(f"{series} {x}", series, _once(call), plain) for series, x, call, plain in points]
        for row in rows:  # the first calls open what is opened lazily
            row.call()
            if row.plain is not None:
                row.plain()

        def keep(done: int) -> None:
            found = summary(rows)
            self.keep(
                panel,
                [
                    {
                        "series": series,
                        "x": x,
                        **{
                            key: found[row.name][key]
                            for key in ("seconds", "forwards", "forwards_low", "forwards_high", "measured")
                        },
                    }
                    for row, (series, x, _, _) in zip(rows, points, strict=True)
                    if row.name in found
                ],
            )

        interleave(rows, self.seconds, self.rounds, keep)
        self.console.print(f"{panel}: {len(rows[0].rounds)} rounds", markup=False)


def _once(call: Callable[[], object]) -> Callable[[], float]:
    def run() -> float:
        call()
        return 1.0

    return run


def _some(images: Uint8, count: int) -> Uint8:
    return np.ascontiguousarray(images[np.arange(count) % len(images)])


def of_batch(bench: Bench) -> None:
    """Images of a call."""
    explainee = build(CNN)
    images = photographs(explainee.image_spec)
    engine = bench.trained(explainee, LTXConfig(), "batch")
    points = []
    for count in BATCHES:
        some = _some(images, count)
        points.append((CNN, count, lambda some=some: engine.run(some), lambda: engine.probabilities(images[:1])))
    bench.measure("batch", points)  # type: ignore[arg-type]


def of_steps(bench: Bench) -> None:
    """Points of integrated gradients."""
    explainee = build(CNN)
    image = photographs(explainee.image_spec)[:1]
    points = []
    alone = bench.trained(explainee, LTXConfig(), "alone")
    for steps in STEPS:
        config = GradientConfig(method="ig", steps=steps, rule="gauss")
        explainer = GradientExplainer(explainee, config).eval()
        engine = bench.engine(write_ungated(explainer, bench.folder / f"ig-{steps}"))
        points.append(
            (
                CNN,
                len(explainer.rule),
                lambda engine=engine: engine.run(image),
                lambda: alone.probabilities(image),
            )
        )
    bench.measure("steps", points)  # type: ignore[arg-type]


def of_resolution(bench: Bench) -> None:
    """Pixels a side of the image; a plain forward is one at 224 pixels."""
    points = []
    for name, depth in ((CNN, 0), (VIT, 2)):
        engines = {}
        for side in SIDES:
            explainee = build(name, side, depth=depth)
            image = photographs(explainee.image_spec)[:1]
            engines[side] = (bench.trained(explainee, LTXConfig(), f"{depth}-{side}"), image)
        middle, usual = engines[224]
        title = name if not depth else f"{name.partition(' ')[0]}, {depth} blocks"
        for side, (engine, image) in engines.items():
            points.append(
                (
                    title,
                    side,
                    lambda engine=engine, image=image: engine.run(image),
                    lambda middle=middle, usual=usual: middle.probabilities(usual),
                )
            )
    bench.measure("resolution", points)  # type: ignore[arg-type]


def of_areas(bench: Bench) -> None:
    """Masks of one image, each of an area of its own."""
    explainee = build(CNN)
    image = photographs(explainee.image_spec)[:1]
    engine = bench.trained(explainee, AmortizedConfig(), "areas")
    points = []
    for side in RENDERED:
        for count in AREAS:
            query = MaskQuery(areas=tuple(np.linspace(0.02, 0.5, count).tolist()), size=(side, side))
            points.append(
                (
                    f"{side} px",
                    count,
                    lambda query=query: engine.run(image, None, query),
                    lambda: engine.probabilities(image),
                )
            )
    bench.measure("areas", points)  # type: ignore[arg-type]


def of_classes(bench: Bench) -> None:
    """Classes that one image is explained for."""
    explainee = build(CNN)
    image = photographs(explainee.image_spec)[:1]
    engine = bench.trained(explainee, LTXConfig(class_conditional=True), "classes")
    points = []
    for count in CLASSES:
        target = np.arange(count, dtype=np.int64)[None] if count > 1 else np.zeros(1, dtype=np.int64)
        points.append(
            (CNN, count, lambda target=target: engine.run(image, target), lambda: engine.probabilities(image))
        )
    bench.measure("classes", points)  # type: ignore[arg-type]


def of_images(bench: Bench) -> None:
    """Images of a job: `saccade batch` from JPEGs of 96 pixels to Parquet files."""
    explainer, record = load_checkpoint(WEIGHTS / "scenes_resnet_ltx_shared")
    images = np.random.default_rng(0).integers(0, 256, (16, *record.image_spec.size, 3), dtype=np.uint8)
    bundle = export_trained(explainer, record, images, bench.folder / "images")
    engine = open_engine(bundle, threads=bench.threads)
    explaining = BatchExplainer(bundle, BatchConfig(pipeline=PipelineConfig(batch_size=8)), threads=bench.threads)
    points = []
    for count in IMAGES:
        photos = batch_job.write_photographs(bench.folder / f"photographs-{count}", count, 96)

        def job(photos: Path = photos) -> None:
            with tempfile.TemporaryDirectory() as out:
                batch_job.whole(explaining, photos, Path(out) / "out")

        points.append(("scenes ResNet", count, job, lambda: engine.probabilities(_some(images, 8))))
    bench.measure("images", points)  # type: ignore[arg-type]


def of_capacity(bench: Bench) -> None:
    """The constants: ResNet-50 with LTX on its trunk, from JPEGs of 400 pixels."""
    explainee = build(CNN)
    engine = bench.trained(explainee, LTXConfig(), "capacity")
    images = photographs(explainee.image_spec)
    memory = _memory(engine.bundle, images, bench.threads)
    base, each, worst = fitted(list(memory), list(memory.values()))
    config = BatchConfig(pipeline=PipelineConfig(batch_size=8))
    photos = batch_job.write_photographs(bench.folder / "job", JOB, PIXELS)
    decoded = np.stack([resize_image(load_image(path), explainee.image_spec) for path in sorted(photos.iterdir())])
    engine = open_engine(engine.bundle, threads=bench.threads, check=False)
    explainer = BatchExplainer(engine.bundle, config, threads=bench.threads, check=False)
    for warmed in (engine, explainer.engine):
        batch_job.bare(warmed, decoded[:16], 8)
    bare, full, beside, written = [], [], [], 0.0
    for number in range(bench.rounds or 3):
        bare.append(batch_job.bare(engine, decoded, 8))
        start = time.process_time()
        batch_job.bare(explainer.engine, decoded, 8)  # side by side, as the job runs it
        cpu_bare = time.process_time() - start
        out, start = bench.folder / f"out-{number}", time.process_time()
        full.append(batch_job.whole(explainer, photos, out))
        beside.append((time.process_time() - start - cpu_bare) / JOB * 1e3)
        written = sum(path.stat().st_size for path in out.glob("*.parquet")) / JOB
    single = OnnxEngine(engine.bundle, threads=1)
    batch_job.bare(single, decoded[:16], 8)
    alone = [batch_job.bare(single, decoded[:32], 8) / 32 for _ in range(3)]
    bench.keep(
        "capacity",
        {
            "model": f"{CNN}, LTX on its trunk, 224 px, batch 8",
            "images_per_second": JOB / float(np.median(full)),
            "cores": bench.threads,
            "of_bare": float(np.median(np.asarray(bare) / np.asarray(full))),
            "beside_ms": max(0.1, float(np.median(beside))),
            "memory_mib": base,
            "memory_per_image_mib": each,
            "memory_fit_error": worst,
            "memory_measured": {str(count): value for count, value in memory.items()},
            "read_bytes": sum(path.stat().st_size for path in photos.iterdir()) / JOB,
            "written_bytes": written,
            "bare_images_per_second": JOB / float(np.median(bare)),
            "one_thread_images_per_second": 1 / float(np.median(alone)),
        },
    )


def _memory(bundle: Bundle, images: Uint8, threads: int) -> dict[int, float]:
    """MiB that an engine takes at most beyond what there was before it, by batch size; a new engine for each."""
    found = {}
    for count in BATCHES:
        before = settled_mib()
        engine = OnnxEngine(bundle, threads=threads)
        for _ in range(2):
            engine.run(_some(images, count))
        peak = peak_mib()
        if before is not None and peak is not None:
            found[count] = peak - before
        del engine
    return found


MEASURED: dict[str, Callable[[Bench], None]] = {
    "batch": of_batch,
    "steps": of_steps,
    "resolution": of_resolution,
    "areas": of_areas,
    "classes": of_classes,
    "images": of_images,
    "capacity": of_capacity,
}


def page(stored: dict[str, Any]) -> str:
    """What docs/capacity.md says between its markers."""
    text = ["![Six panels: measured points beside the slopes of theory](images/scaling.png)"]
    lines = ["| panel | theory | measured |", "|---|---|---|"]
    for name, panel in PANELS.items():
        if name in stored:
            lines.append(f"| {panel.title} | {panel.theory} | {panel.said(stored[name]['found'])} |")
    text.append("\n".join(lines))
    if "capacity" in stored:
        found, about = stored["capacity"]["found"], stored["capacity"]
        constants = as_constants(found)
        text += [
            f"{constants.model}; {about['machine']['processor']}, {about['threads']} threads, {about['date']}, "
            f"ONNX Runtime {about['machine']['onnxruntime']}:",
            "\n".join(
                [
                    "| constant | |",
                    "|---|---:|",
                    f"| images a second and core, whole job | {constants.rate:.2f} |",
                    f"| of the bare engine's rate | {constants.of_bare:.2f} |",
                    f"| bare engine of one thread, images a second | {found['one_thread_images_per_second']:.2f} |",
                    f"| CPU beside the engine, ms an image | {constants.beside_ms:.1f} |",
                    f"| memory of the engine | {constants.memory_mib:.0f} MiB + {constants.memory_per_image_mib:.1f} "
                    f"MiB an image (largest error of the fit {found['memory_fit_error']:.0%}) |",
                    f"| bytes read and written, an image | {short(constants.read_bytes)}, "
                    f"{short(constants.written_bytes)} |",
                ]
            ),
            need_table([need_of(constants, 1e6, 2), need_of(constants, 1e8, 64), need_of(constants, 1e9, 64)]),
        ]
    return "\n\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--panels", nargs="*", choices=list(MEASURED), default=list(MEASURED))
    parser.add_argument("--seconds", type=float, default=15, help="of rounds, for each panel")
    parser.add_argument("--rounds", type=int, help="so many, however long they take")
    parser.add_argument("--threads", type=int, default=core_count())
    parser.add_argument("--capacity", action="store_true", help="what --images take on --cores; measures nothing")
    parser.add_argument("--images", type=float, default=1e9)
    parser.add_argument("--cores", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8, help="of the memory that --capacity tells")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--dry", action="store_true", help="write no results")
    parser.add_argument("--write", action="store_true", help="docs/capacity.md and its picture, of all that is stored")
    arguments = parser.parse_args()
    if arguments.capacity:
        if not arguments.out.exists() or "capacity" not in (stored := json.loads(arguments.out.read_text())):
            parser.error(f"'{arguments.out}' has no constants yet; measure them with --panels capacity")
        if arguments.images < 1 or arguments.cores < 1 or arguments.batch_size < 1:
            parser.error("--images, --cores and --batch-size are at least 1")
        constants = as_constants(stored["capacity"]["found"])
        Console().print(f"{constants.model}\n\n{need_table([need_of(constants, arguments.images, arguments.cores)])}")
        memory, size = constants.memory(arguments.batch_size), arguments.batch_size
        Console().print(f"\nEach engine takes about {memory:.0f} MiB with {size} images at once, by one thread.")
        return
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments, Path(folder), Console(stderr=True))
        for name in arguments.panels:
            bench.console.print(f"measuring {name}", markup=False)
            MEASURED[name](bench)
    if arguments.write:
        before, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{page(bench.stored)}\n\n{END}{rest.split(END)[1]}")
        PICTURE.write_bytes(draw_scaling(bench.stored))
    Console().print(page(bench.stored), markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
