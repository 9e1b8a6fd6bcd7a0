"""Sends images to a Triton server and writes, for each, its mask and the mask laid over the picture.

pip install 'tritonclient[http]' numpy pillow
python client.py photo.jpg --model NAME_from_bytes [--url localhost:8000] [--target 7] [--out explained]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np


def ask(client: Any, model: str, image: bytes, target: int | None) -> dict[str, np.ndarray[Any, Any]]:
    """The outputs for one encoded image, by name."""
    import tritonclient.http as http

    shapes = {tensor["name"]: tensor["shape"] for tensor in client.get_model_metadata(model)["inputs"]}
    values = {"image": np.array([image], dtype=object)}
    if target is not None:
        values["target"] = np.array([target], dtype=np.int64)
    inputs = []
    for name, value in values.items():
        value = value.reshape([1] * len(shapes[name]))
        inputs.append(http.InferInput(name, list(value.shape), "BYTES" if name == "image" else "INT64"))
        inputs[-1].set_data_from_numpy(value)
    named = http.InferRequestedOutput("probabilities", binary_data=True, class_count=1)
    outputs = [named, *(http.InferRequestedOutput(name) for name in ("target_class", "mask", "pixels"))]
    answer = client.infer(model, inputs, outputs=outputs)
    return {output.name(): answer.as_numpy(output.name()) for output in outputs}


def overlay(pixels: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> Any:
    """The picture in grey where the mask is 0, and in its colours where it is 1."""
    from PIL import Image

    height, width = pixels.shape[:2]
    fitted = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR))[..., None]
    grey = pixels.mean(-1, keepdims=True) * 0.5
    return Image.fromarray((pixels * fitted + grey * (1 - fitted)).astype(np.uint8))


def main() -> int:
    """Ask for every image; exit code 1 if one was refused."""
    import tritonclient.http as http
    from PIL import Image
    from tritonclient.utils import InferenceServerException

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--url", default="localhost:8000", help="host and port of HTTP")
    parser.add_argument("--target", type=int, help="class to explain [default: the predicted one]")
    parser.add_argument("--out", type=Path, default=Path("explained"))
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    client, refused = http.InferenceServerClient(chosen.url), 0
    for path in chosen.images:
        try:
            answer = ask(client, chosen.model, path.read_bytes(), chosen.target)
        except (InferenceServerException, OSError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            refused = 1
            continue
        probability, _, name = answer["probabilities"].reshape(-1)[0].decode().split(":", 2)
        mask = answer["mask"].reshape(-1, *answer["mask"].shape[-2:])[0]
        Image.fromarray((mask * 255 + 0.5).astype(np.uint8)).save(chosen.out / f"{path.stem}.mask.png")
        overlay(answer["pixels"][0], mask).save(chosen.out / f"{path.stem}.overlay.png")
        print(f"{path}: {name} {float(probability):.1%}, mask of class {int(answer['target_class'].reshape(-1)[0])}")
    return refused


if __name__ == "__main__":
    sys.exit(main())
