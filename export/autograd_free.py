"""Trace a function that calls autograd inside into a graph of forward operators.

`make_fx` records what autograd executes. Its backward operators are decomposed into forward ones while they are
recorded: most by PyTorch's own decompositions, those that PyTorch lacks by ours. What remains is a graph that any
exporter takes.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from ..errors import ModelError
from .backward_operators import forward_forms
from .graph_passes import BATCH, simplify, writes_into_parts
from .to_onnx import MeanPooling

__all__ = ["trace_autograd_free"]


def trace_autograd_free(function: Callable[..., Any], example: Sequence[Tensor]) -> GraphModule:
    """Trace a function, with the gradients that it takes, into a graph of forward operators.

    The first axis of every input stays dynamic.

    Args:
        function: calls `torch.autograd.grad` inside; its parameters take no gradient themselves.
        example: inputs, for their shapes past the first axis and their dtypes.

    Returns:
        A module with the function's inputs and outputs.

    Raises:
        ModelError: what the function does depends on the data, or an operator's gradient is not known.
    """
    shapes = _shapes_of_any_batch(example)
    try:
        with MeanPooling():
            traced = make_fx(
                lambda *inputs: function(*inputs),
                decomposition_table=forward_forms(),
                tracing_mode="symbolic",
                _allow_non_fake_inputs=True,
            )(*shapes)
        if writes_into_parts(traced):
            traced = make_fx(functionalize(traced), tracing_mode="symbolic", _allow_non_fake_inputs=True)(
                *_shapes_of_any_batch(example)
            )
    except ModelError:
        raise
    except Exception as error:  # whatever tracing a user's model may raise
        raise ModelError(f"the gradients of the model cannot be traced: {_first_line(error)}{_where(error)}") from error
    simplify(traced)
    if left := sorted({str(node.target) for node in traced.graph.nodes if _has_no_forward_form(node)}):
        raise ModelError(f"no forward form is known of: {', '.join(left)}; report the model, it is worth supporting")
    return traced


def _shapes_of_any_batch(example: Sequence[Tensor]) -> list[Tensor]:
    """Tensors without values, whose first axis is a symbol and all others are numbers: formulas of symbolic heights and
    widths, as of a Swin transformer's windows, take minutes to simplify.

    Contiguous, since with channels last the gradients of pooling write into strides.
    """
    mode = FakeTensorMode(allow_fallback_kernels=False, allow_non_fake_inputs=True, shape_env=ShapeEnv())
    shapes: list[Tensor] = []
    for place, value in enumerate(example):
        axes = [DimDynamic.DUCK] + [DimDynamic.STATIC] * (value.ndim - 1)  # one symbol for all batches
        empty = torch.empty(BATCH, *value.shape[1:], dtype=value.dtype, device=value.device)
        context: StatelessSymbolicContext[Any, Any] = StatelessSymbolicContext(dynamic_sizes=axes)
        shapes.append(mode.from_tensor(empty, source=ConstantSource(f"input{place}"), symbolic_context=context))
    return shapes


def _has_no_forward_form(node: Node) -> bool:
    """A gradient that was not decomposed, or an operator that writes into memory."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return False
    return "backward" in str(target) or target._schema.is_mutable


def _where(error: BaseException) -> str:
    """The model's own line that could not be traced: the last one that is neither PyTorch's nor ours."""
    ours = (
        str(Path(torch.__file__).parent),
        *(str(Path(__file__).parents[1] / name) for name in ("export", "methods")),
    )
    found = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        name = frame.f_code.co_filename
        if not name.startswith((*ours, "<")):
            found = f" (in {frame.f_code.co_name}, {Path(name).name}, line {line})"
    return found


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
