"""What do the metrics cost beyond the forwards that they need? And what does Quantus' pixel flipping cost?

    python benchmarks/metrics_speed.py

Insertion, deletion, positive and negative perturbation of 1,000 scenes through ONNX Runtime, in turn with as many bare
forwards of the same batch size. Then deletion alone beside Quantus' PixelFlipping with the same steps and fill, on
fewer scenes, with the PyTorch classifier (as Quantus is used) and with our engine inside Quantus. Last the peak memory
of 10,000 scenes with the default budget. Writes benchmarks/results/metrics_speed.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from saccade.accel.engine import Engine
from saccade.accel.engines import open_engine
from saccade.accel.machine import machine
from saccade.accel.memory import largest_batch, peak_mib, reset_peak
from saccade.cli.data import sample_images
from saccade.contracts import Uint8
from saccade.evaluate.metrics import Sample, deletion, make_metrics, measure
from saccade.evaluate.scenes import SceneSource
from saccade.evaluate.weights_folder import WEIGHTS
from saccade.export.write_bundle import export_trained
from saccade.methods.checkpoint import load_checkpoint

RESULTS = Path(__file__).parent / "results"
FOUR = ("insertion", "deletion", "positive", "negative")
STEPS = 16
FORWARDS = 2 * (STEPS - 1) + 2  # of a scene: two curves' inner points, the image, the bare fill
QUANTUS_STEPS = 12  # its features per step must divide the number of pixels
BLACK = (0, 0, 0)
CONSOLE = Console(stderr=True)


def samples(engine: Engine, start: int, count: int) -> Iterator[Sample]:
    """Scenes with their masks, sixteen at a time."""
    source = SceneSource("test")
    for first in range(start, start + count, 16):
        images = source.batch(range(first, min(first + 16, start + count))).images
        answer = engine.run(images)
        for image, mask, target in zip(images, answer.mask[:, 0], answer.target, strict=True):
            yield Sample(image, mask, int(target))


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def bare(engine: Engine, images: Uint8, count: int) -> None:
    """So many predictions, in batches of the given images."""
    for start in range(0, count, len(images)):
        engine.probabilities(images[: min(len(images), count - start)])


def against_forwards(engine: Engine, scenes: int, batch: int) -> dict[str, float]:
    """The four curves and the bare forwards, fifty scenes at a time in turn."""
    metrics = make_metrics(FOUR, fill=BLACK, steps=STEPS)
    images = SceneSource("test").batch(range(batch)).images
    forwards = 0

    def predict(copies: Uint8) -> np.ndarray[Any, Any]:
        nonlocal forwards
        forwards += len(copies)
        return engine.probabilities(copies)

    ours, plain = [], []
    for index, start in enumerate(track(range(0, scenes, 50), "four curves", console=CONSOLE, transient=True)):
        some = list(samples(engine, start, 50))
        turns = [
            (lambda some=some: measure(metrics, some, predict, batch_size=batch), ours),
            (lambda: bare(engine, images, 50 * FORWARDS), plain),
        ]
        for work, times in turns if index % 2 else turns[::-1]:
            times.append(seconds(work))
    ratios = np.array(ours) / np.array(plain)
    return {
        "scenes": scenes,
        "forwards per scene": forwards / scenes,
        "seconds": sum(ours),
        "seconds of the bare forwards": sum(plain),
        "ratio": sum(ours) / sum(plain),
        "ratio, 25th percentile": float(np.percentile(ratios, 25)),
        "ratio, 75th percentile": float(np.percentile(ratios, 75)),
    }


class EngineModule(nn.Module):
    """An engine that Quantus takes for a PyTorch model: float images (N, 3, H, W) of 0 … 255 to probabilities."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, x: Tensor) -> Tensor:
        images = x.permute(0, 2, 3, 1).round().to(torch.uint8).numpy()
        return torch.from_numpy(self.engine.probabilities(np.ascontiguousarray(images)))


