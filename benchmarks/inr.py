"""Masks optimised for each image: coordinate networks beside extremal perturbations, on planted scenes.

    python benchmarks/inr.py --processes 2     200 scenes of both models; an hour and a half for the ResNet alone
    python benchmarks/inr.py --count 16 --models resnet --dry

Areas, nesting, grey pixels and resolution of the masks; insertion − deletion of the sum of a method's masks, and how
much of each mask lies on the digit; forwards and seconds; 16 images together against one by one. Writes
benchmarks/results/inr.json, and every scene's numbers to inr_scenes.json as they come: a run that was stopped goes on
from there, and what is there already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from saccade.accel.machine import machine
from saccade.contracts import Uint8
from saccade.evaluate.metrics import Sample, difference, estimate, make_metrics, measure
from saccade.evaluate.scenes import SceneBatch, SceneSource
from saccade.methods.explainee import Explainee, load_explainee
from saccade.methods.fold import fast_for_input_gradients
from saccade.methods.inr.config import INRConfig
from saccade.methods.inr.extremal import ExtremalConfig, extremal_masks
from saccade.methods.inr.fit import fit_masks

RESULTS = Path(__file__).parent / "results" / "inr.json"
SCENES = RESULTS.with_name("inr_scenes.json")
FIRST, BATCH = 20_000, 16
AREAS = (0.05, 0.1, 0.2, 0.3)
OTHER_AREAS = (0.02, 0.035, 0.15, 0.4, 0.5)  # never optimised for
METRICS = ("insertion-deletion", "insertion", "deletion")


def to_pixels(images: Uint8) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


@cache
def explainee_of(model: str) -> Explainee:
    return fast_for_input_gradients(load_explainee(f"python:saccade.evaluate.scenes_models:{model}"))


def find_masks(model: str, config: INRConfig | ExtremalConfig, indices: Sequence[int]) -> list[dict[str, Any]]:
    """What is measured of each scene's masks; see `row_of`."""
    explainee, scenes = explainee_of(model), SceneSource("test").batch(indices)
    pixels = to_pixels(scenes.images)
    began = time.perf_counter()
    if isinstance(config, INRConfig):
        fitted = fit_masks(explainee, pixels, config)
        masks, forwards = fitted.render(*explainee.image_spec.size), fitted.forwards.tolist()
    else:
        masks = extremal_masks(explainee, pixels, config)
        forwards = [config.steps * len(config.areas) + 1] * len(pixels)
    return rows_of(explainee, scenes, masks, forwards, (time.perf_counter() - began) / len(pixels))


def rows_of(
    explainee: Explainee, scenes: SceneBatch, masks: Tensor, forwards: Sequence[int], seconds: float
) -> list[dict[str, Any]]:
    """Of each scene: insertion − deletion of the sum of its masks, how much of each lies on the digit, the mean error
    of their areas, forwards and seconds.
    """
    faithful, inside = quality(explainee, scenes, masks)[METRICS[0]], precision(masks, scenes)
    areas = (masks.mean((2, 3)) - torch.tensor(AREAS)).abs().mean(1)
    return [
        {
            METRICS[0]: np.asarray(faithful[place], dtype=np.float64).round(6).tolist(),
            "on the digit": inside[place].tolist(),
            "area error": float(areas[place]),
            "forwards": int(forwards[place]),
            "seconds": seconds,
        }
        for place in range(len(masks))
    ]


