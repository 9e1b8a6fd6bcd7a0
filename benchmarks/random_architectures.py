"""Parity on architectures that nobody chose: random networks, a random method each, exported and held against PyTorch.

    python benchmarks/random_architectures.py --count 100          about 7 minutes on two cores
    python benchmarks/random_architectures.py --first 41 --count 1 the one with seed 41 again

Masks and probabilities of ONNX Runtime, for images that the export never saw, in batches of 1 and 5, against PyTorch
in float64; they may be as far from it as 1e-4 and 1e-5, or four times as far as PyTorch in float32 is. A network may be
refused: with a reason that is its own, such as a mask that does not depend on the image. Anything else is a failure,
and makes the exit code 1. Writes benchmarks/results/random_architectures.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from random_models import random_explainee
from random_weights import randomise
from torch import Tensor

from saccade.accel.compare import cosine, max_abs
from saccade.accel.engines import open_engine
from saccade.accel.machine import machine
from saccade.contracts import Explanation, Uint8
from saccade.errors import ModelError, ParityError
from saccade.export.graph import ExplainerGraph
from saccade.export.write_bundle import export_gradient, export_trained
from saccade.methods.checkpoint import CheckpointRecord
from saccade.methods.explainee import Explainee
from saccade.methods.gradient.config import GradientConfig
from saccade.methods.gradient.explainer import GradientExplainer
from saccade.methods.inr.amortized import AmortizedExplainer, build_amortized
from saccade.methods.inr.amortized_config import AmortizedConfig
from saccade.methods.ltx.config import LTXConfig
from saccade.methods.ltx.model import build_ltx
from saccade.methods.training.explainer import TrainedExplainer

RESULTS = Path(__file__).parent / "results" / "random_architectures.json"
METHODS = ("gradcam", "layercam", "dix1", "dix2", "iia2", "ig", "ltx", "ltx any class", "ltx own", "inr")
METHODS_OF_ATTENTION = (
    "gradcam",
    "layercam",
    "rollout",
    "class-rollout",
    "gradient-rollout",
    "dix1",
    "dix2",
    "iia2",
    "ig",
    "ltx",
    "ltx any class",
    "inr",
)
MASK, PROBABILITY, OWN = 1e-4, 1e-5, 4
ITS_OWN = ("hardly depends", "are no class token", "has no feature maps", "no feature maps")
"""Words of refusals that a random network may deserve."""


@dataclass(frozen=True)
class Row:
    """One network and method.

    Attributes:
        seed: makes it again.
        model: what kind it is.
        method: of explaining.
        verdict: ``"equal"``, ``"refused"`` or ``"failed"``.
        why: in words, where it is not equal.
        mask: of ONNX Runtime, largest difference from float64.
        own_mask: of PyTorch in float32, the same.
        probability: of ONNX Runtime.
        own_probability: of PyTorch in float32.
        mask_cosine: of ONNX Runtime's masks with those in float64, the worst image.
    """

    seed: int
    model: str
    method: str
    verdict: str
    why: str = ""
    mask: float = 0.0
    own_mask: float = 0.0
    probability: float = 0.0
    own_probability: float = 0.0
    mask_cosine: float = 1.0


class ExactGraph(ExplainerGraph):
    """The same from pixels on, in float64."""

    def _normalised(self, image: Tensor) -> Tensor:
        return self.explainer.explainee.normalise((image.double() / 255).permute(0, 3, 1, 2))

    def _function(self, images: Tensor, target: Tensor, *query: Tensor) -> tuple[Tensor, ...]:
        assert isinstance(self.explainer, AmortizedExplainer)
        height, width = self.explainer.explainee.image_spec.size
        rows, columns = ((torch.arange(count, dtype=images.dtype) * 2 + 1) / count - 1 for count in (height, width))
        return super()._function(images, target, self.explainer.areas.double(), rows, columns)


def pictures(count: int, size: tuple[int, int], seed: int) -> Uint8:
    """Dark, bright and grainy clouds."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (count, 3, 4, 5)))
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic").permute(0, 2, 3, 1).numpy()
    grain = rng.uniform(-60, 60, (count, *size, 3))
    strength = rng.uniform(0.2, 1.0, (count, 1, 1, 1))
    return np.clip((smooth + grain) * strength, 0, 255).astype(np.uint8)


def trained(explainee: Explainee, method: str, seed: int) -> tuple[TrainedExplainer, CheckpointRecord]:
    """An explainer with random weights in place of trained ones."""
    torch.manual_seed(seed)
    if method == "inr":
        functions = AmortizedConfig(grid=8, gain=1.0, areas=(0.1, 0.3), parts=1 + seed % 2)
        field = build_amortized(explainee, functions)
        frequencies = field.network.frequencies.clone()
        randomise(field.network, seed=seed)
        field.network.frequencies.copy_(frequencies)
        with torch.no_grad():
            field.network.last.weight.mul_(5)  # so that pixels differ
        return field, CheckpointRecord.of(field, functions, "noise", 0)
    config = LTXConfig(form="own" if method == "ltx own" else "shared", class_conditional=method == "ltx any class")
    explainer = build_ltx(explainee, config)
    randomise(explainer.network, seed=seed)
    return explainer, CheckpointRecord.of(explainer, config, "noise", 0)


