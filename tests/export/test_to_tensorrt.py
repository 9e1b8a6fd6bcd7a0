"""TensorRT plans, built ahead of time by the real TensorRT for RTX, which needs no GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import tensorrt_rtx
from onnx import TensorProto, helper

from saccade.accel.bundle import Bundle, open_bundle
from saccade.accel.engines import open_engine
from saccade.accel.tensorrt_engine import choose_plan
from saccade.accel.tensorrt_flavour import load_flavour
from saccade.errors import EngineError, OutOfMemory, OutputError, ParityError, UsageError
from saccade.export import to_tensorrt
from saccade.export.to_tensorrt import PlanConfig, build_plan, build_plans

AHEAD = PlanConfig(flavour="tensorrt_rtx", gpus=("sm80", "sm89"))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_plans_go_into_the_bundle_with_all_that_says_where_they_run(tiny_bundle: Path) -> None:
    before = content(tiny_bundle)
    stages: dict[str, list[float]] = {}
    config = PlanConfig(flavour="tensorrt_rtx", gpus=("sm80", "sm89"), batches=(1, 4, 16))
    build_plans(open_bundle(tiny_bundle), config, lambda stage, done: stages.setdefault(stage, []).append(done))
    bundle = open_bundle(tiny_bundle)  # every hash
    assert {plan.answer for plan in bundle.manifest.plans.values()} == {"mask", "probabilities"}
    for name, plan in bundle.manifest.plans.items():
        assert plan.flavour == "tensorrt_rtx"
        assert plan.version == tensorrt_rtx.__version__
        assert plan.gpus == ("sm80", "sm89")
        assert plan.batches == (1, 4, 16)
        assert plan.parity is None, "there was no GPU to hold it against PyTorch on"
        assert bundle.manifest.files[name].bytes == (tiny_bundle / name).stat().st_size > 10_000
    assert len(stages) == 2
    for fractions in stages.values():
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1.0
        assert len(fractions) > 3
    for name, old in before.items():
        if name != "manifest.json":
            assert (tiny_bundle / name).read_bytes() == old
    open_engine(tiny_bundle, threads=1)


def test_the_plan_that_predicts_only_has_no_explainer_in_it(tiny_bundle: Path) -> None:
    manifest = build_plans(open_bundle(tiny_bundle), AHEAD).manifest
    sizes = {plan.answer: manifest.files[name].bytes for name, plan in manifest.plans.items()}
    assert sizes["probabilities"] < sizes["mask"]


def test_a_plan_for_another_gpu_or_version_is_refused(tiny_bundle: Path) -> None:
    bundle, here = build_plans(open_bundle(tiny_bundle), AHEAD), load_flavour("tensorrt_rtx")
    assert choose_plan(bundle, "mask", "fp32", "sm80", [here])[0] in bundle.manifest.plans
    with pytest.raises(EngineError, match=r"GPUs of sm80, sm89, and here is sm120.*--format tensorrt-rtx"):
        choose_plan(bundle, "mask", "fp32", "sm120", [here])
    plans = {name: plan.model_copy(update={"version": "1.6.0.1"}) for name, plan in bundle.manifest.plans.items()}
    older = type(bundle)(bundle.path, bundle.manifest.model_copy(update={"plans": plans}))
    with pytest.raises(EngineError, match=r"of tensorrt_rtx 1\.6\.0\.1, and here is"):
        choose_plan(older, "mask", "fp32", "sm80", [here])


def test_plans_that_fail_on_their_gpu_go_and_leave_a_bundle_that_opens(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that computes another map, as far as it can be had without one."""

    class Wrong:
        identity = "a wrong GPU"

        def __init__(self, bundle: Bundle, **settings: str) -> None:
            assert len(bundle.manifest.plans) == 2, "just those that were built are asked"
            raise ParityError("another map")

    def ahead(*given: Any, **options: Any) -> bytes:
        return build_plan(*given, **{**options, "gpus": ("sm89",)})

    monkeypatch.setattr(to_tensorrt, "Gpu", lambda: SimpleNamespace(architecture="sm89"))
    monkeypatch.setattr(to_tensorrt, "TensorRTEngine", Wrong)
    monkeypatch.setattr(to_tensorrt, "build_plan", ahead)
    other = build_plans(open_bundle(tiny_bundle), AHEAD).manifest.plans
    for _ in range(2):  # the second finds nothing of the first
        with pytest.raises(ParityError, match="another map"):
            build_plans(open_bundle(tiny_bundle), PlanConfig(flavour="tensorrt_rtx"))
        assert open_bundle(tiny_bundle).manifest.plans == other


