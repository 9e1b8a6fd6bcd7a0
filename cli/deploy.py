"""``saccade deploy``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import BatchSizes, Count, Number, any_json, megapixels_option
from .plain import plain

if TYPE_CHECKING:
    from ..export.triton_server.repository import WrittenModel

__all__ = ["deploy"]


@click.group()
def deploy() -> None:
    """Put bundles where inference servers take them."""


@deploy.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="BUNDLE...")
@click.option(
    "--repository", required=True, type=click.Path(path_type=Path), metavar="DIR", help="The model repository."
)
@click.option(
    "--target",
    type=click.Choice(["cpu", "gpu"]),
    default="cpu",
    show_default=True,
    help="cpu: an instance per core, one thread each, no batches. gpu: requests are batched as they come.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["onnx", "tensorrt"]),
    default="onnx",
    show_default=True,
    help="tensorrt: serve the plans that export --format tensorrt put into the bundle.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8"]),
    default="fp32",
    show_default=True,
    help="Which graph or plans of the bundle.",
)
@click.option("--name", metavar="NAME", help="Of the models of one bundle. [default: its folder's name]")
@click.option(
    "--max-batch-size",
    type=Count(1),
    metavar="N",
    help="Images per request and batch. [default: the bundle's on cpu, 32 on gpu, the plans']",
)
@click.option(
    "--instances",
    type=Count(1),
    metavar="N",
    help="Copies of each model. [default: one per core of this machine on cpu, one per GPU on gpu]",
)
@click.option(
    "--decoders",
    type=Count(1),
    metavar="N",
    help="Processes that decode images. [default: one per core of this machine, up to 8]",
)
@click.option(
    "--preferred-batch-sizes",
    type=BatchSizes(),
    default=(),
    metavar="N,N,…",
    help="Batches that are sent as soon as they are full. [default: none in particular]",
)
@click.option(
    "--queue-delay",
    type=Count(0),
    default=0,
    show_default=True,
    metavar="µs",
    help="How long a request may wait for others to join its batch.",
)
@click.option(
    "--queue-size",
    type=Count(1),
    metavar="N",
    help="Requests that may wait; more are refused at once. Batches requests on cpu as well. [default: any number]",
)
@click.option(
    "--queue-timeout",
    type=Count(1),
    metavar="ms",
    help="Refuse requests that waited longer. Batches requests on cpu as well. [default: never]",
)
@click.option("--no-warm-up", is_flag=True, help="Be ready before golden samples ran through the models.")
@click.option(
    "--accelerator",
    is_flag=True,
    help="On gpu: ONNX Runtime has TensorRT compile the graph when the server starts.",
)
@click.option(
    "--workspace",
    type=Number(0, min_open=True),
    metavar="GIB",
    help="With --accelerator: memory that one kernel may take. [default: the server's]",
)
@click.option(
    "--engine-cache",
    metavar="DIR",
    help="With --accelerator: folder on the server that keeps what was compiled for its next start.",
)
@click.option("--no-images", is_flag=True, help="Leave out the model that takes encoded images; it needs Pillow there.")
@megapixels_option()
@click.option(
    "--response-cache", is_flag=True, help="Keep answers for equal requests; the server needs --cache-config as well."
)
@click.option(
    "--version",
    type=Count(1),
    metavar="N",
    help="Put this version beside those that are there. [default: 1]",
)
@click.option("--force", is_flag=True, help="Replace models that are there, with all their versions.")
@click.option("--storage-uri", metavar="URI", help="Where KServe will find the repository. [default: a placeholder]")
@any_json
def triton(
    bundles: tuple[Path, ...],
    repository: Path,
    form: str,
    no_warm_up: bool,
    no_images: bool,
    max_megapixels: float,
    version: int | None,
    force: bool,
    storage_uri: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Write a model repository for NVIDIA Triton Inference Server; needs no PyTorch.

    Each bundle becomes NAME, which predicts and explains, NAME_classifier, which only predicts, and NAME_from_bytes,
    which takes encoded images. A README, a client and a manifest for KServe lie beside them.

    \b
    Examples:
      saccade deploy triton bundle --repository models
      saccade deploy triton bundle --repository models --target gpu --precision fp16 --accelerator
      saccade deploy triton bundle --repository models --version 2
    """
    from ..accel.bundle import open_bundle
    from ..errors import require
    from ..export.triton_server.repository import deploy as write
    from ..export.triton_server.settings import TritonSettings

    settings = TritonSettings(
        format=form,  # type: ignore[arg-type]
        warm_up=not no_warm_up,
        images=not no_images,
        max_pixels=int(max_megapixels * 1e6),
        version=version or 1,
        **options,
    )
    require("tritonclient.grpc.model_config_pb2", extra="deploy", purpose="writing the configuration of Triton")
    opened = [open_bundle(bundle) for bundle in bundles]
    written = write(opened, repository, settings, force=force, new_version=version is not None, storage_uri=storage_uri)
    if as_json:
        models = [{**vars(model), "bundle": str(model.bundle)} for model in written]
        click.echo(json.dumps({"repository": str(repository), "models": models}, indent=2))
    else:
        _print(repository, written)
        for bundle in opened if settings.precision == "int8" and settings.target == "cpu" else ():
            if bundle.manifest.precisions["int8"].weight_bits == 8:
                _warn_of_overflow(bundle.path)


def _warn_of_overflow(bundle: Path) -> None:
    from rich.console import Console

    Console(stderr=True).print(
        f"Warning: the int8 graph of '{plain(bundle)}' has weights of 8 bits, with which processors without VNNI "
        "(lscpu says avx512_vnni or avx_vnni where there is one) compute wrong masks; saccade verify --server tells.",
        highlight=False,
        soft_wrap=True,
    )


def _print(repository: Path, written: list[WrittenModel]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=plain(repository), title_justify="left", box=None, pad_edge=False)
    for heading, justify in (
        ("model", "left"),
        ("is", "left"),
        ("version", "right"),
        ("batch", "right"),
        ("instances", "right"),
        ("MB", "right"),
    ):
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for model in written:
        table.add_row(
            model.name,
            model.role,
            str(model.version),
            str(model.max_batch_size or "–"),
            str(model.instances or "–"),
            f"{model.bytes / 1e6:.1f}",
        )
    console = Console()
    console.print(table)
    console.print(
        f"How to start the server and to ask it: {plain(repository / 'README.md')}", highlight=False, soft_wrap=True
    )
    first = next(model for model in written if model.role == "explainer")
    console.print("Once it runs:", highlight=False)
    console.print(
        f"  saccade verify {plain(first.bundle)} --server http://localhost:8000 --model {first.name}",
        highlight=False,
        soft_wrap=True,
    )
