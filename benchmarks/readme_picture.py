"""The README's picture: held-out scenes, where the evidence is, and what two explainers in a graph say.

    python benchmarks/readme_picture.py                 writes docs/images/scenes.png, about a minute

Rows: the image, the digit's pixels, LTX on the shared trunk, and masks of 4 and 12 % by one INR network.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from saccade.accel.engine import Engine
from saccade.accel.engines import open_engine
from saccade.accel.overlay import draw_overlay, draw_parts
from saccade.cli.data import sample_images
from saccade.contracts import MaskQuery, Uint8
from saccade.evaluate.scenes import SceneSource
from saccade.evaluate.weights_folder import WEIGHTS
from saccade.export.write_bundle import export_trained
from saccade.methods.checkpoint import load_checkpoint

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "scenes.png"
FIRST, SCENES = 20_000, 6
TIMES = 2  # a scene is shown so much larger
AREAS = (0.12, 0.04)  # the smaller one lies on the larger one


def opened(name: str, folder: Path) -> Engine:
    explainer, record = load_checkpoint(WEIGHTS / name)
    return open_engine(export_trained(explainer, record, sample_images(record.data, record.image_spec), folder / name))


def larger(values: np.ndarray) -> np.ndarray:
    """(h, w), or (h, w, 3) of uint8, at the size in which it is shown."""
    size = (TIMES * values.shape[1], TIMES * values.shape[0])
    return np.asarray(Image.fromarray(np.ascontiguousarray(values)).resize(size, Image.Resampling.BICUBIC))


def column(image: Uint8, evidence: np.ndarray, mask: np.ndarray, areas: np.ndarray) -> Uint8:
    """One scene from top to bottom."""
    shown = larger(image)
    truth = np.where(larger(evidence.astype(np.float32))[..., None] > 0.5, shown, shown // 5)
    rows = [
        shown,
        truth,
        draw_overlay(shown, larger(mask).clip(0, 1)),
        draw_parts(shown, [larger(one).clip(0, 1) for one in areas]),
    ]
    return np.concatenate(rows, 0).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=FIRST)
    parser.add_argument("--out", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    scenes = SceneSource("test").batch(range(arguments.first, arguments.first + SCENES))
    with tempfile.TemporaryDirectory() as temporary:
        ltx, inr = (opened(f"scenes_resnet_{kind}", Path(temporary)) for kind in ("ltx_shared", "inr"))
        masks = ltx.run(scenes.images).mask
        areas = inr.run(scenes.images, None, MaskQuery(areas=AREAS)).mask
    rows = zip(scenes.images, scenes.evidence, masks.reshape(len(masks), *masks.shape[-2:]), areas, strict=True)
    columns = [column(*one) for one in rows]
    Image.fromarray(np.concatenate(columns, 1)).save(arguments.out, optimize=True)
    print(arguments.out)


if __name__ == "__main__":
    main()