def in_batches(
    model: str, config: INRConfig | ExtremalConfig, indices: range, processes: int, known: dict[str, Any]
) -> list[dict[str, Any]]:
    """The rows of all scenes: those that are known of an earlier run with these settings, and the others found."""
    rows = known.setdefault(f"{model} {config!r}", {})
    missing = [index for index in indices if str(index) not in rows]
    batches = [missing[at : at + BATCH] for at in range(0, len(missing), BATCH)]
    with ProcessPoolExecutor(
        processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(max(1, torch.get_num_threads() // processes),),
    ) as pool:
        waiting = {pool.submit(find_masks, model, config, batch): batch for batch in batches}
        title = f"{model}, {type(config).__name__.removesuffix('Config')}"
        for one in track(as_completed(waiting), title, len(waiting), console=Console(stderr=True)):
            rows |= dict(zip(map(str, waiting[one]), one.result(), strict=True))
            SCENES.write_text(json.dumps(known, sort_keys=True) + "\n")  # a run that is stopped goes on from here
    return [rows[str(index)] for index in indices]


def precision(masks: Tensor, scenes: SceneBatch) -> np.ndarray[Any, Any]:
    """How many of a mask's brightest pixels lie on the digit, as many as its area asks for, (N, A)."""
    found = np.empty(masks.shape[:2])
    for place, area in enumerate(AREAS):
        flat = masks[:, place].flatten(1)
        brightest = flat.argsort(dim=1, descending=True, stable=True)[:, : round(area * flat.shape[1])]
        on = torch.from_numpy(scenes.evidence).flatten(1).float().gather(1, brightest)
        found[:, place] = on.mean(1).numpy()
    return found


def quality(explainee: Explainee, scenes: SceneBatch, masks: Tensor) -> dict[str, Any]:
    def predict(images: Uint8) -> np.ndarray[Any, Any]:
        with torch.inference_mode():
            return np.asarray(explainee.model(explainee.normalise(to_pixels(images))).softmax(1).numpy())

    target = predict(scenes.images).argmax(1)
    summed = masks.mean(1).numpy()
    samples = [Sample(i, m, int(t)) for i, m, t in zip(scenes.images, summed, target, strict=True)]
    return measure(make_metrics(METRICS), samples, predict)


def shape_of(scenes: SceneBatch, explainee: Explainee, config: INRConfig) -> dict[str, float]:
    """What the masks are like as functions."""
    fitted = fit_masks(explainee, to_pixels(scenes.images), config)
    height, width = explainee.image_spec.size
    asked = torch.tensor(sorted({*AREAS, *OTHER_AREAS}))
    masks = fitted.render(height, width, asked)
    finer = {
        times: F.avg_pool2d(fitted.render(times * height, times * width, asked).flatten(0, 1)[:, None], times)
        for times in (2, 4)
    }
    return {
        "area error, mean": float((masks.mean((2, 3)) - asked).abs().mean()),
        "area error above one half, mean": float(((masks > 0.5).float().mean((2, 3)) - asked).abs().mean()),
        "not nested, share of pixels": float((masks[:, :-1] > masks[:, 1:] + 0.01).float().mean()),
        "grey, share of pixels": float(((masks > 0.1) & (masks < 0.9)).float().mean()),
        **{
            f"rendered {times} times finer, max |Δ|": float((one.reshape(masks.shape) - masks).abs().max())
            for times, one in finer.items()
        },
    }


def together(scenes: SceneBatch, explainee: Explainee, config: INRConfig) -> dict[str, float]:
    """16 images at once against one by one, and against every mask by itself."""
    pixels = to_pixels(scenes.images)
    began = time.perf_counter()
    batch = fit_masks(explainee, pixels, config)
    at_once = (time.perf_counter() - began) / BATCH
    alone, worst = [], 0.0
    for index in range(0, BATCH, 4):
        began = time.perf_counter()
        one = fit_masks(explainee, pixels[index : index + 1], config)
        alone.append(time.perf_counter() - began)
        size = explainee.image_spec.size
        worst = max(worst, float((one.render(*size)[0] - batch.render(*size)[index]).abs().max()))
    began = time.perf_counter()
    for area in config.areas:
        fit_masks(explainee, pixels[:1], replace(config, areas=(area,)))
    single = time.perf_counter() - began
    return {
        "seconds per image, 16 together": at_once,
        "seconds per image, alone": float(np.median(alone)),
        "seconds per image, every mask alone": single,
        "times faster together than every mask alone": single / at_once,
        "times faster together": float(np.median(alone)) / at_once,
        "together against alone, max |Δ|": worst,
    }


def compared(
    model: str, indices: range, configs: dict[str, INRConfig | ExtremalConfig], table: Table, processes: int
) -> dict[str, Any]:
    """Coordinate networks beside extremal perturbations on all scenes, a row in the table for each."""
    known = json.loads(SCENES.read_text()) if SCENES.exists() else {}
    metric = make_metrics(METRICS)[0]
    about: dict[str, Any] = {}
    faithful = []
    for name, config in configs.items():
        rows = in_batches(model, config, indices, processes, known)
        column = {key: np.array([row[key] for row in rows]) for key in rows[0]}
        faithful.append(column[METRICS[0]])
        value = estimate(metric, faithful[-1])
        about[name] = {
            "insertion-deletion": value.value,
            "interval": [value.low, value.high],
            "on the digit, by area": column["on the digit"].mean(0).tolist(),
            "area error, mean": float(column["area error"].mean()),
            "forwards": float(column["forwards"].mean()),
            "seconds per image": float(column["seconds"].mean()),
        }
        numbers = (f"{about[name]['forwards']:.0f}", f"{about[name]['seconds per image']:.2f}")
        inside = " ".join(f"{one:.3f}" for one in about[name]["on the digit, by area"])
        table.add_row(model, name, f"{value.value:.4f}", inside, *numbers)
    change = difference(metric, *faithful)
    return {"scenes": len(indices), **about, "difference": [change.value, change.low, change.high]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["resnet", "vit"])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--extremal-steps", type=int, default=800)
    parser.add_argument("--baseline", default="blur")
    parser.add_argument("--processes", type=int, default=1, help="side by side, for the comparison's masks")
    parser.add_argument("--only", choices=("quality", "time"), help="quality may be measured beside other work")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    indices = range(FIRST, FIRST + arguments.count)
    table = Table("model", "method", "insertion − deletion", "on the digit, by area", "forwards", "s", box=None)
    results = []
    for model in arguments.models:
        config = INRConfig(areas=AREAS, steps=arguments.steps, baselines=(arguments.baseline,))
        extremal = ExtremalConfig(areas=AREAS, steps=arguments.extremal_steps, baseline=arguments.baseline)
        row: dict[str, Any] = {"model": model}
        if arguments.only != "time":
            both: dict[str, INRConfig | ExtremalConfig] = {
                "coordinate network": config,
                "extremal perturbations": extremal,
            }
            row |= compared(model, indices, both, table, arguments.processes)
            row["masks"] = shape_of(SceneSource("test").batch(indices[:BATCH]), explainee_of(model), config)
        if arguments.only != "quality":
            row["together"] = together(SceneSource("test").batch(indices[:BATCH]), explainee_of(model), config)
        results.append(row)
        Console(stderr=True).print(row, markup=False)
    Console(width=140).print(table)
    if not arguments.dry:
        stored = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
        known = {row["model"]: row for row in stored}
        for row in results:
            known[row["model"]] = known.get(row["model"], {}) | row | {"machine": machine()}
        RESULTS.write_text(json.dumps({"rows": list(known.values())}, indent=1) + "\n")


if __name__ == "__main__":
    main()
