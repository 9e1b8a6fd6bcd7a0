"""A vision transformer of timm, and what each of two classes would look at.

    python examples/explain_timm.py pets.jpg
    python examples/explain_timm.py pets.jpg --model convnext_tiny --random

DIX explains any class: of a transformer by the attention of its last two blocks, of a network with feature maps by
these. The pretrained weights are downloaded by timm; --random does without, and then the classes mean nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import saccade
from saccade.cli.data import noise_images
from saccade.export.write_bundle import export_gradient
from saccade.methods.explainee import load_explainee
from saccade.methods.gradient.config import GradientConfig


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="as timm calls it")
    parser.add_argument("--method", default="dix2")
    parser.add_argument("--random", action="store_true", help="random weights, without a network")
    parser.add_argument("--out", type=Path, default=Path("timm-bundle"))
    options = parser.parse_args(arguments)

    explainee = load_explainee(f"timm:{options.model}", "random" if options.random else None)
    config = GradientConfig(method=options.method, preset="fast")
    export_gradient(explainee, config, noise_images(explainee.image_spec), options.out, overwrite=True)

    explainer = saccade.open(options.out)
    first, second = explainer.predict(options.photo)[0].argsort()[::-1][:2]
    for result in explainer.explain(options.photo, target=[int(first), int(second)]):
        picture = Path(f"{options.out}.{result.class_name.replace(' ', '-')}.png")
        result.overlay().save(picture)
        print(f"{result.class_name}, {result.probability:.1%}, {dict(result.diagnostics)}: {picture}")
    if options.random:
        print("The weights are random, so what they look at means nothing.")


if __name__ == "__main__":
    main()
