"""A captured program whose operators the ONNX exporter knows already.

Before it translates a program the exporter decomposes it, which records all of it twice more with symbolic shapes: of a
gradient's graph that is half of the export's time, and changes a handful of trivial nodes. Those are changed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.experimental import _config

__all__ = ["captured"]

aten = torch.ops.aten
# that have a kernel made of other operators, and a translation of their own
_TRANSLATED = {aten.matmul.default, aten.softmax.int, aten.sym_size.int}


class _Lowered(ExportedProgram):
    """A program that is not decomposed where nothing of it would be."""

    def run_decompositions(self, decomp_table: Any = None, *args: Any, **kwargs: Any) -> ExportedProgram:
        """As PyTorch's; the program itself where it holds none of the table's operators."""
        targets = {node.target for node in self.graph.nodes}
        if decomp_table is not None and not any(target in decomp_table for target in targets):
            return self
        decomposed: ExportedProgram = super().run_decompositions(decomp_table, *args, **kwargs)
        return decomposed


def captured(module: nn.Module, inputs: Sequence[Tensor], dynamic_shapes: Any) -> ExportedProgram:
    """Capture a module for `torch.onnx.export`.

    Args:
        module: calls operators of a traced graph, mostly.
        inputs: to trace with.
        dynamic_shapes: as `torch.export.export` takes them.

    Returns:
        A program that `torch.onnx.export` does not decompose, unless operators of it need that.
    """
    with _config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]  # as the exporter: a batch may be 1
        program = torch.export.export(module, tuple(inputs), dynamic_shapes=dynamic_shapes)
    _write_plainly(program)
    if not all(_is_plain(node) for node in program.graph.nodes):
        return program
    return _Lowered(
        program.graph_module,
        program.graph,
        program.graph_signature,
        program.state_dict,
        program.range_constraints,
        program.module_call_graph,
        program.example_inputs,
        program.constants,
        verifiers=program.verifiers,
    )


def _write_plainly(program: ExportedProgram) -> None:
    """What capturing itself adds: constants that are cut off autograd in place, and casts."""
    graph = program.graph
    for node in list(graph.nodes):
        if node.target is aten.detach_.default and not any(user.op == "output" for user in node.users):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target is aten.to.dtype and len(node.args) == 2 and not node.kwargs:
            source, dtype = node.args
            node.target, node.args, node.kwargs = aten._to_copy.default, (source,), {"dtype": dtype}
    program.graph_module.recompile()


def _is_plain(node: Node) -> bool:
    """Whether the exporter would leave a node as it is, unless its table has it."""
    if isinstance(node.target, torch._ops.HigherOrderOperator):  # holds a graph of its own
        return False
    if not isinstance(node.target, torch._ops.OpOverload) or node.target in _TRANSLATED:
        return True
    name = node.target.name()  # type: ignore[no-untyped-call]
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")
    return not (composite or node.target._schema.is_mutable)
