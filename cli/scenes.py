"""``saccade scenes``."""

from __future__ import annotations

from pathlib import Path

import click

from .options import Count

__all__ = ["scenes"]


@click.group()
def scenes() -> None:
    """Planted scenes: real images whose evidence is known."""


@scenes.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    default="test",
    show_default=True,
    help="Which digits and photographs.",
)
@click.option("--count", type=Count(1), default=100, show_default=True, metavar="N", help="Number of scenes.")
@click.option("--size", type=Count(32), default=96, show_default=True, metavar="PX", help="Height and width.")
@click.option(
    "--variant",
    type=click.Choice(["digit", "context", "pair"]),
    default="digit",
    show_default=True,
    help="Beside the digit: nothing more, a patch whose texture goes with the class, or a digit of another class.",
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Another seed, other scenes.")
def write(folder: Path, split: str, count: int, size: int, variant: str, seed: int) -> None:
    """Write scenes and their ground truth as PNG files.

    \b
    FOLDER/images/<class>/<index>.png    the scenes, one folder per class
    FOLDER/masks/<class>/<index>.png     255 where the digit is, 128 where the second patch or digit is
    FOLDER/scenes.json                   how they were made, and every digit's box

    \b
    Example:
      saccade scenes write scenes/ --count 500
    """
    from rich.console import Console
    from rich.progress import track

    from ..evaluate.scenes import SceneConfig, SceneSource
    from ..evaluate.scenes_folder import write_scenes

    source = SceneSource(split, SceneConfig(size=size, variant=variant, seed=seed))  # type: ignore[arg-type]
    for _ in track(
        write_scenes(source, folder, count), "writing", total=count, console=Console(stderr=True), transient=True
    ):
        pass
    click.echo(f"{count} scenes in {folder}/images, their ground truth in {folder}/masks")
