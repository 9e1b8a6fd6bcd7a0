"""Passes over a traced graph, so that it follows the batch, holds nothing twice, and every runtime takes it."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor
from torch._functorch.compile_utils import fx_graph_cse
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_map

__all__ = ["BATCH", "simplify", "writes_into_parts"]

aten = torch.ops.aten

BATCH = 1009
"""The batch that graphs are traced with, a prime: a size of the graph that is a multiple of it is one of the batch."""

_IDENTITIES = (aten.detach.default, aten.detach_.default, aten.alias.default)


def simplify(traced: GraphModule) -> None:
    """All passes, in their order; the graph computes what it did. Of graphs for which `writes_into_parts` is false."""
    _free_the_batch(traced)
    _drop_checks(traced)
    _drop_identities(traced)
    _out_of_place(traced)
    _single_output_layer_norm(traced)
    _contiguous_inputs(traced)
    _merge_weights(traced)
    _cut_weights(traced)
    _cancel_transposes(traced)
    traced.graph.eliminate_dead_code()
    traced.graph = fx_graph_cse(traced.graph)  # the prediction's forward pass and the explanation's are one
    _narrow_projections(traced)
    _untie_square_weights(traced)
    traced.graph.eliminate_dead_code()
    traced.recompile()


def _free_the_batch(traced: GraphModule) -> None:
    """Sizes that tracing fixed to the example's batch, or a multiple of it, follow the input's again: PyTorch's rules
    for batches of gradients (`torch.vmap`) take them for numbers.
    """
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
    with traced.graph.inserting_after(inputs[-1]):
        batch = traced.graph.call_function(aten.sym_size.int, (inputs[0], 0))
    multiples: dict[int, Node] = {1: batch}

    def freed(value: Any) -> Any:
        if type(value) is not int or value == 0 or value % BATCH:
            return value
        times = value // BATCH
        if times not in multiples:
            with traced.graph.inserting_after(batch):
                multiples[times] = traced.graph.call_function(operator.mul, (batch, times))
        return multiples[times]

    for node in list(traced.graph.nodes):
        if node.op == "call_function":
            node.args = tree_map(freed, node.args)
            node.kwargs = tree_map(freed, node.kwargs)


def _contiguous_inputs(traced: GraphModule) -> None:
    """The graph was recorded for contiguous inputs, so it makes them contiguous."""
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
    for node in inputs:
        with traced.graph.inserting_after(inputs[-1]):
            copy = traced.graph.call_function(aten.clone.default, (node,), {"memory_format": torch.contiguous_format})
        node.replace_all_uses_with(copy, delete_user_cb=lambda user, copy=copy: user is not copy)


def _drop_checks(traced: GraphModule) -> None:
    """Assertions about values are not part of what is computed."""
    for node in list(traced.graph.nodes):
        if node.op == "call_function" and node.target in (aten._assert_async.msg, aten._assert_async.default):
            traced.graph.erase_node(node)


def _drop_identities(traced: GraphModule) -> None:
    """Detach and alias do nothing at run time."""
    for node in list(traced.graph.nodes):
        if node.op == "call_function" and node.target in _IDENTITIES:
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)


def writes_into_parts(traced: GraphModule) -> bool:
    """The model writes into a part of a tensor and reads the whole of it afterwards, or the other way round."""
    order = {node: place for place, node in enumerate(traced.graph.nodes)}
    return any(
        order[user] > order[node]
        for node in traced.graph.nodes
        if _pure_form(node) is not None
        for alias in _aliases(node.args[0])
        for user in alias.users
    )


def _pure_form(node: Node) -> Any:
    """The operator that computes what an in-place one writes; None for all others."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return None
    name = target._schema.name.split("::")[1]
    if not (target._schema.is_mutable and name.endswith("_") and not name.endswith("__")):
        return None
    return getattr(getattr(aten, name[:-1], None), target._overloadname, None)


