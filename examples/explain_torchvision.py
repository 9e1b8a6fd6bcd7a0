"""Your own classifier of torchvision, from a state dict to a picture of what it looked at.

    python examples/explain_torchvision.py cat.jpg --weights mymodel.pth --classes names.txt
    python examples/explain_torchvision.py cat.jpg --arch resnet50

Without --weights torchvision's own are downloaded; where they cannot be, the weights are random, and so is what they
look at.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import saccade
from saccade.cli.data import noise_images
from saccade.errors import ModelError
from saccade.export.write_bundle import export_gradient
from saccade.methods.explainee import Explainee, load_explainee
from saccade.methods.gradient.config import GradientConfig


def load(options: argparse.Namespace) -> Explainee:
    names = options.classes.read_text().split("\n") if options.classes else None
    names = [name for name in names if name.strip()] if names else None
    size = (options.size, options.size) if options.size else None
    try:
        return load_explainee(f"torchvision:{options.arch}", options.weights, class_names=names, image_size=size)
    except ModelError as error:
        if options.weights is not None:
            raise SystemExit(f"Error: {error}") from None
        print(f"{error}\nGoing on with random weights: the explanation is right, the classifier is not.")
        return load_explainee(f"torchvision:{options.arch}", "random", class_names=names, image_size=size)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--arch", default="resnet18", help="as torchvision calls it")
    parser.add_argument("--weights", help="a state dict, .pth or .safetensors; or: random")
    parser.add_argument("--classes", type=Path, help="their names, one per line")
    parser.add_argument("--size", type=int, help="side of the input, pixels; default: the model's own")
    parser.add_argument("--out", type=Path, default=Path("torchvision-bundle"))
    options = parser.parse_args(arguments)

    explainee = load(options)
    bundle = export_gradient(
        explainee, GradientConfig(method="gradcam"), noise_images(explainee.image_spec), options.out, overwrite=True
    )
    (result,) = saccade.open(bundle).explain(options.photo)
    picture = options.out.with_suffix(".png")
    result.overlay().save(picture)
    print(f"{result.class_name}, {result.probability:.1%}; the mask in {picture}, the graph in {options.out}")


if __name__ == "__main__":
    main()
