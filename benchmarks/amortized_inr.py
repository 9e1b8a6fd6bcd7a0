"""How good is the network that emits masks as functions? On held-out planted scenes, against each image's own network.

    python benchmarks/amortized_inr.py                                  the committed networks, about an hour
    python benchmarks/amortized_inr.py --checkpoints runs/inr --own 16 --dry

Pointing on 500 scenes (the peak of the mean over the areas lies in the digit's box); areas, nesting, grey pixels and
resolution; insertion − deletion of the same map beside those of a random mask and of coordinate networks optimised for
each of `--own` scenes, and the time of both: ONNX Runtime for the network, PyTorch for the optimisation, which needs
gradients. Writes benchmarks/results/amortized_inr.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from saccade.accel.engine import Engine
from saccade.accel.engines import open_engine
from saccade.accel.machine import machine
from saccade.cli.data import sample_images
from saccade.contracts import Floats, MaskQuery, Uint8
from saccade.evaluate.metrics import Sample, estimate, make_metrics, measure
from saccade.evaluate.scenes import SceneBatch, SceneConfig, SceneSource
from saccade.evaluate.weights_folder import WEIGHTS
from saccade.export.write_bundle import export_trained
from saccade.methods.checkpoint import load_checkpoint, read_record
from saccade.methods.fold import fast_for_input_gradients
from saccade.methods.inr.config import INRConfig
from saccade.methods.inr.fit import fit_masks

RESULTS = Path(__file__).parent / "results" / "amortized_inr.json"
FIRST, BATCH = 20_000, 16
AREAS = (0.02, 0.035, 0.05, 0.08, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
SHOWN = (0.05, 0.1, 0.2, 0.3)
METRIC = "insertion-deletion"


def masks_of(engine: Engine, images: Uint8, query: MaskQuery) -> Floats:
    parts = [engine.run(images[at : at + BATCH], None, query).mask for at in range(0, len(images), BATCH)]
    return np.concatenate(parts)


def pooled(masks: Floats, times: int) -> Floats:
    count, number, height, width = masks.shape
    small: Floats = masks.reshape(count, number, height // times, times, width // times, times).mean((3, 5))
    return small


def pointing(masks: Floats, scenes: SceneBatch) -> float:
    """Share of the images whose peak lies in the digit's box."""
    hits = 0
    for mask, (left, top, right, bottom) in zip(masks, scenes.boxes, strict=True):
        y, x = np.unravel_index(int(mask.argmax()), mask.shape)
        hits += bool(left <= x < right and top <= y < bottom)
    return hits / len(masks)


def shapes(engine: Engine, images: Uint8) -> dict[str, Any]:
    """What the masks are like as functions."""
    height, width = engine.bundle.manifest.mask_size
    plain = masks_of(engine, images, MaskQuery(areas=AREAS))
    error = np.abs(plain.mean((2, 3)) - AREAS)
    result: dict[str, Any] = {
        "areas": AREAS,
        "area error, by area": error.mean(0).tolist(),
        "area error, mean": float(error.mean()),
        "area error above one half, mean": float(np.abs((plain > 0.5).mean((2, 3)) - AREAS).mean()),
        "not nested, share of pixels": float((plain[:, :-1] > plain[:, 1:] + 0.01).mean()),
        "grey, share of pixels": float(((plain > 0.1) & (plain < 0.9)).mean()),
        "grey, share of pixels, by area": ((plain > 0.1) & (plain < 0.9)).mean((0, 2, 3)).tolist(),
    }
    for times in (2, 4):
        fine = pooled(masks_of(engine, images, MaskQuery(areas=AREAS, size=(times * height, times * width))), times)
        result[f"rendered {times} times finer, max |Δ|"] = float(np.abs(fine - plain).max())
    return result


def faithfulness(engine: Engine, images: Uint8, maps: Floats, targets: Any) -> float:
    samples = [Sample(image, one, int(label)) for image, one, label in zip(images, maps, targets, strict=True)]
    metrics = make_metrics([METRIC])
    return float(estimate(metrics[0], measure(metrics, samples, engine.probabilities)[METRIC]).value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", nargs="*", type=Path)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--own", type=int, default=64, help="scenes that get a network of their own")
    parser.add_argument("--first", type=int, default=FIRST)
    parser.add_argument("--dry", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    known = sorted(path.parent for path in WEIGHTS.glob("*/checkpoint.json"))
    folders = arguments.checkpoints or [folder for folder in known if read_record(folder).method == "inr"]
    scenes = SceneSource("test", SceneConfig()).batch(range(arguments.first, arguments.first + arguments.count))
    table = Table("", box=None)
    rows = []
    for folder in folders:
        explainer, record = load_checkpoint(folder)
        explainee = fast_for_input_gradients(explainer.explainee)
        with tempfile.TemporaryDirectory() as temporary:
            samples = sample_images(record.data, record.image_spec)
            engine = open_engine(export_trained(explainer, record, samples, Path(temporary) / "bundle"))
            maps = masks_of(engine, scenes.images, MaskQuery(areas=AREAS)).mean(1)
            row: dict[str, Any] = {
                "checkpoint": folder.name,
                "scenes": len(scenes.images),
                "pointing": pointing(maps, scenes),
                **shapes(engine, scenes.images[:100]),
            }
            few = scenes.images[: arguments.own]
            targets = engine.probabilities(few).argmax(1)
            began = time.perf_counter()
            rounds = 5
            for _ in range(rounds):
                masks_of(engine, few, MaskQuery(areas=SHOWN))
            row["seconds per image"] = (time.perf_counter() - began) / rounds / len(few)
            began = time.perf_counter()
            own = []
            for at in range(0, len(few), BATCH):
                pixels = torch.from_numpy(few[at : at + BATCH]).permute(0, 3, 1, 2).float() / 255
                config = INRConfig(areas=SHOWN, baselines=(record.config.baseline,))
                fitted = fit_masks(explainee, pixels, config)
                own.append(fitted.render(*explainee.image_spec.size, torch.tensor(AREAS)).mean(1).numpy())
            row["its own network, seconds per image"] = (time.perf_counter() - began) / len(few)
            row["times faster"] = row["its own network, seconds per image"] / row["seconds per image"]
            noise = np.random.default_rng(0).random((len(few), *maps.shape[1:]), dtype=np.float32)
            values = {
                "random": faithfulness(engine, few, noise, targets),
                "its own network": faithfulness(engine, few, np.concatenate(own), targets),
                "amortized": faithfulness(engine, few, maps[: len(few)], targets),
            }
            row[METRIC] = values
            row["share of the gain"] = (values["amortized"] - values["random"]) / (
                values["its own network"] - values["random"]
            )
            row["compared on"] = len(few)
        rows.append(row)
        table.add_column(folder.name, justify="right")
    for name in rows[0]:
        table.add_row(name, *(_short(row[name]) for row in rows))
    Console(width=160).print(table)
    if not arguments.dry:
        RESULTS.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {number:.4f}" for name, number in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(f"{number:.3f}" for number in value)
    return f"{value:.5g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
