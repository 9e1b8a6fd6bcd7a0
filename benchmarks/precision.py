"""What bundles lose and gain in lower precision: fp16 and bf16, rounded as a GPU rounds, and int8, which is timed on
ONNX Runtime CPU in turn with single precision.

    python benchmarks/precision.py
    python benchmarks/precision.py --models ResNet-50 --precisions int8 --seconds 10

The scenes models with their trained explainers and with DIX, and ResNet-50 and ViT-B/16 with random weights of a
sensible scale and an LTX explainer of 60 steps. Prints a table and writes benchmarks/results/precision.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from brief_training import briefly_trained, bundle_of
from cost import RESULTS
from rich.console import Console
from rich.table import Table

from saccade.accel.bundle import Bundle
from saccade.accel.engines import open_engine
from saccade.accel.machine import machine
from saccade.accel.precision import BARS
from saccade.cli.data import sample_images
from saccade.errors import ParityError
from saccade.evaluate.weights_folder import WEIGHTS
from saccade.export.write_bundle import export_gradient, export_trained
from saccade.methods.checkpoint import load_checkpoint
from saccade.methods.explainee import load_explainee
from saccade.methods.gradient.config import GradientConfig

Export = Callable[[Path, tuple[str, ...]], Bundle]
BATCH = 8


def trained(name: str) -> Export:
    """A checkpoint that comes with Saccade."""

    def run(out: Path, precisions: tuple[str, ...]) -> Bundle:
        explainer, record = load_checkpoint(WEIGHTS / name)
        return export_trained(explainer, record, sample_images("scenes", record.image_spec), out, precisions=precisions)

    return run


def gradients(model: str, method: str) -> Export:
    """A gradient method on a scenes model, with few points."""

    def run(out: Path, precisions: tuple[str, ...]) -> Bundle:
        explainee = load_explainee(f"python:saccade.evaluate.scenes_models:{model}")
        images = sample_images("scenes", explainee.image_spec)
        return export_gradient(
            explainee, GradientConfig(method=method, preset="fast"), images, out, precisions=precisions
        )

    return run


def briefly(title: str) -> Export:
    """LTX on the trunk of a model of `benchmarks/cost.py`, with random weights and a training of a minute or three."""
    made = cache(lambda: briefly_trained(title))
    return lambda out, precisions: bundle_of(made(), out, precisions)


CASES: dict[str, dict[str, Export]] = {
    "scenes ResNet": {
        "LTX": trained("scenes_resnet_ltx_shared"),
        "INR": trained("scenes_resnet_inr"),
        "DIX2": gradients("resnet", "dix2"),
    },
    "scenes ViT": {"LTX": trained("scenes_vit_ltx_shared"), "DIX2": gradients("vit", "dix2")},
    "ResNet-50": {"LTX": briefly("ResNet-50, 224 px")},
    "ViT-B/16": {"LTX": briefly("ViT-B/16, 224 px")},
}


def speedup(bundle: Bundle, precision: str, seconds: float) -> float:
    """Images a second over those in single precision, batches of eight, in turn: the median of pairs."""
    engines = [open_engine(bundle, precision=kind) for kind in ("fp32", precision)]
    golden = engines[0].bundle.golden.images
    images = np.ascontiguousarray(golden[np.arange(BATCH) % len(golden)])
    for engine in engines * 2:
        engine.run(images)
    ratios: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(ratios) < 5:
        spent = []
        for engine in engines:
            start = time.perf_counter()
            engine.run(images)
            spent.append(time.perf_counter() - start)
        ratios.append(spent[0] / spent[1])
    return float(np.median(ratios))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--explainers", nargs="*", choices=sorted({name for case in CASES.values() for name in case}))
    parser.add_argument("--precisions", nargs="*", choices=BARS, default=list(BARS))
    parser.add_argument("--seconds", type=float, default=8, help="timed seconds of int8")
    parser.add_argument("--out", type=Path, default=RESULTS / "precision.json")
    arguments = parser.parse_args()
    table = Table("model", "explainer", "", "cosine", "top 10 %", "probabilities", "file", "speed", "kept", box=None)
    rows: list[dict[str, Any]] = []
    for model in arguments.models:
        for explainer, make in CASES[model].items():
            if arguments.explainers and explainer not in arguments.explainers:
                continue
            for precision in arguments.precisions:
                row: dict[str, Any] = {"model": model, "explainer": explainer, "precision": precision}
                with tempfile.TemporaryDirectory() as folder:
                    try:
                        bundle = make(Path(folder) / "bundle", (precision,))
                    except ParityError as error:
                        rows.append({**row, "refused": str(error)})
                        table.add_row(model, explainer, precision, "refused", str(error)[:60])
                        continue
                    files = bundle.manifest.files
                    report = bundle.manifest.precisions[precision]
                    row |= report.model_dump()
                    row["file"] = files[f"explainer.{precision}.onnx"].bytes / files["explainer.onnx"].bytes
                    row["speedup"] = speedup(bundle, precision, arguments.seconds) if precision == "int8" else None
                rows.append(row)
                table.add_row(
                    model,
                    explainer,
                    precision,
                    f"{report.mask_cosine:.5f}",
                    f"{report.mask_top10_iou:.3f}",
                    f"{report.probabilities_max_abs:.1e}",
                    f"{row['file']:.0%}",
                    f"{row['speedup']:.2f}" if row["speedup"] else "",
                    str(len(report.kept) or ""),
                )
                Console(stderr=True).print(row, markup=False)
    Console(width=140).print(table)
    measured = {(row["model"], row["explainer"], row["precision"]) for row in rows}
    stored = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    kept = [row for row in stored if (row["model"], row["explainer"], row["precision"]) not in measured]
    about = {"machine": machine()}
    arguments.out.write_text(json.dumps({"rows": kept + [{**row, **about} for row in rows]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
