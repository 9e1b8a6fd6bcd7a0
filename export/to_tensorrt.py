"""TensorRT plans of a bundle's graphs, for a GPU that is here or, with TensorRT for RTX, for GPUs that are not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..accel.bundle import Bundle, file_sha256, write_manifest, write_whole
from ..accel.golden import ensure_golden, golden_precision
from ..accel.gpu import Gpu
from ..accel.graph_engine import Answer, answer_graph
from ..accel.manifest import FileEntry, Manifest, PlanReport
from ..accel.precision import graph_file
from ..accel.tensorrt_engine import MOST_TARGETS, TensorRTEngine
from ..accel.tensorrt_flavour import Flavour, load_flavour, messages_of
from ..errors import EngineError, OutOfMemory, OutputError, UsageError

__all__ = ["PlanConfig", "build_plan", "build_plans", "check_config"]

_GIVES = {"mask": "masks", "parts": "masks without a common pixel", "probabilities": "probabilities alone"}
_MOST_AREAS = 16
_FINER = 4  # times the mask's own height and width


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """How plans are built.

    Attributes:
        precision: of the graph, one that the bundle holds.
        flavour: ``"tensorrt"`` or ``"tensorrt_rtx"``; None takes the one that is installed.
        batches: images per call, at least, preferably (what kernels are chosen for) and at most.
        gpus: architectures such as ``"sm89"``, of TensorRT for RTX; empty for the GPU that is here.
        workspace: memory that a kernel may take for itself, GiB; None for all that there is.
        tf32: matrix products of single precision with 10 bits; faster, and far from the original.
        version_compatible: later versions of the same major version run the plan as well.
        refit: its weights can be replaced.
        timing_cache: file of kernels' timings, read and written, so that the next build is faster.
    """

    precision: str = "fp32"
    flavour: str | None = None
    batches: tuple[int, int, int] = (1, 8, 32)
    gpus: tuple[str, ...] = ()
    workspace: float | None = None
    tf32: bool = False
    version_compatible: bool = False
    refit: bool = False
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        least, best, most = self.batches
        if not 1 <= least <= best <= most:
            raise UsageError(f"batches are the least, the best and the most images, such as 1,8,32; not {self.batches}")
        if self.workspace is not None and self.workspace <= 0:
            raise UsageError(f"a workspace has more than 0 GiB, not {self.workspace}")


def build_plans(
    bundle: Bundle, config: PlanConfig, on_stage: Callable[[str, float], None] = lambda stage, done: None
) -> Bundle:
    """Build the plans of a graph and put them into its bundle: one that predicts and explains, and one that only
    predicts.

    All are built before the first is written, and the bundle is whole at every moment. Where the GPU is here, the plans
    are held against the golden samples.

    Args:
        bundle: an opened bundle.
        config: how.
        on_stage: told what is being done and which fraction of it is.

    Raises:
        EngineError: TensorRT does not take the graph (the message names the node), cannot build it, or there is no GPU
            to build for; the bundle is left as it was.
        OutOfMemory: there is too little memory to build it.
        ParityError: the plan does not compute what the original explainer computes.
        OutputError: the bundle cannot be written.
    """
    check_config(config)
    manifest = bundle.manifest
    if manifest.any_size:
        raise UsageError("TensorRT has no antialiased resizing; export the bundle without --any-size")
    if config.precision != "fp32" and config.precision not in manifest.precisions:
        held = ", ".join(("fp32", *manifest.precisions))
        raise EngineError(f"the bundle '{bundle.path}' holds no {config.precision} graph, but {held}")
    flavour = load_flavour(config.flavour)
    here = None if config.gpus else Gpu().architecture
    gpus = tuple(gpu.lower() for gpu in config.gpus) or (str(here),)
    graph = (bundle.path / graph_file(config.precision)).read_bytes()
    answers: tuple[Answer, ...] = ("mask", "probabilities", *(("parts",) if manifest.parts > 1 else ()))
    plans, reports = dict[str, bytes](), dict[str, PlanReport]()
    for answer in answers:
        name = f"explainer.{answer}.{config.precision}.{'-'.join(gpus)}.{flavour.name}.plan"
        plans[name] = build_plan(
            answer_graph(graph, answer, manifest.parts),
            bounds(manifest, config.batches),
            config,
            flavour,
            gpus=gpus if config.gpus else (),
            on_progress=partial(on_stage, f"building the plan that gives {_GIVES[answer]}"),
        )
        reports[name] = PlanReport(
            flavour=flavour.name,
            version=flavour.version,
            gpus=gpus,
            answer=answer,
            precision=config.precision,
            batches=config.batches,
            version_compatible=config.version_compatible,
            refit=config.refit,
        )
    written = _put(bundle, plans, reports)
    if here is None:
        return written
    on_stage("holding the plans against PyTorch's answers", 0.0)
    try:
        alone = manifest.model_copy(update={"plans": reports, "files": written.manifest.files})
        engine = TensorRTEngine(Bundle(bundle.path, alone), precision=config.precision, flavour=flavour.name)
        ensure_golden(engine, engine.identity)
        found = golden_precision(engine)
    except Exception:
        write_manifest(bundle.path, _without(manifest, set(plans)))
        for name in plans:
            (bundle.path / name).unlink(missing_ok=True)
        raise
    reports = {name: report.model_copy(update={"parity": found}) for name, report in reports.items()}
    return _put(written, {}, reports)


def check_config(config: PlanConfig) -> None:
    """Refuse what cannot be built, before anything is.

    Raises:
        UsageError: a setting that this flavour of TensorRT does not have, or int8.
        MissingDependencyError: it is not installed.
        EngineError: it builds for the GPU that is here, and there is none.
    """
    if config.precision == "int8":
        raise UsageError(
            "int8 graphs are quantised for processors, with zero points that TensorRT has not; "
            "take --precision fp16, which is what its GPUs are fastest in"
        )
    flavour = load_flavour(config.flavour)
    if not config.gpus:
        Gpu()
    if not flavour.ahead_of_time:
        if config.gpus:
            raise UsageError(
                f"{flavour.name} builds for the GPU that is here; leave out --gpu, or take --format tensorrt-rtx"
            )
        return
    lacks = {
        "--version-compatible": (config.version_compatible, "runs plans of its own version only"),
        "--timing-cache": (config.timing_cache is not None, "times kernels where the plan runs"),
        "--refit": (config.refit and bool(config.gpus), "compiles plans with weights to replace on their GPU only"),
    }
    for option, (asked, why) in lacks.items():
        if asked:
            raise UsageError(f"{flavour.name} {why}; leave out {option}")


def bounds(manifest: Manifest, batches: tuple[int, int, int]) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Of each input of a bundle's graph its shape at least, preferably and at most."""
    height, width = manifest.image.size
    several = manifest.several_targets
    found: dict[str, tuple[tuple[int, ...], ...]] = {
        "image": tuple((count, height, width, 3) for count in batches),
        "target": tuple(
            (count, targets) if several else (count,)
            for count, targets in zip(batches, (1, 1, MOST_TARGETS), strict=True)
        ),
    }
    if manifest.areas:
        own = len(manifest.areas)
        found["areas"] = ((1,), (own,), (max(own, _MOST_AREAS),))
        for name, length in zip(("rows", "columns"), manifest.mask_size, strict=True):
            found[name] = ((1,), (length,), (_FINER * length,))
    return found


