"""The engines on a real GPU: ONNX Runtime with bound buffers and CUDA graphs, and TensorRT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from saccade.accel.bundle import open_bundle
from saccade.accel.engines import open_engine
from saccade.accel.gpu import Gpu, free_bytes
from saccade.accel.onnx_engine import OnnxEngine
from saccade.accel.tensorrt_engine import TensorRTEngine
from saccade.accel.tensorrt_flavour import installed_flavours
from saccade.errors import EngineError
from saccade.export.to_tensorrt import PlanConfig, build_plans

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
with_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" not in ort.get_available_providers(), reason="needs onnxruntime-gpu"
)
with_tensorrt = pytest.mark.skipif(not installed_flavours(), reason="needs tensorrt or tensorrt-rtx")
COUNTS = (8, 1, 3, 8, 8, 3, 1, 1, 8, 5)  # shapes that come again, and others between


def assert_as_on_a_processor(engine: OnnxEngine | TensorRTEngine) -> None:
    reference, images = OnnxEngine(engine.bundle, threads=2), engine.bundle.golden.images
    for number, count in enumerate(COUNTS):
        chosen = np.roll(images, number, 0)[:count]
        found, wanted = engine.run(chosen, 2), reference.run(chosen, 2)
        np.testing.assert_allclose(found.mask, wanted.mask, atol=1e-4)
        np.testing.assert_allclose(found.probabilities, wanted.probabilities, atol=1e-4)
        np.testing.assert_array_equal(found.target, wanted.target)
        np.testing.assert_allclose(engine.probabilities(chosen), wanted.probabilities, atol=1e-4)


@with_cuda
@pytest.mark.parametrize("graphs", ["0", "1"])
def test_onnx_runtime_answers_as_on_a_processor(tiny_bundle_kept: Path, graphs: str) -> None:
    options = {"cuda": {"enable_cuda_graph": graphs}}
    engine = open_engine(tiny_bundle_kept, providers=["cuda"], provider_options=options)
    assert isinstance(engine, OnnxEngine)
    assert_as_on_a_processor(engine)


@with_tensorrt
@pytest.mark.parametrize("graphs", [False, True])
def test_tensorrt_answers_as_on_a_processor(tiny_bundle: Path, graphs: bool) -> None:
    try:
        bundle = build_plans(open_bundle(tiny_bundle), PlanConfig(batches=(1, 2, 4)))
    except EngineError as error:
        if "tensorrt_rtx" in installed_flavours():
            pytest.skip(f"TensorRT for RTX does not know this GPU: {error}")
        raise
    assert all(plan.parity is not None for plan in bundle.manifest.plans.values())
    assert_as_on_a_processor(TensorRTEngine(open_bundle(tiny_bundle), graphs=graphs))


def test_what_is_copied_to_the_gpu_comes_back() -> None:
    gpu = Gpu()
    stream, address = gpu.stream(), gpu.allocate(1 << 20)
    there, back = gpu.pinned(1 << 20), gpu.pinned(1 << 20)
    there[:] = np.random.default_rng(0).integers(0, 256, 1 << 20, dtype=np.uint8)

    def copies() -> None:
        gpu.copy_in(address, there, 1 << 20, stream)
        gpu.copy_out(back, address, 1 << 20, stream)

    copies()
    gpu.wait(stream)
    np.testing.assert_array_equal(back, there)
    graph = gpu.record(stream, copies)
    there[:] = there[::-1].copy()
    gpu.launch(graph, stream)
    gpu.wait(stream)
    np.testing.assert_array_equal(back, there)
    before = free_bytes()
    gpu.free(address)
    assert before is not None
    assert (free_bytes() or 0) >= before
    assert gpu.architecture == "sm{}{}".format(*torch.cuda.get_device_capability())
