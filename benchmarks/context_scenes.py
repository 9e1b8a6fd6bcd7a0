"""Several masks of one image: does the second find the other evidence? On scenes with a digit and a texture.

    python benchmarks/context_scenes.py                 200 scenes, about twenty minutes on two cores
    python benchmarks/context_scenes.py --count 16 --dry

The classifier `scenes:context` knows most classes by either. That it does is shown for a scene if its class keeps a
probability of one half with the digit blurred, with the texture blurred, with the digit alone, and with the texture
alone. (With the digit blurred is not enough: its colour may remain, while the texture alone says nothing.) Of these, in
how many does one of the first two masks lie on the digit and the other on the texture? A mask lies on a part if a tenth
of its pixels do, and three times as many as of the pixels it could have taken; on the one more so. The same is told of
all scenes whose class survives the blurring of either, and for discs of the same area at random places. Writes
benchmarks/results/context_scenes.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import Progress
from scipy.stats import binomtest
from torch import Tensor

from saccade.accel.machine import machine
from saccade.evaluate.scenes import SceneBatch, SceneConfig, SceneSource
from saccade.methods.explainee import Explainee, load_explainee
from saccade.methods.fold import fast_for_input_gradients
from saccade.methods.inr.config import INRConfig
from saccade.methods.inr.several import SeveralConfig, SeveralMasks, several_masks
from saccade.methods.perturb import make_baseline, perturb

RESULTS = Path(__file__).parent / "results" / "context_scenes.json"
FIRST, BATCH = 20_000, 20
NEAR = 2  # pixels around a digit or a texture that are hidden with it
USED = 0.5
LIES, TIMES = 0.1, 3


def to_pixels(scenes: SceneBatch) -> Tensor:
    return torch.from_numpy(scenes.images).permute(0, 3, 1, 2).float() / 255


def hidden(explainee: Explainee, pixels: Tensor, part: Tensor, target: Tensor, *, alone: str | None = None) -> Tensor:
    """Probability of the classes where a part (N, H, W) of the images is blurred, or all else a baseline, (N,)."""
    near = F.max_pool2d(part[:, None].float(), 2 * NEAR + 1, 1, NEAR)
    baseline = make_baseline(pixels, alone or "blur", explainee.image_spec.mean)
    shown = perturb(pixels, near if alone else 1 - near, baseline)
    with torch.inference_mode():
        answers: Tensor = explainee.model(explainee.normalise(shown)).softmax(1)
    return answers.gather(1, target[:, None])[:, 0]


def used_both(
    explainee: Explainee, scenes: SceneBatch, baselines: tuple[str, ...]
) -> tuple[np.ndarray[Any, np.dtype[np.bool_]], np.ndarray[Any, np.dtype[np.bool_]]]:
    """Whether the class survives the blurring of either part, and whether each part alone is enough as well, (N,)."""
    pixels = to_pixels(scenes)
    with torch.inference_mode():
        predicted = explainee.model(explainee.normalise(pixels)).argmax(1)
    parts = (torch.from_numpy(scenes.evidence), torch.from_numpy(scenes.context))
    least = torch.stack([hidden(explainee, pixels, part, predicted) for part in parts]).amin(0)
    alone = torch.stack(
        [hidden(explainee, pixels, part, predicted, alone=kind) for part in parts for kind in baselines]
    ).amin(0)
    return np.asarray((least >= USED).numpy()), np.asarray(((least >= USED) & (alone >= USED)).numpy())


def lies_on(mask: Tensor, free: Tensor, parts: tuple[Tensor, Tensor]) -> int:
    """0 for the first part (H, W), 1 for the second, −1 for neither, of a mask where some pixels were free."""
    times = []
    for part in parts:
        near = F.max_pool2d(part[None, None].float(), 2 * NEAR + 1, 1, NEAR)[0, 0]
        share, chance = (float((one * near).sum() / one.sum().clamp_min(1)) for one in (mask, free))
        times.append(share / chance if share >= LIES else 0.0)
    return int(np.argmax(times)) if max(times) >= TIMES else -1


def where(masks: Tensor, margin: float, parts: tuple[Tensor, Tensor]) -> tuple[int, int]:
    """What the first two masks (2, H, W) of an image lie on."""
    border = round(margin * max(masks.shape[1:]))
    taken = F.max_pool2d(masks[None, :1], 2 * border + 1, 1, border)[0, 0]
    return lies_on(masks[0], torch.ones_like(taken), parts), lies_on(masks[1], 1 - taken, parts)


def random_discs(size: tuple[int, int], area: float, margin: float, rng: np.random.Generator) -> Tensor:
    """Two discs of an area that do not overlap, (2, H, W)."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    radius = np.sqrt(area * size[0] * size[1] / np.pi)
    while True:
        middles = rng.uniform(radius, np.array(size) - radius, (2, 2))
        if np.hypot(*(middles[0] - middles[1])) >= 2 * radius + margin * max(size):
            discs = [np.hypot(rows - y, columns - x) <= radius for y, x in middles]
            return torch.from_numpy(np.stack(discs)).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--area", type=float, default=0.08)
    parser.add_argument("--steps", type=int, default=INRConfig().steps)
    parser.add_argument("--baselines", nargs="+", default=["mean", "blur"], help="of a removed pixel, in turn")
    parser.add_argument("--first", type=int, default=FIRST)
    parser.add_argument("--tries", type=int, default=SeveralConfig().tries, help="of each mask")
    parser.add_argument("--shown", action="store_true", help="only scenes whose classifier is shown to use both")
    parser.add_argument("--dry", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    explainee = fast_for_input_gradients(load_explainee("python:saccade.evaluate.scenes_models:context"))
    source = SceneSource("test", SceneConfig(variant="context"))
    several = SeveralConfig(most=2, area=arguments.area, tries=arguments.tries)
    config = INRConfig(steps=arguments.steps, baselines=tuple(arguments.baselines))
    places: list[tuple[int, int]] = []
    retention: list[np.ndarray[Any, Any]] = []
    strict: list[bool] = []
    chance: list[bool] = []
    rng = np.random.default_rng(0)
    began = time.perf_counter()
    with Progress() as progress:
        task = progress.add_task("scenes", total=arguments.count)
        for start in range(arguments.first, arguments.first + arguments.count, BATCH):
            stop = min(start + BATCH, arguments.first + arguments.count)
            scenes = source.batch(range(start, stop))
            survives, shown = used_both(explainee, scenes, config.baselines)
            both = np.flatnonzero(shown if arguments.shown else survives)
            strict.extend(shown[both].tolist())
            if len(both):
                found: SeveralMasks = several_masks(explainee, to_pixels(scenes)[both], several, config)
                retention.append(found.retention.numpy())
                for masks, index in zip(found.masks, both, strict=True):
                    parts = (torch.from_numpy(scenes.evidence[index]), torch.from_numpy(scenes.context[index]))
                    places.append(where(masks, several.margin, parts))
                    size = (int(masks.shape[1]), int(masks.shape[2]))
                    discs = random_discs(size, several.area, several.margin, rng)
                    chance.append(set(where(discs, several.margin, parts)) == {0, 1})
            progress.update(task, advance=stop - start)
    different = np.array([set(pair) == {0, 1} for pair in places])
    counted, right = int(np.sum(strict)), int(different[strict].sum())
    if not counted:
        raise SystemExit("the classifier is shown to use both in none of these scenes; take more")
    interval = binomtest(right, counted).proportion_ci(0.95, "wilson")
    result = {
        "scenes": arguments.count,
        "classifier uses both": counted,
        "masks on different evidence": right / counted,
        "interval": [interval.low, interval.high],
        "class survives the blurring of either": len(places),
        "of these, masks on different evidence": float(different.mean()),
        "of these, random discs on different evidence": float(np.mean(chance)),
        "first mask on the digit": float(np.mean([pair[0] == 0 for pair in places])),
        "pairs (first, second; 0 digit, 1 texture, -1 neither)": {
            str(pair): places.count(pair) for pair in sorted(set(places))
        },
        "retention, median": np.median(np.concatenate(retention), 0).tolist(),
        "area": arguments.area,
        "margin": several.margin,
        "tries": several.tries,
        "steps": config.steps,
        "baselines": config.baselines,
        "seconds per image": (time.perf_counter() - began) / max(1, len(places)),
    }
    print(json.dumps(result, indent=1))
    if not arguments.dry:
        RESULTS.write_text(json.dumps({"machine": machine(), **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
