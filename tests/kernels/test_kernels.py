"""Every operator of the registry: fused against the truth, its shapes, its compilation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from saccade.kernels.registry import KERNELS, decompositions
from saccade.kernels.spec import KernelSpec, Sample, inaccuracy, tensors

CPU = torch.device("cpu")
SAMPLES = [(spec, sample.name) for spec in KERNELS for sample in spec.samples(torch.float32, CPU)]
each_sample = pytest.mark.parametrize(("spec", "name"), SAMPLES, ids=[f"{spec.name}-{name}" for spec, name in SAMPLES])


def sample_of(spec: KernelSpec, name: str, dtype: torch.dtype, device: torch.device = CPU) -> Sample:
    return next(sample for sample in spec.samples(dtype, device) if sample.name == name)


def filled(result: Any) -> list[Tensor]:
    """Of an operator's results those that hold anything."""
    return [value for value in tensors(result) if value.numel()]


def strides(result: Any) -> list[list[int]]:
    """Of the dimensions that have more than one place."""
    return [
        [step for step, size in zip(value.stride(), value.shape, strict=True) if size > 1] for value in filled(result)
    ]


@pytest.fixture
def _nan_where_nothing_was_written() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_nan_where_nothing_was_written")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's interpreter is for machines without a GPU")
@each_sample
def test_the_fused_kernel_is_as_accurate_as_pytorch(spec: KernelSpec, name: str, dtype: torch.dtype) -> None:
    arguments = sample_of(spec, name, dtype).arguments
    assert inaccuracy(spec, arguments) == ""
    assert strides(spec.fused(*arguments)) == strides(spec.reference(*arguments))


@pytest.mark.gpu
@pytest.mark.usefixtures("_nan_where_nothing_was_written")
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
@each_sample
def test_the_fused_kernel_on_a_gpu(spec: KernelSpec, name: str, dtype: torch.dtype) -> None:
    arguments = sample_of(spec, name, dtype, torch.device("cuda")).arguments
    assert inaccuracy(spec, arguments) == ""
    operator = getattr(torch.ops.saccade, spec.name).default
    compiled = torch.compile(lambda *values: operator(*values), fullgraph=True)  # holds results to the fake's strides
    for found in (operator(*arguments), compiled(*arguments)):
        assert strides(found) == strides(spec.reference(*arguments))
        for one, other in zip(filled(found), filled(spec.fused(*arguments)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)  # atomic sums differ by their order


@each_sample
def test_the_operator_keeps_pytorch_s_rules(spec: KernelSpec, name: str) -> None:
    operator = getattr(torch.ops.saccade, spec.name).default
    arguments = sample_of(spec, name, torch.float32).arguments
    for found, expected in zip(filled(operator(*arguments)), filled(spec.reference(*arguments)), strict=True):
        assert torch.equal(found, expected)
    torch.library.opcheck(
        operator,
        tuple(
            value.clone().requires_grad_() if place in spec.differentiable and value is not None else value
            for place, value in enumerate(arguments)
        ),
    )


@pytest.mark.parametrize("spec", KERNELS, ids=lambda spec: spec.name)
def test_a_compiled_graph_holds_the_operator_and_gives_the_same(spec: KernelSpec) -> None:
    operator: Callable[..., Tensor] = getattr(torch.ops.saccade, spec.name)
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    for sample in spec.samples(torch.float32, CPU)[:2]:
        torch._dynamo.reset()
        compiled = torch.compile(
            lambda *arguments: [value + 1 for value in filled(operator(*arguments))], backend=backend, fullgraph=True
        )
        for found, expected in zip(compiled(*sample.arguments), filled(spec.reference(*sample.arguments)), strict=True):
            assert torch.equal(found, expected + 1)
    assert any(f"saccade.{spec.name}" in target for target in seen)


@pytest.mark.parametrize("spec", KERNELS, ids=lambda spec: spec.name)
def test_a_traced_graph_may_hold_what_an_operator_is_made_of(spec: KernelSpec) -> None:
    operator: Callable[..., Any] = getattr(torch.ops.saccade, spec.name)
    for sample in spec.samples(torch.float32, CPU)[:2]:
        given = [value for value in sample.arguments if isinstance(value, Tensor)]

        def run(*values: Tensor, sample: Sample = sample) -> Any:
            left = iter(values)
            return operator(*(next(left) if isinstance(value, Tensor) else value for value in sample.arguments))

        graph = make_fx(run, decomposition_table=decompositions())(*given)
        assert not any("saccade" in str(node.target) for node in graph.graph.nodes)
        for found, expected in zip(filled(graph(*given)), filled(spec.reference(*sample.arguments)), strict=True):
            assert torch.equal(found, expected)


COMPILATION = """
import json, multiprocessing, sys, torch
from dataclasses import asdict
from saccade.kernels.ahead_of_time import ARCHITECTURES, compile_launch, launches
from saccade.kernels.registry import KERNELS, decompositions

spec = next(spec for spec in KERNELS if spec.name == sys.argv[1])
found = launches(spec, [torch.bfloat16])

def compiled(place):
    return asdict(compile_launch(found[place // len(ARCHITECTURES)], ARCHITECTURES[place % len(ARCHITECTURES)]))

with multiprocessing.get_context("fork").Pool(2) as pool:
    print(json.dumps(pool.map(compiled, range(len(found) * len(ARCHITECTURES)), 1)))
"""


COMPILED_ONCE = [
    pytest.param(spec, id=spec.name, marks=pytest.mark.xdist_group(f"compiled {spec.name}")) for spec in KERNELS
]


@pytest.fixture(scope="module")
def compilations() -> Callable[[str], list[dict[str, Any]]]:
    """What an operator's kernels take of GPUs that are not here; in a process in which Triton does not interpret."""

    @cache
    def of(name: str) -> list[dict[str, Any]]:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        done = subprocess.run(
            [sys.executable, "-P", "-c", COMPILATION, name],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    return of


@pytest.mark.slow
@pytest.mark.parametrize("spec", COMPILED_ONCE)
def test_every_kernel_compiles_for_gpus_that_are_not_here(
    spec: KernelSpec, compilations: Callable[[str], list[dict[str, Any]]]
) -> None:
    rows = compilations(spec.name)
    assert {row["architecture"] for row in rows} == {80, 90, 100}
    for row in rows:
        assert row["shared"] <= 160 * 1024, row  # of a program; an A100 has 164 KiB
        assert row["matrix_units"] == spec.name.startswith("coordinate_mlp"), row


@pytest.mark.slow
@pytest.mark.parametrize("spec", COMPILED_ONCE)
def test_registers_are_enough(spec: KernelSpec, compilations: Callable[[str], list[dict[str, Any]]]) -> None:
    assert [row for row in compilations(spec.name) if row["spilled"]] == []
