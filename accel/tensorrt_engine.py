"""The TensorRT engine: a bundle's plans on an NVIDIA GPU, without PyTorch."""

from __future__ import annotations

import contextlib
import shlex
import threading
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EngineError
from .bundle import Bundle, write_whole
from .cache import cache_folder
from .gpu import Gpu
from .graph_engine import Answer, GraphEngine
from .manifest import PlanReport
from .plan_runner import PlanRunner
from .tensorrt_flavour import Flavour, installed_flavours, load_flavour, messages_of

__all__ = ["MOST_TARGETS", "TensorRTEngine", "choose_plan", "rebuild_command"]

MOST_TARGETS = 8
"""Classes of one image that a plan explains at once."""


class TensorRTEngine(GraphEngine):
    """Runs the plans that ``saccade export --format tensorrt`` put into a bundle; they are loaded when first needed.

    Args:
        bundle: an opened bundle.
        precision: of the graph that the plans were built from.
        flavour: ``"tensorrt"`` or ``"tensorrt_rtx"``; None takes that of a plan which runs here.
        graphs: replay shapes that come again as CUDA graphs.
        gpu: which one.

    Raises:
        EngineError: the bundle has no plan for this GPU, precision and version of TensorRT; the message has the command
            that builds it. Or there is no GPU.
        MissingDependencyError: TensorRT or CUDA's bindings are not installed.
    """

    name = "tensorrt"

    def __init__(
        self, bundle: Bundle, *, precision: str = "fp32", flavour: str | None = None, graphs: bool = True, gpu: int = 0
    ) -> None:
        super().__init__(bundle, precision)
        if flavour is None and not installed_flavours():
            load_flavour()  # says how to install one
        self._gpu = Gpu(gpu)
        self._graphs = graphs
        names = installed_flavours() if flavour is None else (flavour,)
        flavours = [load_flavour(name) for name in names]
        self._file_name, self._flavour = choose_plan(bundle, "mask", precision, self._gpu.architecture, flavours)
        self._runners: dict[str, PlanRunner] = {}
        self._kept: list[Any] = []  # TensorRT's objects, which must live as long as what was made from them
        self._compiled: dict[Path, Any] = {}
        weakref.finalize(self, _keep_compiled, self._compiled, self._gpu)
        self._lock = threading.Lock()  # of buffers and streams, which all requests share
        if self.most_targets is None:
            self.most_targets = MOST_TARGETS
        self.most_images = self._plan.batches[2]

    @property
    def identity(self) -> str:
        """Flavour, version, GPU and precision: what a cached golden pass holds for."""
        return f"{self._flavour.name} {self._flavour.version} {self._gpu.architecture} {self.precision}"

    @property
    def _plan(self) -> PlanReport:
        return self.bundle.manifest.plans[self._file_name]

    def _answers(self, what: Answer, feeds: dict[str, Any]) -> dict[str, Any]:
        return next(self._answers_each(what, [feeds]))

    def _answers_each(self, what: Answer, requests: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        self._gpu.use()
        runner, least = self._open(what), self._plan.batches[0]
        counts = []

        def padded() -> Iterator[dict[str, Any]]:
            for feeds in requests:
                counts.append(len(feeds["image"]))
                yield _padded(feeds, least)

        with self._lock:
            for answers in runner.run_each(padded()):
                count = counts.pop(0)
                yield {name: value[:count] for name, value in answers.items()}

    def _open(self, what: Answer) -> PlanRunner:
        """The plan that gives the masks, the parts, or the probabilities alone; loaded when first needed."""
        if what in self._runners:
            return self._runners[what]
        name, _ = choose_plan(self.bundle, what, self.precision, self._gpu.architecture, [self._flavour])
        trt = self._flavour.trt
        logger, errors = messages_of(self._flavour)
        runtime = trt.Runtime(logger)
        if self.bundle.manifest.plans[name].version_compatible:
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine((self.bundle.path / name).read_bytes())
        if engine is None:
            raise EngineError(
                f"{self._flavour.name} {self._flavour.version} cannot load '{self.bundle.path / name}': "
                f"{errors[-1] if errors else 'no reason given'}; build it again: "
                f"{rebuild_command(self.bundle, self.precision, self._flavour.name)}"
            )
        config = self._compiled_kernels(engine, name)
        graphs = self._graphs and config is None  # TensorRT for RTX makes them itself
        self._runners[what] = PlanRunner(trt, engine, self._gpu, graphs=graphs, config=config)
        self._kept += [logger, runtime, engine, config]
        return self._runners[what]

    def _compiled_kernels(self, engine: Any, name: str) -> Any:
        """TensorRT for RTX compiles for the GPU that it finds, and what it compiled is kept on this machine; None where
        TensorRT compiled everything when it built the plan.
        """
        if not hasattr(engine, "create_runtime_config"):
            return None
        config = engine.create_runtime_config()
        if not hasattr(config, "create_runtime_cache"):
            return None
        if self._graphs:
            config.cuda_graph_strategy = self._flavour.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        cache = config.create_runtime_cache()
        sha = self.bundle.manifest.files[name].sha256
        path = cache_folder("kernels") / f"{sha[:16]}-{self._gpu.architecture}-{self._flavour.version}"
        if path.is_file():
            cache.deserialize(path.read_bytes())
        config.set_runtime_cache(cache)
        self._compiled[path] = cache
        return config


def _keep_compiled(compiled: dict[Path, Any], gpu: Gpu) -> None:
    """Write what TensorRT for RTX compiled where the next engine finds it."""
    for path, cache in compiled.items():
        with contextlib.suppress(Exception):  # a machine without a writable cache compiles again next time
            gpu.use()
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, bytes(cache.serialize()))