def explained(graph: ExplainerGraph, images: Uint8, target: np.ndarray) -> Explanation:
    """PyTorch's answers, image by image."""
    found = []
    for image, label in zip(images, target, strict=True):
        asked = torch.tensor([[label]] if graph.several_targets else [label])
        with torch.no_grad():
            found.append(graph(torch.from_numpy(image[None]), asked))
    probabilities, chosen, masks = (np.concatenate([one[place].numpy() for one in found]) for place in range(3))
    return Explanation(probabilities, chosen.reshape(-1), masks)


def check(seed: int, folder: Path) -> Row:
    """Make one, export it, and compare."""
    draw = random.Random(~seed)
    explainee, attention = random_explainee(seed)
    method = draw.choice(METHODS_OF_ATTENTION if attention else METHODS)
    row = Row(seed=seed, model="transformer" if attention else "cnn", method=method, verdict="equal")
    size = explainee.image_spec.size
    rule = draw.choice(("midpoint", "gauss"))
    try:
        if method.startswith(("ltx", "inr")):
            explainer, record = trained(explainee, method, seed)
            export_trained(explainer, record, pictures(16, size, seed), folder / "bundle")
            plain, exact = ExplainerGraph(explainer).eval(), ExactGraph(copy.deepcopy(explainer).double()).eval()
        else:
            config = GradientConfig(method=method, steps=draw.choice((2, 3)) if method[:2] in ("di", "ii", "ig") else 0)
            config = replace(config, rule=rule)
            gradients = GradientExplainer(explainee, config).eval()
            export_gradient(explainee, config, pictures(16, size, seed), folder / "bundle")
            double = replace(explainee, model=copy.deepcopy(explainee.model).double())
            precise = GradientExplainer(double, replace(config, layers=gradients.layers)).double().eval()
            plain, exact = ExplainerGraph(gradients).eval(), ExactGraph(precise).eval()
    except (ModelError, ParityError) as error:
        own = any(words in str(error) for words in ITS_OWN) and "differ" not in str(error)
        return replace(row, verdict="refused" if own else "failed", why=str(error))
    return compare(row, plain, exact, folder / "bundle", pictures(5, size, seed + 1_000_000))


def compare(row: Row, plain: ExplainerGraph, exact: ExplainerGraph, bundle: Path, images: Uint8) -> Row:
    """ONNX Runtime against float64, beside PyTorch in float32."""
    engine = open_engine(bundle)
    target = np.full(len(images), -1, dtype=np.int64)
    if engine.bundle.manifest.class_specific:
        target[1::2] = np.arange(1, len(images), 2) % len(engine.bundle.manifest.class_names)
    truth, own = explained(exact, images, target), explained(plain, images, target)
    together = engine.run(images, target)
    alone = [engine.run(images[index : index + 1], target[index : index + 1]) for index in range(len(images))]
    singles = Explanation(*(np.concatenate([getattr(one, name) for one in alone]) for name in _COMPARED))
    masks = [one.mask for one in (together, singles)]
    row = replace(
        row,
        mask=float(max(max_abs(mask, truth.mask).max() for mask in masks)),
        own_mask=float(max_abs(own.mask, truth.mask).max()),
        probability=float(max_abs(together.probabilities, truth.probabilities).max()),
        own_probability=float(max_abs(own.probabilities, truth.probabilities).max()),
        mask_cosine=float(min(cosine(mask, truth.mask).min() for mask in masks)),
    )
    found = []
    if not row.probability <= max(PROBABILITY, OWN * row.own_probability):
        found.append("probabilities differ")
    if not row.mask <= max(MASK, OWN * row.own_mask):
        found.append("masks differ")
    if not np.array_equal(together.target, truth.target):
        found.append("another class is explained")
    return replace(row, verdict="failed", why=", ".join(found)) if found else row


_COMPARED = ("probabilities", "target", "mask")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    parser.add_argument("--dry", action="store_true", help="print the rows, write nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began, rows = time.perf_counter(), list[Row]()
    for seed in range(arguments.first, arguments.first + arguments.count):
        with tempfile.TemporaryDirectory() as folder:
            try:
                row = check(seed, Path(folder))
            except Exception as error:  # whatever it is, the others go on
                row = Row(seed, "?", "?", "failed", f"{type(error).__name__}: {error}")
        rows.append(row)
        print(row, flush=True)
    seconds = time.perf_counter() - began
    tally = Counter(row.verdict for row in rows)
    print(f"{dict(tally)} in {seconds:.0f} s")
    if not arguments.dry:
        kinds = Counter(f"{row.model}, {row.method}: {row.verdict}" for row in rows)
        about = {"first": arguments.first, "verdicts": tally, "kinds": dict(sorted(kinds.items()))}
        about |= {"seconds": round(seconds, 1), "machine": machine(), "rows": [asdict(row) for row in rows]}
        RESULTS.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return 1 if tally["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
