"""An image classifier of transformers, from its folder, through the command line's own commands.

    python examples/explain_transformers.py cat.jpg my-vit/
    python examples/explain_transformers.py cat.jpg

The folder is what `save_pretrained` wrote, with the preprocessor's configuration. Without one the script makes a small
vision transformer with random weights and says so.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from saccade.cli.main import saccade


def make_model(folder: Path) -> None:
    """A vision transformer with two blocks and random weights, as `save_pretrained` leaves it."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    names = {0: "ant", 1: "bee", 2: "cat"}
    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=64,
        patch_size=8,
        initializer_range=0.2,
        id2label=names,
        label2id={name: index for index, name in names.items()},
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    print(f"A model with random weights is in {folder}: what it looks at means nothing.")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("model", type=Path, nargs="?", help="a folder that save_pretrained wrote")
    parser.add_argument("--out", type=Path, default=Path("transformers-bundle"))
    options = parser.parse_args(arguments)
    if options.model is None:
        options.model = Path(f"{options.out}-model")
        make_model(options.model)

    # what `saccade export …` and `saccade explain …` do in a shell
    export = ["export", "--method", "class-rollout", "--model", f"hf:{options.model}", "--out", str(options.out)]
    saccade([*export, "--overwrite"], standalone_mode=False)
    explain = ["explain", str(options.photo), "--bundle", str(options.out), "--out", f"{options.out}-pictures"]
    saccade(explain, standalone_mode=False)


if __name__ == "__main__":
    main()
