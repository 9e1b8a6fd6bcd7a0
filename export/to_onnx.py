"""From a torch module to an ONNX file that ONNX Runtime and TensorRT both take."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import onnx_ir.passes.common as passes
import torch
from onnxscript.optimizer import fold_constants
from torch import nn
from torch.export import Dim
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from ..contracts import ImageSpec
from ..errors import ModelError
from .lowered_program import captured
from .resize_graph import prepend_resize

__all__ = ["OPSET", "MeanPooling", "export_onnx"]

_FIXED_BATCH = (
    "the model does not take batches of any size: somewhere it uses the batch as a fixed number, as len(x) is; "
    "take x.shape[0] there, and −1 in shapes"
)
OPSET = 22  # the newest that both ONNX Runtime and TensorRT's parser read


def export_onnx(
    module: nn.Module,
    spec: ImageSpec,
    path: Path,
    *,
    example: Mapping[str, tuple[torch.Tensor, Mapping[int, str]]],
    outputs: Sequence[str],
    any_size: bool = False,
    rewrite: bool = True,
) -> None:
    """Export a module with a dynamic batch, check the file, and write it.

    Args:
        module: what becomes the graph; the first of its inputs is `image`, uint8 (N, H, W, 3).
        spec: the model's input; its size goes into the graph.
        path: where the file goes.
        example: inputs to trace with, by name in their order, each with the names of its dynamic axes.
        outputs: names of what the module gives.
        any_size: put the cut and the antialiased resize into the graph, so that it takes images of any height and
            width.
        rewrite: decompose the module's operators and try PyTorch's rewrite rules on every node; the graph of a gradient
            needs neither, and they take minutes there.

    Raises:
        ModelError: the model cannot be traced; the message says where.
    """
    two = ("image", "target")  # arguments with names of their own; what follows is one of any number
    shapes: dict[str, Any] = {name: dict(example[name][1]) for name in two}
    if more := tuple(dict(axes) for name, (_, axes) in example.items() if name not in two):
        shapes["query"] = more
    try:
        with _quiet(), MeanPooling():
            values = tuple(value for value, _ in example.values())
            program = torch.onnx.export(
                module.eval() if rewrite else captured(module.eval(), values, _dynamic(shapes)),
                values,
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=list(example),
                output_names=list(outputs),
                opset_version=OPSET,
                optimize=rewrite,
                verbose=False,
            )
    except Exception as error:  # whatever tracing a user's model may raise
        if any(said in str(error) for said in ("inferred ranges", "Constraints violated")):
            raise ModelError(_FIXED_BATCH) from error
        raise ModelError(f"the model cannot be exported to ONNX: {_reason(error)}") from error
    assert program is not None, "the exporter gives a program whenever it does not raise"
    if not rewrite:
        _tidy(program.model)
    model = program.model_proto
    for entry in model.graph.input:
        if not entry.type.tensor_type.shape.dim[0].dim_param:  # the exporter falls back on fixed sizes without a word
            raise ModelError(_FIXED_BATCH)
    if any_size:
        model = prepend_resize(model, spec)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _dynamic(shapes: Any) -> Any:
    """Names of axes as `torch.export` takes them."""
    return tree_map(lambda _: Dim.DYNAMIC, shapes)


def _tidy(model: onnx_ir.Model) -> None:
    """Fold constants, merge equal nodes, drop what nothing uses.

    What PyTorch's ``optimize=True`` does but for its rewrite rules; ONNX Runtime and TensorRT have rules of their own.
    """
    passes.InlinePass()(model)
    fold_constants(model)
    onnx_ir.passes.Sequential(
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.IdentityEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    )(model)


class MeanPooling(TorchFunctionMode):
    """Global average pooling as a mean: its fused operator is traced into shape arithmetic and an `as_strided`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.adaptive_avg_pool2d:
            size = kwargs.get("output_size", args[1] if len(args) > 1 else None)
            if size in (1, (1, 1), [1, 1]):
                return (args[0] if args else kwargs["input"]).mean((-2, -1), keepdim=True)
        return func(*args, **kwargs)


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints progress and warns about its own dependencies; neither is the user's concern."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
