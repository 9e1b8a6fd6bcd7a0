"""How many points does an integral need? Every path method on the scenes models, error against number of points.

    python benchmarks/quadrature.py            about 15 minutes on two cores

The error is 1 − cosine of an image's mask with the mask of 128 Gauss points, the mean over held-out scenes. Writes
docs/quadrature.md, docs/images/quadrature.png and benchmarks/results/quadrature.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib import pyplot as plt
from rich.console import Console
from rich.progress import track
from zoo import tensors

from saccade.accel.compare import cosine
from saccade.cli.options import SHORT_SPECS
from saccade.evaluate.scenes import SceneSource
from saccade.methods.explainee import load_explainee
from saccade.methods.gradient.config import GradientConfig
from saccade.methods.gradient.explainer import GradientExplainer
from saccade.methods.quadrature import RULES

ROOT = Path(__file__).parents[1]
STORED = ROOT / "benchmarks" / "results" / "quadrature.json"
FIRST = 10_000  # scenes on which settings may be chosen
STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 50)
REFERENCE = 128
ENOUGH = 0.999
CASES = {
    ("scenes:resnet", "ig"): 8,
    ("scenes:resnet", "dix2"): 8,
    ("scenes:resnet", "dix3"): 8,
    ("scenes:resnet", "iia2"): 8,
    ("scenes:resnet", "iia3"): 4,
    ("scenes:vit", "ig"): 8,
    ("scenes:vit", "dix2"): 8,
    ("scenes:vit", "iia2"): 2,
}
"""With the number of scenes; iterated integrals of 128 points take 128² passes."""
FEWER = {("scenes:vit", "iia2"): 32}
"""Points of the reference where 128² passes of the whole model would take hours."""


@dataclass(frozen=True)
class Row:
    """One model, method, rule and number of steps: cosine with the reference and completeness gap, over scenes."""

    model: str
    method: str
    rule: str
    steps: int
    points: int
    cosine: float
    worst_cosine: float
    gap: float


def masks_and_gap(model: str, config: GradientConfig, images: torch.Tensor) -> tuple[np.ndarray, float, int]:
    explainer = GradientExplainer(load_explainee(SHORT_SPECS[model]), config).eval()
    masks, gaps = [], []
    for index in range(len(images)):
        _, _, mask, gap = explainer(images[index : index + 1], torch.tensor([-1]))
        masks.append(mask.detach().numpy())
        gaps.append(0.0 if gap is None else float(gap))
    return np.concatenate(masks), float(np.median(gaps)), len(explainer.rule)


def measure(model: str, method: str, scenes: int) -> list[Row]:
    spec = load_explainee(SHORT_SPECS[model]).image_spec
    images = tensors(SceneSource("test").batch(range(FIRST, FIRST + scenes)).images, spec)
    limits = {"memory_budget": 6.0, "batch": 1}
    reference = FEWER.get((model, method), REFERENCE)
    exact = masks_and_gap(model, GradientConfig(method=method, steps=reference, rule="gauss", **limits), images)[0]
    rows = []
    iterated = method.startswith("iia")
    for rule in RULES:
        for steps in STEPS:
            if iterated and method != "iia2" and steps > 16:
                continue
            if (model, method) == ("scenes:vit", "iia2") and steps > 16:
                continue
            masks, gap, points = masks_and_gap(
                model, GradientConfig(method=method, steps=steps, rule=rule, **limits), images
            )
            found = cosine(masks, exact)
            rows.append(Row(model, method, rule, steps, points, float(found.mean()), float(found.min()), gap))
    return rows


def fewest(rows: list[Row], rule: str) -> Row | None:
    """The fewest points from which on the mean cosine stays at 0.999."""
    ours = sorted((row for row in rows if row.rule == rule), key=lambda row: row.points)
    enough = None
    for row in reversed(ours):
        if row.cosine < ENOUGH:
            break
        enough = row
    return enough


def draw(cases: dict[tuple[str, str], list[Row]], path: Path) -> None:
    figure, axes = plt.subplots(2, 4, figsize=(14, 6.4), sharex=True, sharey=True, layout="constrained")
    colours = {"gauss": "#1b6ca8", "riemann": "#c0392b", "midpoint": "#7f8c8d"}
    for axis, ((model, method), rows) in zip(axes.flat, cases.items(), strict=False):
        for rule in RULES:
            ours = [row for row in rows if row.rule == rule]
            errors = [max(1 - row.cosine, 1e-7) for row in ours]
            axis.plot([row.points for row in ours], errors, marker="o", ms=3.5, color=colours[rule], label=rule)
        axis.axhline(1 - ENOUGH, color="black", lw=0.8, ls=":")
        axis.set(xscale="log", yscale="log", title=f"{method}, {model}")
        axis.title.set_size(10)
        axis.grid(alpha=0.25)
    for axis in axes.flat[len(cases) :]:
        axis.set_axis_off()
    axes.flat[0].legend(frameon=False)
    for axis in axes[-1]:
        axis.set_xlabel("points of each integral")
    for axis in axes[:, 0]:
        axis.set_ylabel("1 − cosine with 128 points")
    figure.savefig(path, dpi=110)


def write_docs(cases: dict[tuple[str, str], list[Row]]) -> None:
    text = [
        "# How many points does an integral need?",
        "",
        "Every path method on the scenes models (trained weights, held-out scenes). The error is 1 − cosine of an "
        f"image's mask with the mask of {REFERENCE} Gauss points (32 of each integral for IIA of the ViT), the mean "
        "over scenes; the dotted line is 0.001. "
        "Cost grows with the number of points of an integral; that of IIA with its square, but for the innermost "
        "integral where the head is linear, which is exact without points. "
        "Written by `python benchmarks/quadrature.py`.",
        "",
        "![Error against number of points](images/quadrature.png)",
        "",
        "The fewest points of each integral from which on the mean cosine stays at 0.999:",
        "",
        "| model | method | Gauss | midpoint | Riemann (published) | published points: cosine |",
        "|---|---|---|---|---|---|",
    ]
    for (model, method), rows in cases.items():
        attention = model.endswith("vit") and method != "ig"
        steps = GradientConfig(method=method).steps_of(attention)
        published = next(row for row in rows if row.rule == "riemann" and row.steps == steps)
        cells = [fewest(rows, rule) for rule in ("gauss", "midpoint", "riemann")]
        shown = ["more than 50" if row is None else str(row.points) for row in cells]
        text.append(f"| {model} | {method} | {' | '.join(shown)} | {published.points}: {published.cosine:.5f} |")
    text += [
        "",
        "`--preset fast` takes the Gauss column: the larger number where a method is there for both models; but 2 for "
        "the attention matrix inside IIA of a ViT, which needs no more (see DIX), around 8 of the image. "
        "Pixel gradients of ReLU networks jump at kinks, so no rule converges fast for integrated gradients.",
        "",
        "Completeness gap (median over scenes) with Gauss points:",
        "",
        "| model | method | 5 points | 10 points | 32 points |",
        "|---|---|---|---|---|",
    ]
    for (model, method), rows in cases.items():
        gaps = {row.steps: row.gap for row in rows if row.rule == "gauss"}
        cells = [f"{gaps[steps]:.2%}" if steps in gaps else "–" for steps in (5, 10, 32)]
        text.append(f"| {model} | {method} | {' | '.join(cells)} |")
    (ROOT / "docs" / "quadrature.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def publish(cases: dict[tuple[str, str], list[Row]]) -> None:
    draw(cases, ROOT / "docs" / "images" / "quadrature.png")
    write_docs(cases)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="print, write nothing")
    parser.add_argument("--redraw", action="store_true", help="from the stored results, without measuring again")
    arguments = parser.parse_args()
    if arguments.redraw:
        stored = [Row(**row) for row in json.loads(STORED.read_text())]
        publish({case: [row for row in stored if (row.model, row.method) == case] for case in CASES})
        return
    cases = {}
    console = Console(width=140)
    for (model, method), scenes in track(list(CASES.items()), "measuring", console=Console(stderr=True)):
        rows = cases[model, method] = measure(model, method, scenes)
        for rule in RULES:
            best = fewest(rows, rule)
            cosines = " ".join(
                f"{row.points}:{row.cosine:.5f}/{row.worst_cosine:.4f}" for row in rows if row.rule == rule
            )
            console.print(f"{model} {method} {rule}: enough {best and best.points}; {cosines}", markup=False)
    if arguments.dry:
        return
    publish(cases)
    STORED.write_text(json.dumps([asdict(row) for rows in cases.values() for row in rows], indent=0) + "\n")


if __name__ == "__main__":
    main()