def choose_plan(bundle: Bundle, what: Answer, precision: str, gpu: str, flavours: list[Flavour]) -> tuple[str, Flavour]:
    """The plan of a bundle that runs here.

    Args:
        bundle: an opened bundle.
        what: the plan gives.
        precision: of its graph.
        gpu: architecture of the GPU that is here.
        flavours: that are installed, the preferred one first.

    Returns:
        Its file's name, and the flavour that runs it.

    Raises:
        EngineError: there is none; the message says what the plans are for, and the command that builds one.
    """
    plans = {name: plan for name, plan in bundle.manifest.plans.items() if plan.precision == precision}
    for flavour in flavours:
        for name, plan in plans.items():
            if plan.answer == what and not _foreign(plan, flavour, gpu):
                return name, flavour
    command = rebuild_command(bundle, precision, flavours[0].name)
    by_name = {flavour.name: flavour for flavour in flavours}
    reasons = [
        f"'{name}' is {_foreign(plan, by_name.get(plan.flavour, flavours[0]), gpu)}"
        for name, plan in plans.items()
        if plan.answer == what
    ]
    found = "; ".join(reasons) or f"it has none of {precision} that gives {what}"
    raise EngineError(f"the bundle '{bundle.path}' has no TensorRT plan that runs here: {found}; build one: {command}")


def rebuild_command(bundle: Bundle, precision: str, flavour: str) -> str:
    """The command that builds a bundle's plans on the machine where it is given."""
    if precision == "int8":
        precision = "fp16"  # TensorRT takes no graphs that are quantised for processors
    options = "" if precision == "fp32" else f" --precision {precision}"
    return f"saccade export --bundle {shlex.quote(str(bundle.path))} --format {flavour.replace('_', '-')}{options}"


def _foreign(plan: PlanReport, flavour: Flavour, gpu: str) -> str:
    """Why a plan does not run here; empty if it does."""
    if plan.flavour != flavour.name:
        return f"for {plan.flavour}, and here is {flavour.name}"
    if gpu not in plan.gpus:
        return f"for GPUs of {', '.join(plan.gpus)}, and here is {gpu}"
    same_major = plan.version.split(".")[0] == flavour.version.split(".")[0]
    later = _numbers(flavour.version) >= _numbers(plan.version)
    if plan.version != flavour.version and not (plan.version_compatible and same_major and later):
        return f"of {plan.flavour} {plan.version}, and here is {flavour.version}"
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _padded(feeds: dict[str, Any], least: int) -> dict[str, Any]:
    """At least so many images: the last one again and again."""
    missing = least - len(feeds["image"])
    if missing <= 0:
        return feeds
    last = {name: feeds[name][-1:] for name in ("image", "target") if name in feeds}
    return {**feeds, **{name: np.concatenate([feeds[name], *[one] * missing]) for name, one in last.items()}}
