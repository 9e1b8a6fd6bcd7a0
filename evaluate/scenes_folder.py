"""Planted scenes as a folder of PNG files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import OutputError
from .scenes import CLASS_NAMES, SceneSource

__all__ = ["write_scenes"]


def write_scenes(source: SceneSource, folder: Path, count: int) -> Iterator[int]:
    """Write the scenes 0 … count - 1, giving each index when it is written; ``scenes.json`` comes last.

    Images are in ``images/<class>/<index>.png``; masks beside them in ``masks/…``: 255 digit, 128 the second patch or
    digit, 0 neither.

    Raises:
        OutputError: the folder cannot be written.
    """
    listed = []
    try:
        for index in range(count):
            scene = source.scene(index)
            name = f"{CLASS_NAMES[scene.label]}/{index:06d}.png"
            truth = np.where(scene.evidence, 255, np.where(scene.context, 128, 0)).astype(np.uint8)
            for kind, pixels in (("images", scene.image), ("masks", truth)):
                path = folder / kind / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
            listed.append({"file": name, "label": scene.label, "second": scene.second, "box": scene.box})
            yield index
        about = {"split": source.split, "config": asdict(source.config), "classes": CLASS_NAMES, "scenes": listed}
        (folder / "scenes.json").write_text(json.dumps(about, indent=1) + "\n")
    except OSError as error:
        raise OutputError(f"cannot write scenes into '{folder}': {error.strerror or error}") from None
