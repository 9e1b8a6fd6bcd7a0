"""TensorRT in its two flavours, which share one Python interface: for data-centre GPUs, and for RTX GPUs."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

from ..errors import MissingDependencyError, UsageError, require, suggest

__all__ = ["FLAVOURS", "Flavour", "installed_flavours", "load_flavour", "messages_of"]

FLAVOURS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}  # module and extra


@dataclass(frozen=True)
class Flavour:
    """One of them, imported.

    Attributes:
        name: of the module.
        trt: the module.
    """

    name: str
    trt: Any

    @property
    def version(self) -> str:
        """Of the package."""
        return str(self.trt.__version__)

    @property
    def ahead_of_time(self) -> bool:
        """It builds for GPUs that are not there."""
        return hasattr(self.trt, "ComputeCapability")


def installed_flavours() -> tuple[str, ...]:
    """Names of the flavours that are installed."""
    return tuple(name for name in FLAVOURS if importlib.util.find_spec(name) is not None)


def load_flavour(name: str | None = None) -> Flavour:
    """Import a flavour.

    Args:
        name: of its module; None takes the one that is installed, that for data-centre GPUs first.

    Raises:
        UsageError: there is no such flavour.
        MissingDependencyError: it is not installed.
    """
    if name is not None and name not in FLAVOURS:
        raise UsageError(f"there is no TensorRT called '{name}'; {suggest(name, list(FLAVOURS))}")
    installed = installed_flavours()
    if name is None and not installed:
        raise MissingDependencyError(
            "TensorRT is not installed; install it with: pip install 'saccade[tensorrt]', and for RTX GPUs with: "
            "pip install 'saccade[tensorrt-rtx]'"
        )
    chosen = name or installed[0]
    return Flavour(chosen, require(chosen, extra=FLAVOURS[chosen], purpose="TensorRT plans"))


def messages_of(flavour: Flavour) -> tuple[Any, list[str]]:
    """A logger that prints nothing, and the errors that it is told."""
    trt: Any = flavour.trt
    errors: list[str] = []

    class Collector(trt.ILogger):  # type: ignore[misc]  # the module is found when it runs
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                errors.append(message)

    return Collector(), errors
