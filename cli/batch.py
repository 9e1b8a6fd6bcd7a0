"""``saccade batch``."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import click

from .options import Areas, Count, EngineOptions, ImageSize, any_json, engine_options, megapixels_option

__all__ = ["batch"]


@click.command()
@click.argument("src")
@click.argument("dst", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--bundle", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The bundle that explains."
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="NAME|INDEX",
    help="Class to explain; repeat for several, a row each. [default: the predicted class]",
)
@click.option(
    "--mask",
    type=click.Choice(["png", "uint8", "float16", "none"]),
    default="png",
    show_default=True,
    help="How masks are stored: as 8-bit PNG, as bytes or half floats row after row; none computes no masks.",
)
@click.option(
    "--areas",
    type=Areas(),
    metavar="A,B,…",
    help="Fractions of the image that masks keep, a row each: of an explainer of train inr. [default: the bundle's]",
)
@click.option(
    "--size",
    type=ImageSize(),
    metavar="H[xW]",
    help="Pixels of the masks of an explainer of train inr. [default: the model's input size]",
)
@click.option(
    "--top",
    type=Count(1),
    default=5,
    show_default=True,
    metavar="K",
    help="Store the K most probable classes of each image.",
)
@click.option(
    "--overlays",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Draw overlays into this folder.",
)
@click.option(
    "--batch-size",
    type=Count(1),
    metavar="N",
    help="Images per call of the engine. [default: what the explainer was made for, mostly 8]",
)
@click.option(
    "--shard-size",
    type=Count(1),
    default=2000,
    show_default=True,
    metavar="N",
    help="Images per file of the result; a tar file of images is one shard, whatever it holds.",
)
@click.option("--limit", type=Count(1), metavar="N", help="Take the first N images only.")
@click.option(
    "--kind",
    type=click.Choice(["images", "tar", "parquet"]),
    help="Of a folder that has several: which files. [default: images, where there are any]",
)
@click.option("--image-column", metavar="NAME", help="Of Parquet files: the column of encoded images.")
@click.option("--id-column", metavar="NAME", help="Of Parquet files: the column that goes into the result as id.")
@megapixels_option()
@click.option(
    "--decode-threads",
    type=Count(1),
    metavar="N",
    help="Threads that read and decode images. [default: one per core and at least 2; 16 through a network]",
)
@click.option("--restart", is_flag=True, help="Remove what is in DST of an earlier run, and begin anew.")
@click.option("--retry-failed", is_flag=True, help="Do finished shards again that have images which failed.")
@click.option("--shard-index", type=Count(0), metavar="I", help="With --shard-count: this machine, from 0.")
@click.option(
    "--shard-count",
    type=Count(1),
    metavar="N",
    help="Divide the shards among N machines that have no file system with locks in common.",
)
@click.option(
    "--ray",
    "ray_address",
    is_flag=False,
    flag_value="local",
    metavar="[ADDRESS]",
    help="Let actors of Ray Data do the shards: on this machine, or on the cluster at ADDRESS.",
)
@click.option("--actors", type=Count(1), metavar="N", help="With --ray: so many at once. [default: one per core]")
@engine_options
@any_json
def batch(
    src: str,
    dst: Path,
    bundle: Path,
    targets: tuple[str, ...],
    mask: str,
    areas: tuple[float, ...] | None,
    size: tuple[int, int] | None,
    top: int,
    overlays: Path | None,
    batch_size: int | None,
    shard_size: int,
    limit: int | None,
    kind: str | None,
    image_column: str | None,
    id_column: str | None,
    max_megapixels: float,
    decode_threads: int | None,
    restart: bool,
    retry_failed: bool,
    shard_index: int | None,
    shard_count: int | None,
    ray_address: str | None,
    actors: int | None,
    engine: EngineOptions,
    as_json: bool,
) -> int:
    """Explain the images of SRC, millions of them, into Parquet files in the folder DST.

    SRC is a folder of images, a pattern, tar files in the WebDataset convention, Parquet files with encoded images in
    a column, or an address of these that fsspec opens, such as s3://bucket/folder.

    Each image is a row: key, SHA-256, classes, probabilities and mask; one that cannot be read is a row with the error,
    and makes the exit code 1, as do shards that other runs have not finished. A run that is stopped or killed goes on
    with the same command: what is finished stays, and every image is in the result once. Several runs may work on one
    DST at a time.

    \b
    Examples:
      saccade batch photos/ explained --bundle bundle
      saccade batch 'shards/train-{000..099}.tar' explained --bundle bundle --target cat --target dog
      saccade batch s3://bucket/photos explained --bundle bundle --mask none
      saccade batch images.parquet explained --bundle bundle --id-column url --overlays pictures
      saccade batch photos/ explained --bundle bundle --ray --actors 4
    """
    from PIL import Image

    from ..accel.batch.explainer import BatchConfig  # which asks for pyarrow
    from ..accel.batch.job import BatchJob, JobConfig
    from ..accel.bundle import open_bundle
    from ..accel.pipeline import PipelineConfig
    from ..contracts import MaskQuery
    from .batch_progress import follow, report, results_alone
    from .target import target_indices

    if (shard_index is None) != (shard_count is None):
        raise click.UsageError("--shard-index and --shard-count go together")
    if actors is not None and ray_address is None:
        raise click.UsageError("--actors belongs to --ray")
    Image.MAX_IMAGE_PIXELS = None  # this process is ours: --max-megapixels is the limit, checked before decoding
    opened = open_bundle(bundle)
    pipeline = PipelineConfig(
        batch_size=batch_size,
        targets=target_indices(opened, targets),
        query=MaskQuery(areas=areas or (), size=size) if areas or size else None,
        max_pixels=int(max_megapixels * 1e6),
    )
    config = JobConfig(
        source=src,
        folder=dst,
        bundle=opened,
        batch=BatchConfig(
            pipeline=pipeline,
            mask=mask,  # type: ignore[arg-type]
            top=top,
            overlays=overlays,
            decode_threads=decode_threads,
        ),
        engine=engine.settings(),
        shard_size=shard_size,
        limit=limit,
        kind=kind,
        image_column=image_column,
        id_column=id_column,
        part=(shard_index or 0, shard_count or 1),
        restart=restart,
        retry_failed=retry_failed,
        ray=ray_address,
        actors=actors,
    )
    with nullcontext(sys.stdout) if ray_address is None else results_alone() as out, BatchJob(config) as job:
        seconds = follow(job)
        return report(job, seconds, as_json, out)
