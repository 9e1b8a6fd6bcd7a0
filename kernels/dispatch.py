"""Which implementation of an operator runs: on a CPU its reference, on a GPU the one that was measured to be faster.

`SACCADE_KERNELS` chooses for everything: `auto` (the default), `fused` (Triton), `compiled` (`torch.compile` of the
reference) or `reference`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ..errors import UsageError, require, suggest
from .strides import is_channels_last

__all__ = ["IMPLEMENTATIONS", "MEASURED", "KernelOp", "as_asked", "chosen", "kernel_op", "shape_class"]

IMPLEMENTATIONS = ("auto", "fused", "compiled", "reference")
MEASURED = Path(__file__).parent / "measured.json"  # by benchmarks/kernels.py: what is faster than the fused kernel


class KernelOp(Protocol):
    """An operator that is called as its reference, and may be given a derivative."""

    register_autograd: Callable[..., None]

    def __call__(self, *arguments: Any) -> Any:
        """Run the implementation of the arguments' device."""
        ...


def kernel_op(
    name: str, reference: Callable[..., Any], fits: Callable[..., bool] = lambda *arguments: True
) -> KernelOp:
    """The operator ``saccade::<name>``.

    Its reference is the body on a CPU, the shape function, and what it decomposes to in an exported graph; on a GPU
    ``<name>_fused`` of the module `fused` beside the reference runs, imported by its first call. Autocasting ends
    here: an operator computes in the precision that its arguments ask for.

    Args:
        name: of the operator.
        reference: in plain PyTorch, with annotated arguments.
        fits: whether the fused kernel takes arguments of these sizes; the reference takes all.
    """

    def body(*arguments: Any) -> Any:
        with as_asked(_device_of(arguments)):
            return reference(*arguments)

    schema = torch.library.infer_schema(reference, mutates_args=())
    op = torch.library.custom_op(f"saccade::{name}", body, mutates_args=(), schema=schema)
    op.register_fake(body)
    home = reference.__module__.rpartition(".")[0]

    @op.register_kernel("cuda")
    def on_gpu(*arguments: Any) -> Any:
        device = _device_of(arguments)
        with torch.cuda.device(device), as_asked(device):  # Triton launches on the current one
            return _implementation(name, home, reference, arguments, fits(*arguments))(*arguments)

    return cast(KernelOp, op)


def chosen() -> str:
    """What `SACCADE_KERNELS` says.

    Raises:
        UsageError: it is not one of `IMPLEMENTATIONS`.
    """
    asked = os.environ.get("SACCADE_KERNELS", IMPLEMENTATIONS[0])
    if asked not in IMPLEMENTATIONS:
        raise UsageError(f"SACCADE_KERNELS is '{asked}'; {suggest(asked, IMPLEMENTATIONS)}")
    return asked


def shape_class(name: str, arguments: tuple[Any, ...]) -> str:
    """Calls that are measured alike: of an operator with these dtypes, memory formats and settings, and with as many
    numbers but for a half.
    """
    tensors = [value for value in arguments if isinstance(value, Tensor)]
    kinds = ",".join(
        str(value.dtype).removeprefix("torch.") + (":last" if is_channels_last(value) else "") for value in tensors
    )
    settings = ",".join(
        str(value).removeprefix("torch.") for value in arguments if isinstance(value, (bool, int, str, torch.dtype))
    )
    return " ".join([name, kinds, settings, f"2^{sum(value.numel() for value in tensors).bit_length()}"])


def _device_of(arguments: tuple[Any, ...]) -> torch.device:
    return next(value.device for value in arguments if isinstance(value, Tensor))


def as_asked(device: torch.device) -> AbstractContextManager[Any]:
    """Without autocast, where there is such a thing."""
    return torch.autocast(device.type, enabled=False) if device.type in ("cpu", "cuda") else nullcontext()


def _implementation(
    name: str, home: str, reference: Callable[..., Any], arguments: tuple[Any, ...], fits: bool = True
) -> Callable[..., Any]:
    asked = chosen()
    precise = any(
        value.dtype == torch.float64 if isinstance(value, Tensor) else value == torch.float64 for value in arguments
    )
    if precise or not fits:  # the fused kernels compute in single precision
        return reference
    if asked == "auto":
        asked = _measured(torch.cuda.get_device_name(_device_of(arguments))).get(shape_class(name, arguments), "fused")
        if find_spec("triton") is None:
            asked = "reference"
    if asked == "reference":
        return reference
    require("triton", extra="kernels", purpose="running the fused kernels")
    if asked == "compiled":
        return _compiled(reference)
    fused: Callable[..., Any] = getattr(import_module(f"{home}.fused"), f"{name}_fused")
    return fused


@cache
def _compiled(reference: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(reference)


@cache
def _measured(device: str) -> dict[str, str]:
    """Of a GPU: what was measured to be faster than the fused kernel, by `shape_class`."""
    found: dict[str, dict[str, str]] = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    return found.get(device, {})
