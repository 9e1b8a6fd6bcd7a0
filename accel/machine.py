"""What this machine is: for reports, and for settings that hold for machines of one class."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

__all__ = ["core_count", "machine", "machine_class", "tuning_key"]

_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx", "torch", "numpy")


def machine() -> dict[str, str | int]:
    """What numbers were measured on: the system, its processor, cores and the runtimes' versions."""
    found: dict[str, str | int] = {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": core_count(),
        "python": platform.python_version(),
    }
    for package in _RUNTIMES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine_class() -> str:
    """Machines with one processor and one number of cores, for which the same settings are best."""
    return f"{_processor()}, {core_count()} cores"


def tuning_key(precision: str) -> str:
    """What settings of a graph on machines like this one are kept under in a manifest."""
    return f"{machine_class()}, {precision}"


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as stream:
            for line in stream:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
