"""Compile every kernel for GPUs that are not there, and read what it takes of them."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .spec import KernelSpec

__all__ = ["ARCHITECTURES", "Launch", "Resources", "compile_launch", "launches"]

ARCHITECTURES = (80, 90, 100)  # Ampere, Hopper, Blackwell

_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.uint8: "u8",
    torch.int64: "i64",
}
_OPTIONS = ("num_warps", "num_stages")


class Launch(NamedTuple):
    """A kernel with the types and constants with which its launcher calls it.

    Attributes:
        kernel: Triton's function.
        signature: type of each argument by name, ``"constexpr"`` of constants.
        constants: their values.
        aligned: places of the arguments that 16 divides; so are the addresses of PyTorch's tensors.
        options: number of warps and stages, where the launcher sets them.
    """

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    aligned: tuple[int, ...]
    options: dict[str, int]


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes.

    Attributes:
        kernel: name.
        architecture: compute capability, 90 for 9.0.
        registers: of a thread.
        spilled: bytes of a thread that found no register.
        shared: bytes of shared memory of a program.
        matrix_units: it multiplies on tensor cores.
    """

    kernel: str
    architecture: int
    registers: int
    spilled: int
    shared: int
    matrix_units: bool


def launches(spec: KernelSpec, dtypes: Sequence[torch.dtype]) -> list[Launch]:
    """How the launcher of an operator calls its kernels for all of its samples; nothing runs."""
    found: dict[str, Launch] = {}
    with _recorded(spec.fused.__module__) as calls:
        for dtype in dtypes:
            for sample in spec.samples(dtype, torch.device("cpu")):
                spec.fused(*sample.arguments)
        for launch in calls:
            found.setdefault(repr(launch), launch)
    return list(found.values())


def compile_launch(launch: Launch, architecture: int) -> Resources:
    """Compile for a compute capability, down to machine code."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(
        fn=launch.kernel,
        signature=launch.signature,
        constexprs=launch.constants,
        attrs={(place,): [["tt.divisibility", 16]] for place in launch.aligned},
    )
    compiled = triton.compile(
        source, target=GPUTarget("cuda", architecture, 32), options={"enable_fp_fusion": True, **launch.options}
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    taken = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return Resources(
        kernel=launch.kernel.fn.__name__,
        architecture=architecture,
        registers=taken["REG"],
        spilled=taken["STACK"] + taken["LOCAL"],
        shared=compiled.metadata.shared,
        matrix_units=re.search(r"\b(wgmma|mma|tcgen05)\b", compiled.asm["ptx"]) is not None,
    )


@contextmanager
def _recorded(home: str) -> Iterator[list[Launch]]:
    """The kernels of a module note how they are called, and do not run."""
    module = import_module(home)
    kernels = {name: value for name, value in vars(module).items() if name.endswith("_kernel")}
    calls: list[Launch] = []
    for name, kernel in kernels.items():
        setattr(module, name, _Recorder(kernel, calls))
    try:
        yield calls
    finally:
        for name, kernel in kernels.items():
            setattr(module, name, kernel)


class _Recorder:
    """Stands for a kernel: ``recorder[grid](…)`` notes a launch."""

    def __init__(self, kernel: Any, calls: list[Launch]) -> None:
        self.kernel, self.calls = kernel, calls

    def __getitem__(self, grid: object) -> Any:
        return partial(_record, self.kernel, self.calls)


def _record(kernel: Any, calls: list[Launch], *arguments: Any, **named: Any) -> None:
    options = {name: named.pop(name) for name in _OPTIONS if name in named}
    values = dict(zip(kernel.arg_names, arguments, strict=False)) | named
    signature, constants, aligned = {}, {}, []
    for place, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):  # Triton makes a constant of 1
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[parameter.name] = "*" + _TYPES[value.dtype]
            aligned.append(place)
        elif isinstance(value, int):
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned += [place] if value % 16 == 0 else []
        else:
            signature[parameter.name] = "fp32"
    calls.append(Launch(kernel, signature, constants, tuple(aligned), options))
