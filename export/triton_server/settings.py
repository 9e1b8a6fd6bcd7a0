"""How bundles are served by Triton: what can be set, what it is set to where nothing is said, and what cannot work."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from ...accel.bundle import Bundle
from ...accel.graph_engine import Answer
from ...accel.image import MAX_PIXELS
from ...accel.manifest import PlanReport
from ...errors import EngineError, UsageError

__all__ = ["Format", "Target", "TritonSettings", "answers_of", "fitted", "plans_of"]

Target = Literal["cpu", "gpu"]
Format = Literal["onnx", "tensorrt"]
_MOST_DECODERS = 8
_GPU_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class TritonSettings:
    """Settings of the models that a bundle becomes.

    Attributes:
        target: ``"cpu"``: one instance per core, each with one thread, and every request by itself, which was faster
            than batches there. ``"gpu"``: requests are batched as they come; such models also load where there is none.
        format: ``"onnx"``, or ``"tensorrt"`` for the plans that the bundle holds.
        precision: of the graph or the plans, one that the bundle holds.
        max_batch_size: images per request and per batch; None takes the bundle's on processors, 32 on GPUs, and for
            plans the most that they take. Graphs with inputs that belong to no image (areas, places) have no batches.
        instances: copies of each model; None for one per core of this machine, or one on each GPU.
        decoders: processes that decode images; None for one per core of this machine, up to 8.
        preferred_batch_sizes: batches to wait for; empty for none in particular.
        queue_delay: microseconds that a request may wait for others to join its batch.
        queue_size: requests that may wait; more are refused at once. None for any number.
        queue_timeout: milliseconds after which a request that still waits is refused; None for never. Triton has either
            bound in its dynamic batcher only, so that requests are batched on processors as well.
        warm_up: run golden samples before the server says that it is ready.
        accelerator: ONNX Runtime runs the graph by TensorRT, which it compiles when the server starts.
        workspace: GiB that one kernel may take with it; None for the server's own limit.
        engine_cache: folder on the server where what was compiled is kept for its next start.
        images: also write the model that takes encoded images.
        max_pixels: larger images are refused before they are decoded.
        response_cache: keep answers for requests that come again; the server needs ``--cache-config`` as well.
        version: number of the models' version.
        name: of the models; None for that of the bundle's folder.
    """

    target: Target = "cpu"
    format: Format = "onnx"
    precision: str = "fp32"
    max_batch_size: int | None = None
    instances: int | None = None
    decoders: int | None = None
    preferred_batch_sizes: tuple[int, ...] = ()
    queue_delay: int = 0
    queue_size: int | None = None
    queue_timeout: int | None = None
    warm_up: bool = True
    accelerator: bool = False
    workspace: float | None = None
    engine_cache: str | None = None
    images: bool = True
    max_pixels: int = MAX_PIXELS
    response_cache: bool = False
    version: int = 1
    name: str | None = None

    def __post_init__(self) -> None:
        if self.target not in get_args(Target):
            raise UsageError(f"there is no target '{self.target}'; there are: {', '.join(get_args(Target))}")
        if self.format not in get_args(Format):
            raise UsageError(f"there is no format '{self.format}'; there are: {', '.join(get_args(Format))}")
        least = {"max_batch_size": 1, "instances": 1, "decoders": 1, "queue_delay": 0, "queue_size": 1}
        for name, smallest in {**least, "queue_timeout": 1, "max_pixels": 1, "version": 1}.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise UsageError(f"{name} is at least {smallest}, not {value}")
        if self.target == "cpu" and (self.format == "tensorrt" or self.accelerator):
            raise UsageError("TensorRT runs on GPUs; add --target gpu, or leave TensorRT out")
        if self.format == "tensorrt" and self.accelerator:
            raise UsageError(
                "plans are TensorRT's already; leave out --accelerator, or --format tensorrt to compile the graph"
            )
        if not self.accelerator and (self.workspace is not None or self.engine_cache is not None):
            raise UsageError("a workspace and an engine cache are TensorRT's inside ONNX Runtime; add --accelerator")
        if self.accelerator and self.precision not in ("fp32", "fp16"):
            raise UsageError(
                f"TensorRT inside ONNX Runtime computes in fp32 or fp16, not {self.precision}; take --precision fp16"
            )
        if self.preferred_batch_sizes and min(self.preferred_batch_sizes) < 1:
            raise UsageError(f"preferred batch sizes are positive, not {min(self.preferred_batch_sizes)}")
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise UsageError(
                f"'{self.name}' is no name for a model; take letters, digits, dots, dashes and underscores"
            )

    @property
    def batching(self) -> bool:
        """The server puts several requests into one batch."""
        return self.target == "gpu" or bool(self.preferred_batch_sizes) or self.queue_delay > 0 or self.bounded

    @property
    def bounded(self) -> bool:
        """The queue has a bound, in requests or in time."""
        return self.queue_size is not None or self.queue_timeout is not None


def fitted(settings: TritonSettings, bundle: Bundle) -> TritonSettings:
    """The settings for one bundle, with nothing left open.

    Raises:
        UsageError: settings that the bundle does not go with.
        EngineError: the bundle holds no such graph or plan.
    """
    manifest = bundle.manifest
    held = ("fp32", *manifest.precisions)
    if settings.precision not in held:
        raise EngineError(
            f"the bundle '{bundle.path}' holds no {settings.precision} graph, but {', '.join(held)}; "
            f"export it again with --precision {settings.precision}"
        )
    if settings.precision == "bf16" and settings.target == "cpu":
        raise UsageError(
            "ONNX Runtime has no bf16 operators for processors; take --target gpu, or --precision fp32 or int8"
        )
    plans = plans_of(settings, bundle)
    most = min((plan.batches[2] for found in plans.values() for plan in found.values()), default=None)
    chosen, ceiling, why = settings.max_batch_size, None, ""
    if most is not None:
        ceiling, why = (
            most,
            f"the bundle's plans take up to {most} images; build others with --batch-sizes 1,8,{chosen}",
        )
    elif manifest.splits:
        ceiling = manifest.batch
        why = f"more than {ceiling} images do not fit into the memory budget that the bundle was exported with"
    if chosen is not None and ceiling is not None and chosen > ceiling:
        raise UsageError(f"--max-batch-size {chosen} is too large: {why}")
    size = chosen or ceiling or (manifest.batch if settings.target == "cpu" else max(_GPU_BATCH, manifest.batch))
    if too_large := [one for one in settings.preferred_batch_sizes if one > size]:
        raise UsageError(
            f"a preferred batch of {max(too_large)} is larger than the largest batch, {size}; "
            f"raise --max-batch-size, or prefer smaller ones"
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return replace(
        settings,
        max_batch_size=size,
        instances=settings.instances or (cores if settings.target == "cpu" else 1),
        decoders=settings.decoders or min(cores, _MOST_DECODERS),
    )


def answers_of(bundle: Bundle) -> dict[Answer, str]:
    """What a bundle's models answer with, and how the name of each ends."""
    answers: dict[Answer, str] = {"mask": "", "probabilities": "_classifier"}
    return {**answers, "parts": "_parts"} if bundle.manifest.parts > 1 else answers