def _out_of_place(traced: GraphModule) -> None:
    """In-place operators become their pure forms: a node that writes counts as impure, so the part of the model before
    a replaced layer would stay in the graph.
    """
    order = {node: place for place, node in enumerate(traced.graph.nodes)}
    for node in list(traced.graph.nodes):
        pure = _pure_form(node)
        if pure is None:
            continue
        node.target = pure
        written = node.args[0]
        assert isinstance(written, Node), "an in-place operator writes to a node"
        for user in list(written.users):
            if order[user] > order[node]:
                user.replace_input_with(written, node)


def _aliases(node: Node) -> set[Node]:
    """Other nodes that share memory with this one: what it is a view of, and views of either."""
    root = node
    while _is_view(root):
        root = root.args[0]  # type: ignore[assignment]
    found, waiting = {root}, [root]
    while waiting:
        for user in waiting.pop().users:
            if _is_view(user) and user not in found:
                found.add(user)
                waiting.append(user)
    return found - {node}


def _is_view(node: Node) -> bool:
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return False
    return any(result.alias_info is not None for result in target._schema.returns) and isinstance(node.args[0], Node)


def _merge_weights(traced: GraphModule) -> None:
    """One node per weight, at the head of the graph, so that equal operators of it are seen to be equal."""
    first: dict[int, Node] = {}
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
    for node in list(traced.graph.nodes):
        if node.op != "get_attr":
            continue
        weight = getattr(traced, node.target, None)
        if not isinstance(weight, Tensor):
            continue
        if id(weight) in first:
            node.replace_all_uses_with(first[id(weight)])
            traced.graph.erase_node(node)
        else:
            inputs[-1].append(node)
            first[id(weight)] = node


def _cut_weights(traced: GraphModule) -> None:
    """Parts of a weight, as of a packed projection, become weights of their own."""
    cuts = (aten.split.Tensor, aten.split_with_sizes.default, aten.slice.Tensor, aten.select.int, operator.getitem)
    values: dict[Node, Any] = {}
    parts: dict[tuple[Any, ...], Node] = {}  # one for equal parts, so that equal operators of them are seen to be equal
    for node in list(traced.graph.nodes):
        if node.op == "get_attr" and isinstance(getattr(traced, node.target, None), Tensor):
            values[node] = getattr(traced, node.target).detach()
        elif node.op == "call_function" and node.target in cuts and node.args[0] in values:
            if any(isinstance(value, Node) for value in node.args[1:]):
                continue
            value = values[node] = node.target(values[node.args[0]], *node.args[1:], **node.kwargs)
            if not isinstance(value, Tensor):
                continue
            place = (value.data_ptr(), value.dtype, value.shape, value.stride())
            if place not in parts:
                name = f"_part_{node.name}"
                traced.register_buffer(name, value.contiguous())
                with traced.graph.inserting_before(node):
                    parts[place] = traced.graph.get_attr(name)
                values[parts[place]] = value
            node.replace_all_uses_with(parts[place])


def _cancel_transposes(traced: GraphModule) -> None:
    """A matrix that is transposed twice is the matrix: the gradient of a linear layer does that to its weights."""
    for node in traced.graph.nodes:
        if node.op == "call_function" and node.target is aten.t.default:
            before = node.args[0]
            if isinstance(before, Node) and before.op == "call_function" and before.target is aten.t.default:
                node.replace_all_uses_with(before.args[0])


def _untie_square_weights(traced: GraphModule) -> None:
    """A square matrix that is multiplied with as it is and transposed gets a transposed copy.

    OpenVINO 2026.4 packs weights once per constant and shape, so it takes the one for the other where they are square:
    probabilities are right and maps wrong.
    """
    for node in list(traced.graph.nodes):
        if node.op != "get_attr":
            continue
        weight = getattr(traced, node.target, None)
        if not isinstance(weight, Tensor) or weight.ndim != 2 or weight.shape[0] != weight.shape[1]:
            continue
        turned = [user for user in node.users if user.target is aten.t.default]
        if not turned or len(turned) == len(node.users):
            continue
        name = f"{node.target}_transposed"
        traced.register_buffer(name, weight.detach().t().contiguous())
        with traced.graph.inserting_after(node):
            copy = traced.graph.get_attr(name)
        for user in turned:
            user.replace_all_uses_with(copy)