def build_plan(
    graph: bytes,
    bounds: dict[str, tuple[tuple[int, ...], ...]],
    config: PlanConfig,
    flavour: Flavour,
    *,
    gpus: Sequence[str] = (),
    on_progress: Callable[[float], None] = lambda done: None,
) -> bytes:
    """Build the plan of one graph.

    Args:
        graph: a serialized ModelProto.
        bounds: of each input its shape at least, preferably and at most; those that the graph lacks do no harm.
        config: how.
        flavour: of TensorRT.
        gpus: architectures to build for ahead of time; empty for the GPU that is here.
        on_progress: told which fraction is done.

    Raises:
        EngineError: TensorRT does not take the graph, or cannot build it.
        OutOfMemory: there is too little memory.
    """
    trt = flavour.trt
    logger, errors = messages_of(flavour)
    builder = trt.Builder(logger)
    typed = trt.NetworkDefinitionCreationFlag
    network = builder.create_network(1 << int(typed.STRONGLY_TYPED) if hasattr(typed, "STRONGLY_TYPED") else 0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        raise EngineError(_parsers_reason(parser, flavour))
    settings = _settings(builder, network, bounds, config, flavour, gpus)
    settings.progress_monitor = _monitor(trt, on_progress)
    cache = _timing_cache(settings, config.timing_cache)
    plan = builder.build_serialized_network(network, settings)
    if plan is None or not plan.nbytes:
        raise _failure(errors, flavour, config)
    if cache is not None and config.timing_cache is not None:
        with contextlib.suppress(OSError):  # without it the next build takes as long as this one
            write_whole(config.timing_cache, bytes(settings.get_timing_cache().serialize()))
    return bytes(plan)


def _settings(
    builder: Any,
    network: Any,
    bounds: dict[str, tuple[tuple[int, ...], ...]],
    config: PlanConfig,
    flavour: Flavour,
    gpus: Sequence[str],
) -> Any:
    trt = flavour.trt
    settings = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        name = network.get_input(index).name
        profile.set_shape(name, *bounds[name])
    settings.add_optimization_profile(profile)
    if config.workspace is not None:
        settings.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(config.workspace * 2**30))
    flags = trt.BuilderFlag
    wanted = {"TF32": config.tf32, "VERSION_COMPATIBLE": config.version_compatible, "REFIT": config.refit}
    for flag, on in wanted.items():
        (settings.set_flag if on else settings.clear_flag)(getattr(flags, flag))
    if gpus:
        _set_gpus(settings, gpus, flavour)
    return settings