def plans_of(settings: TritonSettings, bundle: Bundle) -> Mapping[Answer, Mapping[str, PlanReport]]:
    """For each answer the bundle's plans by file; nothing where graphs are served.

    Raises:
        EngineError: an answer has none that Triton runs.
    """
    if settings.format == "onnx":
        return {}
    plans = {name: plan for name, plan in bundle.manifest.plans.items() if plan.precision == settings.precision}
    precision = "" if settings.precision == "fp32" else f" --precision {settings.precision}"
    build = f"on the server's GPU: saccade export --bundle {bundle.path} --format tensorrt{precision}"
    if not plans:
        raise EngineError(f"the bundle '{bundle.path}' holds no {settings.precision} TensorRT plan; build one {build}")
    found = {
        answer: {name: plan for name, plan in plans.items() if plan.answer == answer and plan.flavour == "tensorrt"}
        for answer in answers_of(bundle)
    }
    if missing := [answer for answer, chosen in found.items() if not chosen]:
        raise EngineError(
            f"Triton runs plans of TensorRT, and the bundle '{bundle.path}' holds none of them that gives "
            f"{missing[0]}, only of {', '.join(sorted({plan.flavour for plan in plans.values()}))}; build them {build}"
        )
    for chosen in found.values():
        for name, plan in chosen.items():
            if plan.batches[0] > 1:
                raise UsageError(
                    f"the plan '{name}' takes at least {plan.batches[0]} images, and requests have one; "
                    "build it again with --batch-sizes 1,8,32"
                )
    return found
