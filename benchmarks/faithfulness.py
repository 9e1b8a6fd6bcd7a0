"""Are the explainers that come with Saccade faithful? Held-out planted scenes, beside Grad-CAM of the same classifier.

    python benchmarks/faithfulness.py                     the committed checkpoints, 500 scenes
    python benchmarks/faithfulness.py runs/shared runs/own  other checkpoints

Bundles are exported to a temporary folder; all numbers come from ONNX Runtime. Prints a table and writes
benchmarks/results/faithfulness.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from saccade.accel.bench import machine
from saccade.accel.engine import Engine, open_engine
from saccade.cli.data import sample_images
from saccade.evaluate.metrics import box_hits, insertion_deletion, inside_outside
from saccade.evaluate.scenes import SceneBatch, SceneSource
from saccade.evaluate.weights_folder import WEIGHTS
from saccade.export.write_bundle import export_ltx
from saccade.methods.explainee import Explainee
from saccade.methods.features import capture
from saccade.methods.ltx.checkpoint import load_checkpoint

RESULTS = Path(__file__).parent / "results"
FILL = (128, 128, 128)
FIRST = 20_000  # scenes of the test split that no setting was chosen on; 10,000 … 10,149 were used for that


def grad_cam(explainee: Explainee, images: np.ndarray, layer: str) -> np.ndarray:
    """Grad-CAM (Selvaraju et al. 2017) of the predicted class: ReLU of the maps weighted by their mean gradients; (N,
    H, W).
    """
    maps_all = []
    for start in range(0, len(images), 100):
        pixels = torch.from_numpy(images[start : start + 100]).permute(0, 3, 1, 2).float() / 255
        with capture(explainee.model, [layer]) as maps, torch.enable_grad():
            logits = explainee.model(explainee.normalise(pixels).requires_grad_(True))
            features = maps[layer]
            (gradient,) = torch.autograd.grad(logits.max(1).values.sum(), features)
        weights = gradient.mean((2, 3), keepdim=True)
        cam = F.relu((weights * features).sum(1, keepdim=True))
        cam = F.interpolate(cam, explainee.image_spec.size, mode="bilinear", align_corners=False)[:, 0].detach()
        maps_all.append((cam / cam.amax((1, 2), keepdim=True).clamp_min(1e-12)).numpy())
    return np.concatenate(maps_all)


def measure(engine: Engine, scenes: SceneBatch, masks: np.ndarray, target: np.ndarray) -> dict[str, Any]:
    """All metrics of one set of masks (N, H, W), and each image's insertion minus deletion."""
    curves = insertion_deletion(engine.probabilities, scenes.images, masks, target, fill=FILL)
    inside, outside = inside_outside(masks, scenes.evidence)
    gain = curves.insertion_auc - curves.deletion_auc
    return {
        "pointing": float(box_hits(masks, scenes.boxes).mean()),
        "inside": float(inside.mean()),
        "outside": float(outside.mean()),
        "ratio": float(inside.mean() / outside.mean()),
        "insertion": float(curves.insertion_auc.mean()),
        "deletion": float(curves.deletion_auc.mean()),
        "insertion - deletion": float(gain.mean()),
        "per image": gain,
    }


def rows(checkpoints: list[Path], count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and numbers, one explainer after the other; Grad-CAM last."""
    scenes = SceneSource("test").batch(range(FIRST, FIRST + count))
    with tempfile.TemporaryDirectory() as folder:
        for checkpoint in checkpoints:
            explainer, record = load_checkpoint(checkpoint)
            gate = sample_images(record.data, record.image_spec)
            bundle = export_ltx(explainer, record, gate, Path(folder) / checkpoint.name)
            engine = open_engine(bundle)
            answers = [engine.run(scenes.images[start : start + 50]) for start in range(0, count, 50)]
            masks = np.concatenate([answer.mask[:, 0] for answer in answers])
            target = np.concatenate([answer.target for answer in answers])
            numbers = measure(engine, scenes, masks, target)
            numbers["accuracy"] = float((target == scenes.labels).mean())
            yield f"LTX, {record.config.form}", numbers
        cam = grad_cam(explainer.explainee, scenes.images, "stage3")
        yield "Grad-CAM", measure(engine, scenes, cam, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoints",
        nargs="*",
        type=Path,
        default=[WEIGHTS / "scenes_resnet_ltx_shared", WEIGHTS / "scenes_resnet_ltx_own"],
    )
    parser.add_argument("--count", type=int, default=500, help="number of held-out scenes")
    parser.add_argument("--out", type=Path, default=RESULTS / "faithfulness.json")
    arguments = parser.parse_args()
    results = dict(rows(arguments.checkpoints, arguments.count))
    rival = results["Grad-CAM"]["per image"]
    table = Table(
        "explainer", "pointing", "inside/outside", "insertion", "deletion", "ins - del", "more than Grad-CAM", box=None
    )
    for name, numbers in results.items():
        more = numbers.pop("per image") - rival
        numbers["more than Grad-CAM"] = float(more.mean())
        numbers["its standard error"] = float(more.std() / len(more) ** 0.5)
        table.add_row(
            name,
            f"{numbers['pointing']:.1%}",
            f"{numbers['ratio']:.1f}",
            f"{numbers['insertion']:.4f}",
            f"{numbers['deletion']:.4f}",
            f"{numbers['insertion - deletion']:.4f}",
            f"{numbers['more than Grad-CAM']:+.4f} ± {numbers['its standard error']:.4f}",
        )
    Console(width=110).print(table)
    about = {
        "scenes": arguments.count,
        "first": FIRST,
        "split": "test",
        "fill": FILL,
        "machine": machine(),
        "results": results,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