def _set_gpus(settings: Any, gpus: Sequence[str], flavour: Flavour) -> None:
    known = flavour.trt.ComputeCapability.__members__
    settings.num_compute_capabilities = len(gpus)
    for index, gpu in enumerate(gpus):
        if gpu.upper() not in known or not gpu.lower().startswith("sm"):
            names = ", ".join(name.lower() for name in known if name.startswith("SM"))
            raise UsageError(f"{flavour.name} {flavour.version} builds for {names}; not for '{gpu}'")
        settings.set_compute_capability(known[gpu.upper()], index)


def _timing_cache(settings: Any, path: Path | None) -> Any:
    """The timings of earlier builds, from which the next is faster; None if they are not kept."""
    if path is None:
        return None
    cache = settings.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not settings.set_timing_cache(cache, ignore_mismatch=False):
        raise UsageError(f"'{path}' holds timings of another GPU or version of TensorRT; name another file")
    return cache


def _monitor(trt: Any, on_stage: Callable[[float], None]) -> Any:
    """What TensorRT tells of its progress."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the module is found when it runs
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:  # the others are parts of it
                self.steps[phase_name] = max(1, num_steps)
                on_stage(0.0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self.steps:
                on_stage(min(1.0, (step + 1) / self.steps[phase_name]))
            return True

        def phase_finish(self, phase_name: str) -> None:
            if phase_name in self.steps:
                on_stage(1.0)

    return Monitor()


def _parsers_reason(parser: Any, flavour: Flavour) -> str:
    """What the parser does not take, by its node."""
    error = parser.get_error(0)
    node = f"node '{error.node_name()}' ({error.node_operator()})" if error.node_name() else "the graph"
    return (
        f"{flavour.name} {flavour.version} does not take {node}: {_sentence(error.desc())}; "
        "take ONNX Runtime (--engine onnx --provider cuda), another --method or --precision"
    )


def _failure(errors: Sequence[str], flavour: Flavour, config: PlanConfig) -> Exception:
    """Why nothing was built, by the node that TensorRT names, and what to try."""
    said = _sentence(next(reversed(errors), "no reason given"))
    memory = any(word in error.lower() for error in errors for word in ("out of memory", "outofmemory", "cudamalloc"))
    if memory:
        least, best, most = config.batches
        most = max(least, most // 4)
        fewer = f"{least},{min(max(least, best), most)},{most}"
        return OutOfMemory(
            f"there is too little memory to build the plan: {said}; try --batch-sizes {fewer}, or --workspace 1"
        )
    return EngineError(
        f"{flavour.name} {flavour.version} cannot build the plan: {said}; "
        "take ONNX Runtime (--engine onnx --provider cuda), another --method or --precision"
    )


def _sentence(text: str) -> str:
    return " ".join(str(text).split())[:400].rstrip(".")


def _put(bundle: Bundle, plans: dict[str, bytes], reports: dict[str, PlanReport]) -> Bundle:
    """Write plans into a bundle: what the manifest lists is there and unchanged, before, between and after."""
    manifest = bundle.manifest
    try:
        if replaced := set(plans) & set(manifest.plans):
            write_manifest(bundle.path, _without(manifest, replaced))
        for name, content in plans.items():
            write_whole(bundle.path / name, content)
        files = {
            name: FileEntry(sha256=file_sha256(bundle.path / name), bytes=len(content))
            for name, content in plans.items()
        }
        manifest = manifest.model_copy(
            update={"files": {**manifest.files, **files}, "plans": {**manifest.plans, **reports}}
        )
        write_manifest(bundle.path, manifest)
    except OSError as error:
        raise OutputError(f"cannot write into the bundle '{bundle.path}': {error.strerror or error}") from None
    return Bundle(bundle.path, manifest)


def _without(manifest: Manifest, names: set[str]) -> Manifest:
    return manifest.model_copy(
        update={
            "files": {name: entry for name, entry in manifest.files.items() if name not in names},
            "plans": {name: plan for name, plan in manifest.plans.items() if name not in names},
        }
    )
