"""Runtimes besides ONNX Runtime that a graph must load in: OpenVINO, which computes, and TensorRT for RTX, which builds
its engines ahead of time without a GPU.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from saccade.contracts import Floats, Uint8

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


def tensorrt_refusal(path: Path, batches: tuple[int, int, int] = (1, 2, 8)) -> str:
    """Why TensorRT for RTX builds no engine of a graph for GPUs of compute capability 8.0 and 8.9; empty if it does."""
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        return str(parser.get_error(0)).splitlines()[0]
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        profile.set_shape(
            tensor.name, *[tuple(batch if length == -1 else length for length in tensor.shape) for batch in batches]
        )
    config.add_optimization_profile(profile)
    capabilities = (trt.ComputeCapability.SM80, trt.ComputeCapability.SM89)
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        config.set_compute_capability(capability, index)
    engine = builder.build_serialized_network(network, config)
    return "" if engine is not None and engine.nbytes else "the builder gives no engine"
