"""``saccade serve``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import Count, EngineOptions, Number, engine_options, megapixels_option

if TYPE_CHECKING:
    from ..accel.engine import Engine
    from ..accel.serve.server import Server

__all__ = ["serve"]


@click.command()
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE|NAME=BUNDLE...")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address to listen on; 0.0.0.0 for all, which is for networks that you trust, or with --api-key.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, metavar="N", help="HTTP; 0: a free one."
)
@click.option(
    "--grpc-port",
    type=click.IntRange(0, 65535),
    default=8001,
    show_default=True,
    metavar="N",
    help="gRPC; 0: a free one.",
)
@click.option("--no-grpc", is_flag=True, help="HTTP only.")
@click.option(
    "--workers",
    type=Count(1),
    metavar="N",
    help="Requests that are computed at the same time. [default: one per core, each with one thread]",
)
@click.option(
    "--batch",
    type=Count(1),
    metavar="N",
    help="Images of different requests that go through the engine together. [default: 1 on a processor, where batches "
    "do not pay; the bundle's batch on a GPU]",
)
@click.option(
    "--batch-delay",
    type=Number(0),
    default=0.0,
    show_default=True,
    metavar="MS",
    help="How long a batch that is not full waits for more.",
)
@click.option(
    "--nice",
    type=click.IntRange(0, 19),
    default=19,
    show_default=True,
    metavar="N",
    help="How far the priority of threads that compute is below that of the one that refuses; 0 where other programs "
    "compute beside the server.",
)
@click.option(
    "--queue",
    type=Count(1),
    default=64,
    show_default=True,
    metavar="N",
    help="Requests that wait; any more are refused at once.",
)
@click.option(
    "--timeout",
    type=Number(0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="S",
    help="How long a request may wait, unless it says less.",
)
@click.option(
    "--explain/--no-explain",
    default=True,
    show_default=True,
    help="Give masks to requests that do not say whether they want any.",
)
@click.option(
    "--explain-below",
    type=Number(0, 1),
    metavar="P",
    help="Explain only images whose predicted class is less probable, unless the request says otherwise.",
)
@click.option(
    "--api-key", envvar="SACCADE_API_KEY", metavar="KEY", help="What clients must show. [env: SACCADE_API_KEY]"
)
@click.option(
    "--max-body-mib", type=Number(0.001), default=64.0, show_default=True, metavar="MIB", help="Of a request."
)
@megapixels_option(50.0)
@click.option("--max-images", type=Count(1), default=64, show_default=True, metavar="N", help="In one request.")
@click.option("--model-control", is_flag=True, help="Let clients load and unload models, as Triton's protocol has it.")
@click.option(
    "--watch",
    type=Number(0.1),
    metavar="S",
    help="Look so often whether a bundle on disk has changed, and load it. [default: on SIGHUP, or when asked]",
)
@click.option(
    "--drain-delay",
    type=Number(0),
    default=0.0,
    show_default=True,
    metavar="S",
    help="When told to stop: say so for this long before the door closes.",
)
@click.option(
    "--drain-timeout",
    type=Number(0),
    default=30.0,
    show_default=True,
    metavar="S",
    help="When told to stop: time for what was accepted.",
)
@click.option("--log-requests", is_flag=True, help="A line for each request.")
@click.option("--json-logs", is_flag=True, help="The log as lines of JSON.")
@engine_options
def serve(
    bundles: tuple[str, ...],
    host: str,
    port: int,
    grpc_port: int,
    no_grpc: bool,
    workers: int | None,
    batch: int | None,
    batch_delay: float,
    nice: int,
    queue: int,
    timeout: float,
    explain: bool,
    explain_below: float | None,
    api_key: str | None,
    max_body_mib: float,
    max_megapixels: float,
    max_images: int,
    model_control: bool,
    watch: float | None,
    drain_delay: float,
    drain_timeout: float,
    log_requests: bool,
    json_logs: bool,
    engine: EngineOptions,
) -> int:
    """Serve bundles over HTTP and gRPC, with a page to try them.

    Speaks the Open Inference Protocol, version 2, as Triton and KServe do, so their clients work unchanged. Images come
    as pixels, or as JPEG, PNG or WebP files. A request that asks for no mask pays for none.

    \b
    Examples:
      saccade serve bundle
      saccade serve cats=bundles/cats dogs=bundles/dogs --port 9000 --explain-below 0.9
      SACCADE_API_KEY=… saccade serve bundle --host 0.0.0.0 --json-logs
    """
    import logging
    import signal

    from ..errors import require

    for package in ("starlette", "uvicorn", "httptools", "orjson", "prometheus_client", "grpc", "tritonclient"):
        require(package, extra="serve", purpose="saccade serve")
    from PIL import Image

    from ..accel.engines import open_engine
    from ..accel.serve.config import Limits, ServeConfig
    from ..accel.serve.logs import configure_logs
    from ..accel.serve.registry import named_bundles
    from ..accel.serve.server import address_of, run_server
    from ..accel.serve.service import Service

    Image.MAX_IMAGE_PIXELS = None  # this process is ours: --max-megapixels is the limit, checked before decoding
    body = int(max_body_mib * 2**20)
    config = ServeConfig(
        host=host,
        port=port,
        grpc_port=None if no_grpc else grpc_port,
        workers=workers,
        batch=batch,
        batch_delay=batch_delay / 1e3,
        nice=nice,
        queue=queue,
        timeout=timeout,
        explain=explain,
        explain_below=explain_below,
        api_key=api_key,
        model_control=model_control,
        limits=Limits(
            body_bytes=body,
            bodies_bytes=max(Limits.bodies_bytes, 4 * body),
            pixels=int(max_megapixels * 1e6),
            images=max_images,
        ),
        drain_delay=drain_delay,
        drain_timeout=drain_timeout,
        watch=watch,
        log_requests=log_requests,
        json_logs=json_logs,
    )
    configure_logs(as_json=json_logs)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to load again
    settings: dict[str, Any] = engine.settings()
    if engine.engine in ("onnx", "openvino") and settings["threads"] is None and not _on_gpu(engine):
        settings["threads"] = 1  # one core for each request, and all cores for many

    def opened(folder: Path) -> Engine:
        return open_engine(folder, **settings)

    service = Service(named_bundles(list(bundles)), opened, config)

    def say(server: Server) -> None:
        shown = "localhost" if config.host in ("127.0.0.1", "::1") else address_of(config.host)
        http, grpc = f"http://{shown}:{server.port}", f"{shown}:{server.grpc_port}" if server.grpc_port else ""
        if json_logs:
            logging.getLogger("saccade.serve").info("listening", extra={"http": http, "grpc": grpc})
            return
        click.echo(f"Ready: {http}{'   gRPC: ' + grpc if grpc else ''}   stop with Ctrl-C", err=True)
        if not config.loopback and api_key is None:
            click.echo("Note: anyone who can reach this address may use it; --api-key asks for a key.", err=True)

    return 0 if run_server(service, say) else 1


def _on_gpu(engine: EngineOptions) -> bool:
    return any(name.lower().removesuffix("executionprovider") not in ("cpu", "openvino") for name in engine.providers)
