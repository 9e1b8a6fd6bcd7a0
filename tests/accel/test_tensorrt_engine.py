"""The TensorRT engine on a simulated GPU: what is copied when, what is replayed, and which plans are refused."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated_gpu import SimulatedGpu, SimulatedTensorRT

from saccade.accel import tensorrt_engine
from saccade.accel.bundle import Bundle, file_sha256, open_bundle
from saccade.accel.graph_engine import Answer, answer_graph
from saccade.accel.manifest import FileEntry, PlanReport
from saccade.accel.onnx_engine import OnnxEngine
from saccade.accel.plan_runner import PlanRunner
from saccade.accel.tensorrt_engine import TensorRTEngine, choose_plan
from saccade.accel.tensorrt_flavour import Flavour
from saccade.errors import EngineError, UsageError

PLAN = PlanReport(
    flavour="tensorrt",
    version="10.8.0",
    gpus=("sm89",),
    answer="mask",
    precision="fp32",
    batches=(1, 2, 4),
)


@pytest.fixture
def gpu() -> SimulatedGpu:
    return SimulatedGpu()


@pytest.fixture
def runner(tiny_bundle_kept: Path, gpu: SimulatedGpu) -> PlanRunner:
    trt = SimulatedTensorRT(gpu)
    graph = (tiny_bundle_kept / "explainer.onnx").read_bytes()
    return PlanRunner(trt, trt.deserialize_cuda_engine(graph), gpu)  # type: ignore[arg-type]


def requests(rng: np.random.Generator, *counts: int) -> list[dict[str, Any]]:
    return [
        {
            "image": rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8),
            "target": rng.integers(-1, 4, count, dtype=np.int64),
        }
        for count in counts
    ]


def expected(bundle: Path, feeds: dict[str, Any]) -> dict[str, Any]:
    return OnnxEngine(open_bundle(bundle), threads=1)._answers("mask", feeds)


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_allclose(found[name], value, atol=1e-6)


def test_requests_of_any_shape_come_back_in_order(
    runner: PlanRunner, tiny_bundle_kept: Path, rng: np.random.Generator
) -> None:
    asked = requests(rng, 3, 1, 4, 4, 2, 4, 1, 4, 3, 4, 4, 1)
    found = list(runner.run_each(iter(asked)))
    for feeds, answers in zip(asked, found, strict=True):
        assert_same(answers, expected(tiny_bundle_kept, feeds))


def test_two_requests_are_in_flight(runner: PlanRunner, gpu: SimulatedGpu, rng: np.random.Generator) -> None:
    list(runner.run_each(requests(rng, 2, 2, 2, 2)))
    assert gpu.most_waiting == 2


def test_shapes_that_come_again_are_replayed(
    runner: PlanRunner, gpu: SimulatedGpu, tiny_bundle_kept: Path, rng: np.random.Generator
) -> None:
    for number, feeds in enumerate(requests(rng, 2, 2, 2, 2, 2)):
        assert_same(runner.run(feeds), expected(tiny_bundle_kept, feeds))
        assert gpu.launched == max(0, number - 1)


def test_a_replay_survives_requests_of_other_shapes(
    runner: PlanRunner, gpu: SimulatedGpu, tiny_bundle_kept: Path, rng: np.random.Generator
) -> None:
    for feeds in requests(rng, 1, 1, 1, 4, 1, 2, 4, 4, 3, 1, 4, 2, 1, 4):
        assert_same(runner.run(feeds), expected(tiny_bundle_kept, feeds))
    assert gpu.launched > 4


def test_without_graphs_nothing_is_replayed(
    tiny_bundle_kept: Path, gpu: SimulatedGpu, rng: np.random.Generator
) -> None:
    trt = SimulatedTensorRT(gpu)
    engine = trt.deserialize_cuda_engine((tiny_bundle_kept / "explainer.onnx").read_bytes())
    plain = PlanRunner(trt, engine, gpu, graphs=False)  # type: ignore[arg-type]
    for feeds in requests(rng, 2, 2, 2, 2):
        assert_same(plain.run(feeds), expected(tiny_bundle_kept, feeds))
    assert gpu.launched == 0
    assert engine.contexts == 2, "one for each request in flight"


def test_answers_are_not_overwritten_by_the_next_request(runner: PlanRunner, rng: np.random.Generator) -> None:
    first, second = requests(rng, 2, 2)
    answers = runner.run(first)
    kept = {name: value.copy() for name, value in answers.items()}
    runner.run(second)
    for name, value in kept.items():
        np.testing.assert_array_equal(answers[name], value)


def test_whoever_stops_listening_leaves_no_work_behind(
    runner: PlanRunner, gpu: SimulatedGpu, tiny_bundle_kept: Path, rng: np.random.Generator
) -> None:
    answers = runner.run_each(requests(rng, 2, 3, 4))
    next(answers)
    answers.close()
    assert not any(gpu.queues.values())
    (feeds,) = requests(rng, 3)
    assert_same(runner.run(feeds), expected(tiny_bundle_kept, feeds))


def test_a_shape_outside_the_profile_is_refused(runner: PlanRunner, rng: np.random.Generator) -> None:
    with pytest.raises(UsageError, match=r"takes 'image' from \(1, 32, 32, 3\) to \(4, 32, 32, 3\), not \(5,"):
        runner.run(requests(rng, 5)[0])


@pytest.fixture
def planned(tiny_bundle: Path) -> Bundle:
    """A bundle with plans for the simulated TensorRT."""
    bundle = open_bundle(tiny_bundle)
    graph = (tiny_bundle / "explainer.onnx").read_bytes()
    answers: tuple[Answer, ...] = ("mask", "probabilities")
    plans = {f"{answer}.plan": PLAN.model_copy(update={"answer": answer}) for answer in answers}
    for answer in answers:
        (tiny_bundle / f"{answer}.plan").write_bytes(answer_graph(graph, answer, 1))
    files = {name: FileEntry(sha256=file_sha256(tiny_bundle / name), bytes=1) for name in plans}
    manifest = bundle.manifest.model_copy(update={"plans": plans, "files": {**bundle.manifest.files, **files}})
    return replace(bundle, manifest=manifest)


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch, gpu: SimulatedGpu) -> SimulatedTensorRT:
    trt = SimulatedTensorRT(gpu)
    monkeypatch.setattr(tensorrt_engine, "Gpu", lambda index: gpu)
    monkeypatch.setattr(tensorrt_engine, "installed_flavours", lambda: ("tensorrt",))
    monkeypatch.setattr(tensorrt_engine, "load_flavour", lambda name: Flavour(name, trt))
    return trt


def test_the_engine_answers_as_onnx_runtime_does(planned: Bundle, simulated: SimulatedTensorRT) -> None:
    engine, reference = TensorRTEngine(planned), OnnxEngine(planned, threads=1)
    images = planned.golden.images
    assert len(images) == 8, "more than the plan takes at once"
    found, wanted = engine.run(images, 2), reference.run(images, 2)
    np.testing.assert_allclose(found.mask, wanted.mask, atol=1e-6)
    np.testing.assert_array_equal(found.target, wanted.target)
    np.testing.assert_allclose(engine.probabilities(images[:7]), reference.probabilities(images[:7]), atol=1e-6)
    assert "10.8.0 sm89 fp32" in engine.identity


def test_fewer_images_than_the_plan_takes_are_filled_up(planned: Bundle, simulated: SimulatedTensorRT) -> None:
    plans = {name: plan.model_copy(update={"batches": (3, 4, 4)}) for name, plan in planned.manifest.plans.items()}
    simulated.batches = (3, 4, 4)
    bundle = replace(planned, manifest=planned.manifest.model_copy(update={"plans": plans}))
    engine, images = TensorRTEngine(bundle), planned.golden.images[:1]
    found = engine.run(images)
    assert found.mask.shape[0] == found.probabilities.shape[0] == 1
    np.testing.assert_allclose(found.mask, OnnxEngine(planned, threads=1).run(images).mask, atol=1e-6)


def test_a_plan_that_cannot_be_recorded_runs_without_a_graph(
    runner: PlanRunner,
    gpu: SimulatedGpu,
    tiny_bundle_kept: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(stream: int, work: object) -> None:
        raise EngineError("operation not permitted when stream is capturing")

    monkeypatch.setattr(gpu, "record", refuses)
    for feeds in requests(rng, 2, 2, 2, 2):
        assert_same(runner.run(feeds), expected(tiny_bundle_kept, feeds))


def test_a_runner_that_is_no_more_gives_its_memory_back(
    tiny_bundle_kept: Path, gpu: SimulatedGpu, rng: np.random.Generator
) -> None:
    trt = SimulatedTensorRT(gpu)
    engine = trt.deserialize_cuda_engine((tiny_bundle_kept / "explainer.onnx").read_bytes())
    one = PlanRunner(trt, engine, gpu)  # type: ignore[arg-type]
    list(one.run_each(requests(rng, 2, 2, 2, 2, 1)))
    assert gpu.memory
    del one
    gc.collect()
    assert not gpu.memory


def flavour(version: str, name: str = "tensorrt") -> Flavour:
    module = type("trt", (), {"__version__": version})
    return Flavour(name, module)


@pytest.mark.parametrize(
    ("gpu_here", "here", "reason"),
    [
        ("sm90", flavour("10.8.0"), "for GPUs of sm89, and here is sm90"),
        ("sm89", flavour("10.9.0"), "of tensorrt 10.8.0, and here is 10.9.0"),
        ("sm89", flavour("1.7.1", "tensorrt_rtx"), "for tensorrt, and here is tensorrt_rtx"),
    ],
)
def test_a_foreign_plan_is_refused_with_the_command_that_builds_one(
    planned: Bundle, gpu_here: str, here: Flavour, reason: str
) -> None:
    with pytest.raises(EngineError) as caught:
        choose_plan(planned, "mask", "fp32", gpu_here, [here])
    assert reason in str(caught.value)
    assert f"saccade export --bundle {planned.path} --format {here.name.replace('_', '-')}" in str(caught.value)


@pytest.mark.parametrize(
    ("version", "runs"), [("10.8.0", True), ("10.9.1", True), ("10.10.0", True), ("10.7.0", False), ("11.0.0", False)]
)
def test_a_version_compatible_plan_runs_in_later_versions_of_its_major(
    planned: Bundle, version: str, runs: bool
) -> None:
    plans = {"mask.plan": PLAN.model_copy(update={"version_compatible": True})}
    bundle = replace(planned, manifest=planned.manifest.model_copy(update={"plans": plans}))
    if runs:
        assert choose_plan(bundle, "mask", "fp32", "sm89", [flavour(version)])[0] == "mask.plan"
    else:
        with pytest.raises(EngineError, match=r"of tensorrt 10\.8\.0"):
            choose_plan(bundle, "mask", "fp32", "sm89", [flavour(version)])


def test_a_bundle_without_plans_names_the_command(planned: Bundle) -> None:
    bundle = replace(planned, manifest=planned.manifest.model_copy(update={"plans": {}}))
    with pytest.raises(EngineError, match=r"none of fp32 that gives mask.*--format tensorrt"):
        choose_plan(bundle, "mask", "fp32", "sm89", [flavour("10.8.0")])
