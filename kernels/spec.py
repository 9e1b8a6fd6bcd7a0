"""What tests and benchmarks need to know of an operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["KernelSpec", "Sample", "arguments_bytes", "in_double", "inaccuracy", "tensors"]


class Sample(NamedTuple):
    """Arguments of a reference and of its fused kernel, by position.

    Attributes:
        name: of the case, for example ``"bytes-37x41"``.
        arguments: tensors and settings.
    """

    name: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class KernelSpec:
    """An operator ``saccade::<name>``.

    Attributes:
        name: of the operator; its fused kernel is ``<name>_fused`` in the module `fused` beside the reference.
        reference: in plain PyTorch.
        samples: small ones of a dtype on a device, sizes that no block divides among them.
        large: for timing, several times the size of a GPU's L2 cache.
        bytes_moved: of arguments and result, at least; every value once.
        operations: multiplications and additions at least, where they and not the bytes are the limit.
        differentiable: places of the arguments that get gradients.
    """

    name: str
    reference: Callable[..., Any]
    samples: Callable[[torch.dtype, torch.device], Sequence[Sample]]
    large: Callable[[torch.dtype, torch.device], Sequence[Sample]]
    bytes_moved: Callable[[tuple[Any, ...], Any], int]
    operations: Callable[[tuple[Any, ...]], int] = lambda arguments: 0
    differentiable: tuple[int, ...] = ()

    @property
    def fused(self) -> Callable[..., Any]:
        """The kernel's launcher; imports Triton."""
        home = import_module(self.reference.__module__.rpartition(".")[0] + ".fused")
        found: Callable[..., Any] = getattr(home, f"{self.name}_fused")
        return found


def in_double(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same arguments in double precision, for a result that counts as the truth."""

    def doubled(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.double()
        return torch.float64 if isinstance(value, torch.dtype) else value

    return tuple(doubled(value) for value in arguments)


def arguments_bytes(arguments: tuple[Any, ...], result: Any) -> int:
    """Bytes of all tensors among arguments and results: what is read and written if each is touched once."""
    held = [value for value in (*arguments, *tensors(result)) if isinstance(value, Tensor)]
    return sum(value.numel() * value.element_size() for value in held)


def tensors(result: Any) -> list[Tensor]:
    """The results of an operator, one or several."""
    return list(result) if isinstance(result, (tuple, list)) else [result]


def inaccuracy(spec: KernelSpec, arguments: tuple[Any, ...]) -> str:
    """Where the fused kernel is less accurate than it has to be, in a sentence; empty if nowhere.

    Against the reference in double precision, its error may be twice that of the reference in the arguments' own
    precision, and the error of a single value four times the largest one. Of results that are bytes one in a hundred
    may be rounded the other way.
    """
    runs = (spec.fused(*arguments), spec.reference(*arguments), spec.reference(*in_double(arguments)))
    for place, (fused, plain, truth) in enumerate(zip(*map(tensors, runs), strict=True)):
        if (fused.shape, fused.dtype) != (plain.shape, plain.dtype):
            return f"result {place} is {fused.dtype} {tuple(fused.shape)}, not {plain.dtype} {tuple(plain.shape)}"
        if not truth.numel():
            continue
        if fused.dtype == torch.uint8:
            apart = (fused.int() - truth.int()).abs()
            if int(apart.max()) > 2 or float((apart > 0).float().mean()) > 0.01:
                return f"result {place} is off by {int(apart.max())} in {int((apart > 0).sum())} of {apart.numel()}"
            continue
        errors = [(value.double() - truth).abs() for value in (fused, plain)]
        scale = truth.abs()
        tiny = 2 * torch.finfo(torch.float32).eps
        found, allowed = (float(error.square().mean().sqrt()) for error in errors)
        most, size = 2 * allowed + tiny * float(scale.square().mean().sqrt()), float(scale.max())
        if not found <= most:
            return f"result {place}: error {found:.1e} > {most:.1e}, of values up to {size:.1e}"
        found, allowed = (float(error.max()) for error in errors)
        most = 4 * allowed + tiny * size
        if not found <= most:
            return f"result {place}: largest error {found:.1e} > {most:.1e}, of values up to {size:.1e}"
    return ""
