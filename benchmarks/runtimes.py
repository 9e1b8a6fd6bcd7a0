"""Runtimes besides ONNX Runtime that a graph must load in: OpenVINO, which computes, and TensorRT for RTX, which builds
its engines ahead of time without a GPU.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from saccade.accel.tensorrt_flavour import load_flavour
from saccade.contracts import Floats, Uint8
from saccade.errors import SaccadeError
from saccade.export.to_tensorrt import PlanConfig, build_plan

__all__ = ["in_onnxruntime", "in_openvino", "tensorrt_refusal"]


def in_onnxruntime(path: Path, images: Uint8, target: NDArray[np.int64], batch: int) -> tuple[Floats, Floats]:
    """Probabilities and masks by ONNX Runtime on the CPU."""
    import onnxruntime as ort

    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    parts = [
        session.run(
            ["probabilities", "mask"],
            {"image": images[start : start + batch], "target": target[start : start + batch]},
        )
        for start in range(0, len(images), batch)
    ]
    probabilities, masks = (np.concatenate(column) for column in zip(*parts, strict=True))
    return probabilities, masks


def in_openvino(path: Path, images: Uint8, target: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Probabilities and masks by OpenVINO on the CPU, in float32 (its own choice is bfloat16)."""
    import openvino

    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answers = model({"image": images, "target": target})
    return answers["probabilities"], answers["mask"]


def tensorrt_refusal(graph: Path | bytes, batches: tuple[int, int, int] = (1, 2, 8)) -> str:
    """Why TensorRT for RTX builds no plan of a graph for GPUs of compute capability 8.0 and 8.9; empty if it does."""
    content = graph if isinstance(graph, bytes) else graph.read_bytes()
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in onnx.load_from_string(content).graph.input
    }
    bounds = {
        name: tuple(tuple(length or batch for length in shape) for batch in batches) for name, shape in shapes.items()
    }
    try:
        build_plan(content, bounds, PlanConfig(), load_flavour("tensorrt_rtx"), gpus=("sm80", "sm89"))
    except SaccadeError as error:
        return str(error)
    return ""
