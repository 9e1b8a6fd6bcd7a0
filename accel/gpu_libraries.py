"""What a machine lacks to run ONNX Runtime or TensorRT on its GPU, library by library."""

from __future__ import annotations

import ctypes
import importlib.util
import platform
from dataclasses import dataclass

import onnxruntime as ort

__all__ = ["Library", "gpu_libraries"]

_CUDNN = 9
_DEFAULT_CUDA = 12


@dataclass(frozen=True)
class Library:
    """One that is needed.

    Attributes:
        name: of the file.
        purpose: what needs it.
        found: it loads.
        remedy: what to do where it does not.
    """

    name: str
    purpose: str
    found: bool
    remedy: str


def gpu_libraries() -> list[Library]:
    """The driver, CUDA's libraries and cuDNN in the installed ONNX Runtime's version, and TensorRT.

    Those that came as Python packages count as well. Empty on systems without NVIDIA's libraries.
    """
    if platform.system() != "Linux":
        return []
    major = _cuda_major()
    if "CUDAExecutionProvider" in ort.get_available_providers():
        ort.preload_dlls()
    driver = "install NVIDIA's driver"
    cuda = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
    needed = (
        ("libcuda.so.1", "everything", driver),
        (f"libcudart.so.{major}", "ONNX Runtime's provider cuda", cuda),
        (f"libcublasLt.so.{major}", "ONNX Runtime's provider cuda", cuda),
        (f"libcudnn.so.{_CUDNN}", "ONNX Runtime's provider cuda", cuda),
    )
    libraries = [Library(name, purpose, _loads(name), remedy) for name, purpose, remedy in needed]
    tensorrt = any(importlib.util.find_spec(module) for module in ("tensorrt", "tensorrt_rtx"))
    return [
        *libraries,
        Library("tensorrt or tensorrt_rtx", "engine tensorrt", tensorrt, "pip install 'saccade[tensorrt]'"),
        Library(
            "cuda.bindings",
            "engine tensorrt",
            importlib.util.find_spec("cuda") is not None,
            "pip install 'saccade[tensorrt]'",
        ),
        Library(
            "onnxruntime-gpu",
            "ONNX Runtime's provider cuda",
            "CUDAExecutionProvider" in ort.get_available_providers(),
            "pip uninstall onnxruntime, and then pip install 'onnxruntime-gpu[cuda,cudnn]'",
        ),
    ]


def _cuda_major() -> int:
    """Of the CUDA that the installed ONNX Runtime was built for; without one, of the oldest that is still in use."""
    version = str(getattr(ort, "cuda_version", "") or "")
    head = version.partition(".")[0]
    return int(head) if head.isdigit() else _DEFAULT_CUDA


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