class TorchModule(nn.Module):
    """The classifier itself, of the same images."""

    def __init__(self, model: nn.Module, normalise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.normalise = model, normalise

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(self.normalise(x / 255))
        return logits.softmax(1)


def against_quantus(engine: Engine, model: nn.Module, scenes: int, batch: int) -> dict[str, Any]:
    """Deletion, and Quantus' pixel flipping with as many steps and the same fill; seconds per scene."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library's own imports
        from quantus import PixelFlipping
    some = list(samples(engine, 0, scenes))
    images = np.stack([sample.image for sample in some]).transpose(0, 3, 1, 2).astype(np.float32)
    masks = np.stack([sample.mask for sample in some])[:, None].astype(np.float32)
    target = np.array([sample.target for sample in some])
    metric = deletion(fill=BLACK, steps=QUANTUS_STEPS)
    result: dict[str, Any] = {"scenes": scenes, "steps": QUANTUS_STEPS}
    for name, module in (("PyTorch", model), ("ONNX Runtime", EngineModule(engine))):
        flipping = PixelFlipping(
            features_in_step=images[0].size // QUANTUS_STEPS,
            perturb_baseline=0.0,
            abs=False,
            normalise=False,
            disable_warnings=True,
            display_progressbar=False,
        )

        curves: dict[str, Any] = {}

        def theirs(curves: dict[str, Any] = curves, flipping: Any = flipping, module: nn.Module = module) -> None:
            with warnings.catch_warnings(), torch.inference_mode():
                warnings.simplefilter("ignore")
                curves["theirs"] = flipping(
                    model=module.eval(),
                    x_batch=images,
                    y_batch=target,
                    a_batch=masks,
                    device="cpu",
                    batch_size=batch,
                    softmax=False,  # these are probabilities already
                )

        def ours(curves: dict[str, Any] = curves) -> None:
            curves["ours"] = measure([metric], some, engine.probabilities, batch_size=batch)["deletion"][:, 1:]

        turns = [(seconds(ours), seconds(theirs)) for _ in range(3)]
        mine, other = (float(np.median(column)) for column in zip(*turns, strict=True))
        result[name] = {
            "ms per scene, Saccade": 1e3 * mine / scenes,
            "ms per scene, Quantus": 1e3 * other / scenes,
            "times slower": other / mine,
            "largest difference of a curve": float(np.abs(np.array(curves["theirs"]) - curves["ours"]).max()),
        }
    return result


def memory(engine: Engine, scenes: int, batch: int) -> dict[str, float | None]:
    """Peak memory of the whole process, with PyTorch loaded."""
    metrics = make_metrics((*FOUR, "adp", "pic", "add", "area", "smoothness"), steps=STEPS)
    reset_peak()
    stream = track(samples(engine, 0, scenes), "memory", total=scenes, console=CONSOLE, transient=True)
    measure(metrics, stream, engine.probabilities, batch_size=batch)
    return {"scenes": scenes, "batch": batch, "peak MiB": peak_mib()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--quantus-scenes", type=int, default=64)
    parser.add_argument("--memory-scenes", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=RESULTS / "metrics_speed.json")
    arguments = parser.parse_args()
    explainer, record = load_checkpoint(WEIGHTS / "scenes_resnet_ltx_shared")
    with tempfile.TemporaryDirectory() as folder:
        engine = open_engine(
            export_trained(explainer, record, sample_images(record.data, record.image_spec), Path(folder) / "bundle")
        )
        batch = largest_batch(engine, 2048)
        about: dict[str, Any] = {"machine": machine(), "batch": batch, "steps": STEPS}
        about["four curves"] = against_forwards(engine, arguments.scenes, batch)
        module = TorchModule(explainer.explainee.model, explainer.explainee.normalise)
        about["pixel flipping"] = against_quantus(engine, module, arguments.quantus_scenes, batch)
        Console().print_json(data=about)
        about["memory"] = memory(engine, arguments.memory_scenes, batch) if arguments.memory_scenes else None
    Console().print_json(data=about["memory"])
    arguments.out.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
