"""Does an explainer for any class point at the class that it is asked about?

    python benchmarks/any_class.py --checkpoints runs/a [--count 500]

Scenes with two digits of different classes; one pass of the exported graph answers for both. The peak of each mask is
on the right digit if it lies in that digit's box; beside it Grad-CAM of the same classifier, in one graph too. Writes
benchmarks/results/any_class.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from saccade.accel.engine import Engine
from saccade.accel.engines import open_engine
from saccade.accel.machine import machine
from saccade.cli.data import sample_images
from saccade.errors import ModelError
from saccade.evaluate.scenes import SceneBatch, SceneConfig, SceneSource
from saccade.evaluate.weights_folder import WEIGHTS
from saccade.export.write_bundle import export_gradient, export_trained
from saccade.methods.checkpoint import load_checkpoint, read_record
from saccade.methods.explainee import load_explainee
from saccade.methods.gradient.config import GradientConfig

RESULTS = Path(__file__).parent / "results" / "any_class.json"
FIRST, BATCH = 20_000, 20


def peaks(engine: Engine, scenes: SceneBatch) -> NDArray[np.bool_]:
    """Whether the peak of each class's mask lies in that class's own digit, (N, 2)."""
    hits = []
    for start in range(0, len(scenes.images), BATCH):
        part = slice(start, start + BATCH)
        asked = np.stack([scenes.labels[part], scenes.seconds[part]], 1)
        masks = engine.run(scenes.images[part], asked).mask
        for index, pair in enumerate(masks, start):
            for mask, digit in zip(pair, (scenes.evidence[index], scenes.context[index]), strict=True):
                y, x = np.unravel_index(int(mask.argmax()), mask.shape)
                rows, columns = np.flatnonzero(digit.any(1)), np.flatnonzero(digit.any(0))
                hits.append(rows[0] <= y <= rows[-1] and columns[0] <= x <= columns[-1])
    return np.array(hits).reshape(-1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", nargs="*", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--first", type=int, default=FIRST)
    parser.add_argument("--dry", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    folders = arguments.checkpoints or [
        path.parent
        for path in sorted(WEIGHTS.glob("*/checkpoint.json"))
        if read_record(path.parent).method == "ltx" and read_record(path.parent).config.class_conditional
    ]
    source = SceneSource("test", SceneConfig(variant="pair"))
    scenes = source.batch(range(arguments.first, arguments.first + arguments.count))
    table = Table("explainee", "explainer", "right digit", "both classes seen", "of", box=None)
    rows: list[dict[str, Any]] = []
    for folder in folders:
        explainer, record = load_checkpoint(folder)
        samples = sample_images(record.data, record.image_spec)
        with tempfile.TemporaryDirectory() as temporary:
            engines = {"LTX": open_engine(export_trained(explainer, record, samples, Path(temporary) / "ltx"))}
            try:
                explainee, config = load_explainee(record.explainee), GradientConfig(method="gradcam")
                bundle = export_gradient(explainee, config, samples, Path(temporary) / "gradcam")
                engines["Grad-CAM"] = open_engine(bundle)
            except ModelError as error:
                Console(stderr=True).print(f"no Grad-CAM: {error}")
            for name, engine in engines.items():
                best = np.concatenate(
                    [
                        np.argsort(-engine.probabilities(scenes.images[start : start + BATCH]), 1)[:, :2]
                        for start in range(0, len(scenes.images), BATCH)
                    ]
                )
                truth = np.sort(np.stack([scenes.labels, scenes.seconds], 1), 1)
                seen = (np.sort(best, 1) == truth).all(1)
                hits = peaks(engine, scenes)
                row = {
                    "explainee": record.explainee,
                    "machine": machine(),
                    "explainer": name,
                    "images": len(hits),
                    "right digit": float(hits.mean()),
                    "images of which the classifier ranks both classes first": int(seen.sum()),
                    "right digit, of these": float(hits[seen].mean()),
                }
                rows.append(row)
                table.add_row(
                    record.explainee.rpartition(":")[2],
                    name,
                    f"{hits.mean():.1%}",
                    f"{hits[seen].mean():.1%}",
                    f"{seen.sum()} of {len(seen)}",
                )
    Console().print(table)
    if not arguments.dry:
        measured = {(row["explainee"], row["explainer"]) for row in rows}
        before = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
        rows += [row for row in before if (row["explainee"], row["explainer"]) not in measured]
        RESULTS.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
