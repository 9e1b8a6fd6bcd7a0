"""What per-image fine-tuning costs and gains: batched, beside a faithful one-image loop of the published procedure.

    python benchmarks/finetune.py                  scenes (quality and time), ViT-B/16 (time): about 40 minutes
    python benchmarks/finetune.py --only time --models resnet

Time: seconds per image of 25 steps, batch 16, against the published loop (every weight of the own backbone is trained,
one image at a time, 10 scoring forwards a step), in the same run. Equality: a batch against its images alone. Quality:
insertion − deletion on held-out scenes, tuned less pretrained, paired. Writes benchmarks/results/finetune.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from zoo import build, photographs

from saccade.accel.machine import machine
from saccade.contracts import Uint8
from saccade.evaluate.metrics import Sample, difference, estimate, make_metrics, measure
from saccade.evaluate.scenes import SceneSource
from saccade.evaluate.weights_folder import WEIGHTS
from saccade.methods.checkpoint import load_checkpoint, read_record
from saccade.methods.explainee import guest
from saccade.methods.fold import fast_for_input_gradients
from saccade.methods.ltx.config import LTXConfig
from saccade.methods.ltx.finetune import FinetuneConfig, finetune
from saccade.methods.ltx.heads import MaskLogits, head_of
from saccade.methods.ltx.model import LTXExplainer, Predicted, build_ltx
from saccade.methods.train import to_float

RESULTS = Path(__file__).parent / "results" / "finetune.json"
STEPS, BATCH, FIRST = 25, 16, 20_000
METRICS = ("insertion-deletion", "insertion", "deletion")


def published(explainer: LTXExplainer, pixels: torch.Tensor, steps: int = STEPS) -> torch.Tensor:
    """The published procedure for one image (1, 3, H, W) in [0, 1]: all weights of a copy of the pretrained explainer
    network, AdamW, preservation and softplus area, the mask of every step scored by the positive perturbation curve.
    """
    explainee, model = explainer.explainee, explainer.classifier
    network = copy.deepcopy(explainer.network)
    optimizer = torch.optim.AdamW([value for value in network.parameters() if value.requires_grad], lr=5e-5)
    normalised = explainee.normalise(pixels)
    best, least = None, float("inf")
    for _ in range(steps):
        with torch.no_grad():
            target = model(normalised).argmax(1)
        mask = F.interpolate(network(normalised), size=pixels.shape[2:], mode="bilinear", align_corners=False)
        loss = F.cross_entropy(model(explainee.normalise(pixels * mask)), target) + 50 * F.softplus(mask).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model(normalised)
            order = mask.detach().flatten().argsort(descending=True)
            score = 0.0
            for tenth in range(1, 10):
                kept = torch.ones_like(order, dtype=pixels.dtype)
                kept[order[: len(order) * tenth // 10]] = 0
                removed = pixels * kept.reshape(mask.shape)
                score += float(model(explainee.normalise(removed)).argmax(1) == target)
        if score < least:
            best, least = mask.detach(), score
    assert best is not None, "there is at least one step"
    return best


def time_of(
    explainer: LTXExplainer,
    pixels: torch.Tensor,
    losses: LTXConfig,
    count: int,
    rounds: int,
    precision: str,
    compared: int,
) -> dict[str, Any]:
    """Seconds per image of both, in turn; and so many images of the batch against each alone."""
    ours, theirs = [], []
    config = FinetuneConfig(steps=STEPS, precision=precision)  # type: ignore[arg-type]
    fast = fast_for_input_gradients(explainer.explainee).model
    for index in range(rounds):
        start = time.perf_counter()
        found = finetune(explainer, pixels, losses, config, classifier=fast)
        ours.append((time.perf_counter() - start) / len(pixels))
        for place in range(count):
            start = time.perf_counter()
            with guest(explainer.classifier):
                published(explainer, pixels[(index * count + place) % len(pixels)][None])
            theirs.append(time.perf_counter() - start)
    alone = torch.cat(
        [finetune(explainer, one[None], losses, config, classifier=fast).mask for one in pixels[:compared]]
    )
    return {
        **where(),
        "precision": precision,
        "batch": len(pixels),
        "steps": STEPS,
        "seconds per image": float(np.median(ours)),
        "published loop, seconds per image": float(np.median(theirs)),
        "times faster": float(np.median(theirs) / np.median(ours)),
        "forwards": found.forwards,
        "backwards": found.backwards,
        "images compared with themselves alone": compared,
        "batch against alone, max |Δ|": float((alone - found.mask[:compared]).abs().max()),
    }


def first_look(explainer: LTXExplainer, pixels: torch.Tensor) -> tuple[Predicted, torch.Tensor]:
    with torch.no_grad():
        return explainer.predict(explainer.explainee.normalise(pixels)), pixels


def quality(folder: Path, indices: range, config: FinetuneConfig, console: Console) -> dict[str, Any]:
    """Insertion − deletion on held-out scenes before and after."""
    explainer, record = load_checkpoint(folder)
    scenes, count = SceneSource("test").batch(indices), len(indices)

    def predict(images: Uint8) -> np.ndarray[Any, Any]:
        with torch.inference_mode():
            logits = explainer.classifier(explainer.explainee.normalise(to_float(images, explainer)))
            return logits.softmax(1).numpy()

    fast = fast_for_input_gradients(explainer.explainee).model
    starts, masks, targets = [], [], []
    began = time.perf_counter()
    for start in range(0, count, BATCH):
        pixels = to_float(scenes.images[start : start + BATCH], explainer)
        found = finetune(explainer, pixels, record.config, config, classifier=fast)
        starts.append(found.start[:, 0].numpy())
        masks.append(found.mask[:, 0].numpy())
        targets.append(found.target.numpy())
        if start % (8 * BATCH) == 0:
            console.print(f"{folder.name}: {start} of {count}", highlight=False)
    seconds = (time.perf_counter() - began) / count
    head = MaskLogits() if config.tune == "mask" else head_of(explainer, *first_look(explainer, pixels), 0)[0]
    rate = config.rate_of(head)

    def rows(parts: list[np.ndarray[Any, Any]]) -> dict[str, Any]:
        samples = [
            Sample(image, mask, int(label))
            for image, mask, label in zip(scenes.images, np.concatenate(parts), np.concatenate(targets), strict=True)
        ]
        return measure(make_metrics(METRICS), samples, predict)

    before, after = rows(starts), rows(masks)
    result: dict[str, Any] = {"checkpoint": folder.name, "explainee": record.explainee, "form": record.config.form}
    result |= {"scenes": count, **where()}
    result |= {
        "tune": config.tune,
        "select": config.select,
        "learning rate": rate,
        "seconds per image": seconds,
    }
    for metric in make_metrics(METRICS):
        change = difference(metric, after[metric.name], before[metric.name])
        result[metric.name] = {
            "pretrained": estimate(metric, before[metric.name]).value,
            "tuned": estimate(metric, after[metric.name]).value,
            "change": change.value,
            "low": change.low,
            "high": change.high,
        }
    return result


def kind(row: dict[str, Any]) -> tuple[str, ...]:
    """What a row is about: one that is measured again takes its place."""
    return tuple(row[name] for name in ("checkpoint", "tune", "select"))


def where() -> dict[str, Any]:
    """What every row carries: rows of one file may come from several runs."""
    return {"machine": machine(), "torch": torch.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["time", "quality"])
    parser.add_argument(
        "--models", nargs="*", choices=["resnet", "vit-b"], default=["resnet", "vit-b"], help="for time"
    )
    parser.add_argument("--checkpoints", nargs="*", type=Path)
    parser.add_argument("--count", type=int, default=500, help="held-out scenes for the quality")
    parser.add_argument("--first", type=int, default=FIRST)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--tune", choices=["head", "mask"], default="head")
    parser.add_argument("--select", choices=["loss", "pos", "insertion-deletion"], default="loss")
    parser.add_argument("--precision", nargs="*", choices=["fp32", "bf16"], default=["fp32", "bf16"], help="for time")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    known = sorted(path.parent for path in WEIGHTS.glob("*/checkpoint.json"))
    folders = arguments.checkpoints or [folder for folder in known if read_record(folder).method == "ltx"]
    if arguments.only != "time":
        config = FinetuneConfig(
            steps=STEPS, tune=arguments.tune, select=arguments.select, learning_rate=arguments.learning_rate
        )
        indices = range(arguments.first, arguments.first + arguments.count)
        rows = [quality(folder, indices, config, console) for folder in folders]
        Console().print(rows)
        stored["quality"] = [old for old in stored.get("quality", ()) if kind(old) not in map(kind, rows)] + rows
    if arguments.only != "quality":
        times = stored.setdefault("time", {})
        if "resnet" in arguments.models:
            folder = next(path for path in folders if read_record(path).config.form == "own")
            explainer, record = load_checkpoint(folder)
            scenes = SceneSource("test").batch(range(FIRST, FIRST + BATCH))
            pixels = to_float(scenes.images, explainer)
            for precision in arguments.precision:
                row = time_of(explainer, pixels, record.config, 2, 5, precision, BATCH)
                times[f"scenes ResNet, {precision}"] = row
                Console().print(row)
        if "vit-b" in arguments.models:
            explainee = build("ViT-B/16 (timm)")
            losses = LTXConfig(form="own")
            explainer = build_ltx(explainee, losses)
            pixels = to_float(photographs(explainee.image_spec)[:BATCH], explainer)
            for precision in arguments.precision:
                times[f"ViT-B/16, {precision}"] = row = time_of(explainer, pixels, losses, 1, 2, precision, 2)
                Console().print(row)
    if not arguments.dry:
        RESULTS.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