def test_building_again_replaces_the_plans(tiny_bundle: Path) -> None:
    first = build_plans(open_bundle(tiny_bundle), AHEAD)
    config = PlanConfig(flavour="tensorrt_rtx", gpus=("sm80", "sm89"), batches=(2, 2, 2))
    build_plans(first, config)
    again = open_bundle(tiny_bundle)
    assert len(again.manifest.plans) == 2
    assert {plan.batches for plan in again.manifest.plans.values()} == {(2, 2, 2)}


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_a_bundle_that_opens(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    first = build_plans(open_bundle(tiny_bundle), AHEAD)
    written, write = [], to_tensorrt.write_whole

    def fails_at_the_second_plan(path: Path, plan: bytes) -> None:
        written.append(path.name)
        if len([name for name in written if name.endswith(".plan")]) == 2:
            raise failure
        write(path, plan)

    monkeypatch.setattr(to_tensorrt, "write_whole", fails_at_the_second_plan)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        build_plans(first, AHEAD)
    assert open_bundle(tiny_bundle).manifest.plans == {}
    assert not list(tiny_bundle.glob(".*"))


def graph_with(node: onnx.NodeProto, outputs: int = 1) -> bytes:
    """A graph of one node."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    index = helper.make_tensor_value_info("index", TensorProto.INT64, None)
    graph = helper.make_graph([node], "one", [image], [out, index][:outputs])
    model: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()
    return model


BOUNDS = {"image": ((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))}


def test_a_graph_that_tensorrt_does_not_take_is_refused_by_its_node() -> None:
    pool = helper.make_node("MaxPool", ["image"], ["out", "index"], "stem.pool", kernel_shape=[2, 2])
    with pytest.raises(EngineError, match=r"does not take node 'stem.pool' \(MaxPool\).*--engine onnx"):
        build_plan(graph_with(pool, outputs=2), BOUNDS, AHEAD, load_flavour("tensorrt_rtx"), gpus=("sm89",))


def test_a_failed_build_leaves_the_bundle_as_it_was(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(tiny_bundle)
    calls: list[Any] = []

    def fails_for_the_second(*arguments: Any, **options: Any) -> bytes:
        calls.append(arguments)
        if len(calls) == 2:
            raise EngineError("no")
        return build_plan(*arguments, **options)

    monkeypatch.setattr(to_tensorrt, "build_plan", fails_for_the_second)
    with pytest.raises(EngineError):
        build_plans(open_bundle(tiny_bundle), AHEAD)
    assert content(tiny_bundle) == before


def test_too_little_memory_says_what_to_try() -> None:
    errors = ["Cuda Runtime (out of memory)", "Could not find any implementation for node conv1"]
    found = to_tensorrt._failure(errors, load_flavour("tensorrt_rtx"), PlanConfig(batches=(1, 8, 64)))
    assert isinstance(found, OutOfMemory)
    assert "--batch-sizes 1,8,16" in str(found)
    other = to_tensorrt._failure(errors[1:], load_flavour("tensorrt_rtx"), PlanConfig())
    assert "node conv1" in str(other)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"gpus": ("sm35",)}, r"builds for .*sm89.*not for 'sm35'"),
        ({"precision": "int8"}, r"int8 graphs are quantised for processors"),
        ({"flavour": "tensorflow"}, r"no TensorRT called 'tensorflow'"),
        ({"batches": (4, 2, 8)}, r"the least, the best and the most"),
        ({"workspace": -1.0}, r"more than 0 GiB"),
        ({"timing_cache": Path("timings")}, r"leave out --timing-cache"),
        ({"version_compatible": True}, r"leave out --version-compatible"),
        ({"refit": True}, r"leave out --refit"),
    ],
)
def test_what_cannot_be_built_is_refused(tiny_bundle: Path, config: dict[str, Any], message: str) -> None:
    before = content(tiny_bundle)
    with pytest.raises(UsageError, match=message):
        build_plans(open_bundle(tiny_bundle), PlanConfig(**{"flavour": "tensorrt_rtx", "gpus": ("sm89",), **config}))
    assert content(tiny_bundle) == before


def test_a_precision_that_the_bundle_lacks_is_refused(tiny_bundle_kept: Path) -> None:
    with pytest.raises(EngineError, match="holds no fp16 graph"):
        build_plans(open_bundle(tiny_bundle_kept), PlanConfig(precision="fp16", gpus=("sm89",)))
