"""What a server of bundles is told."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from ...errors import UsageError
from ..image import MAX_PIXELS
from .tensors import MOST_ELEMENTS

__all__ = ["Limits", "ServeConfig"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request, and all of them together, may ask for.

    Attributes:
        body_bytes: of one request's body, after decompression.
        json_bytes: of the JSON in it, which takes many times its size while it is read.
        bodies_bytes: of all bodies and answers that are being received, wait or are sent, together.
        images: in one request.
        pixels: of one encoded image; those of a request have at most twice as many together.
        mask_values: of all masks in one answer together: images × classes or areas × height × width.
        connections: open at the same time.
        header_seconds: for a request's line and headers to arrive.
        body_seconds: for its body, and for a client that takes nothing of its answer.
        header_bytes: of its line and headers.
    """

    body_bytes: int = 64 * 2**20
    json_bytes: int = 8 * 2**20
    bodies_bytes: int = 512 * 2**20
    images: int = 64
    pixels: int = MAX_PIXELS
    mask_values: int = 64 * 2**20
    connections: int = 1000
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    header_bytes: int = 64 * 2**10

    def __post_init__(self) -> None:
        counts = (self.json_bytes, self.bodies_bytes, self.images, self.pixels, self.mask_values, self.connections)
        if min(*counts, self.body_bytes, self.header_bytes) < 1:
            raise UsageError("every limit is at least 1")
        if self.body_bytes >= 2**31:
            raise UsageError(
                f"a body of {self.body_bytes / 2**20:.0f} MiB is more than gRPC carries; allow less than 2048"
            )
        if self.bodies_bytes < self.body_bytes:
            raise UsageError("all bodies together are allowed less than one of them alone")
        if self.images > MOST_ELEMENTS:
            raise UsageError(f"a request holds at most {MOST_ELEMENTS} images, not {self.images}")
        if min(self.header_seconds, self.body_seconds) <= 0:
            raise UsageError("the time that a request may take to arrive is positive")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """How bundles are served.

    Attributes:
        host: address to listen on; the loopback unless told otherwise.
        port: for HTTP; 0 takes a free one.
        grpc_port: for gRPC; 0 takes a free one, None serves none.
        workers: requests that are computed at the same time; None for the number of cores on a processor, and for as
            many as decode images beside a GPU.
        batch: images of different requests that go through the engine together; 1 for none, None for the engine's
            preference: none on a processor, the bundle's batch on a GPU.
        batch_delay: seconds that a batch which is not full waits for more requests.
        nice: how far the priority of threads that compute is below that of the one that reads requests, and refuses
            them: 0 for not at all, 19 for as far as there is. Only on Linux.
        queue: requests that wait; any more are refused at once.
        timeout: seconds that a request may wait, unless it says less.
        explain: whether a request that does not say is given a mask.
        explain_below: only images whose predicted class is less probable are, unless the request says otherwise; None
            for all.
        api_key: what clients must show; None for none.
        model_control: clients may load and unload models.
        limits: of requests.
        drain_delay: seconds between "not ready" and the end of listening, when the server is told to stop.
        drain_timeout: seconds that requests under way then have.
        watch: seconds between looks at the bundles' files, to load a changed one; None for no looks.
        log_requests: a line for every request.
        json_logs: lines of JSON.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = 8001
    workers: int | None = None
    batch: int | None = None
    batch_delay: float = 0.0
    nice: int = 19
    queue: int = 64
    timeout: float = 30.0
    explain: bool = True
    explain_below: float | None = None
    api_key: str | None = None
    model_control: bool = False
    limits: Limits = Limits()
    drain_delay: float = 0.0
    drain_timeout: float = 30.0
    watch: float | None = None
    log_requests: bool = False
    json_logs: bool = False

    def __post_init__(self) -> None:
        if (self.workers is not None and self.workers < 1) or (self.batch is not None and self.batch < 1):
            raise UsageError("workers and batch are at least 1")
        if not 0 <= self.nice <= 19:
            raise UsageError(f"a priority is from 0 to 19 lower, not {self.nice}")
        if self.queue < 1 or self.timeout <= 0 or min(self.batch_delay, self.drain_delay, self.drain_timeout) < 0:
            raise UsageError("the queue holds at least 1 request, the timeout is positive, and no delay is negative")
        if self.explain_below is not None and not 0 <= self.explain_below <= 1:
            raise UsageError(f"a probability of {self.explain_below} is not in [0, 1]")
        if self.api_key is not None and not re.fullmatch(r"[!-~]([ -~]*[!-~])?", self.api_key):
            raise UsageError(
                "an API key is of ASCII characters, without blanks around it, and not empty; leave it out for a server "
                "without one"
            )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