def _single_output_layer_norm(traced: GraphModule) -> None:
    """Mean and deviation that a layer norm's gradient uses are computed again, so that the ONNX operator has one
    output; TensorRT's parser takes no more.
    """
    graph = traced.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not aten.native_layer_norm.default:
            continue
        extra = [user for user in node.users if user.target is operator.getitem and user.args[1] in (1, 2)]
        if not extra:
            continue
        values, shape, epsilon = node.args[0], node.args[1], node.args[4]
        axes = list(range(-len(shape), 0))
        with graph.inserting_after(node):
            mean = graph.call_function(aten.mean.dim, (values, axes, True))
        chain = mean
        for target, arguments in (
            (aten.sub.Tensor, lambda last, mean=mean, values=values: (values, mean)),
            (aten.mul.Tensor, lambda last: (last, last)),
            (aten.mean.dim, lambda last, axes=axes: (last, axes, True)),
            (aten.add.Tensor, lambda last, epsilon=epsilon: (last, epsilon)),
            (aten.rsqrt.default, lambda last: (last,)),
        ):
            with graph.inserting_after(chain):
                chain = graph.call_function(target, arguments(chain))
        for user in extra:
            user.replace_all_uses_with(mean if user.args[1] == 1 else chain)
            graph.erase_node(user)


def _narrow_projections(traced: GraphModule) -> None:
    """Queries, keys and values come from one projection; where only one of them is used, as where an attention matrix
    was replaced, only its rows of the weights are multiplied with. TensorRT's builder fails on the rest.
    """
    for unbind in list(traced.graph.nodes):
        if unbind.op != "call_function" or unbind.target is not aten.unbind.int or len(unbind.users) != 1:
            continue
        (used,) = unbind.users
        if used.target is not operator.getitem or (unbind.args[1] if len(unbind.args) > 1 else 0) != 0:
            continue
        order = unbind.args[0]
        if not _calls(order, aten.permute.default):
            continue
        split = order.args[0]
        axis = order.args[1][0]
        if not _calls(split, aten.view.default):
            continue
        product = split.args[0]
        while _calls(product, aten.view.default):
            product = product.args[0]
        if not _calls(product, aten.addmm.default) or not _calls(product.args[2], aten.t.default):
            continue
        bias, weight = product.args[0], product.args[2].args[0]
        sizes = list(split.args[1])
        if bias.op != "get_attr" or weight.op != "get_attr" or any(type(size) is not int for size in sizes[axis:]):
            continue
        rows = getattr(traced, weight.target)
        size = rows.shape[0] // sizes[axis]
        if size * sizes[axis] != rows.shape[0] or size != math.prod(sizes[axis + 1 :]):
            continue
        part = slice(used.args[1] * size, (used.args[1] + 1) * size)
        names = []
        for node in (weight, bias):
            names.append(f"{node.target}_part{used.args[1]}")
            traced.register_buffer(names[-1], getattr(traced, node.target).detach()[part].contiguous())
        with traced.graph.inserting_before(unbind):
            turned = traced.graph.call_function(aten.t.default, (traced.graph.get_attr(names[0]),))
            narrow = traced.graph.call_function(
                aten.addmm.default, (traced.graph.get_attr(names[1]), product.args[1], turned)
            )
            apart = traced.graph.call_function(aten.view.default, (narrow, [*sizes[:axis], *sizes[axis + 1 :]]))
            kept = [place - (place > axis) for place in order.args[1][1:]]
            result = traced.graph.call_function(aten.permute.default, (apart, kept))
        used.replace_all_uses_with(result)


def _calls(node: Any, target: Any) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and node.target is target
