"""Trace a function that calls autograd inside into a graph of forward operators.

`make_fx` records what autograd executes. Its backward operators are decomposed into forward ones while they are
recorded: most by PyTorch's own decompositions, three that PyTorch lacks by ours. What remains is a graph that any
exporter takes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch._functorch.compile_utils import fx_graph_cse
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_map

from ..errors import ModelError
from .to_onnx import MeanPooling

__all__ = ["trace_autograd_free"]

aten = torch.ops.aten

_BACKWARD = (  # operators for which PyTorch has a decomposition into forward ones
    aten.threshold_backward,
    aten.native_batch_norm_backward,
    aten.native_layer_norm_backward,
    aten.native_group_norm_backward,
    aten.gelu_backward,
    aten.silu_backward,
    aten.mish_backward,
    aten.softplus_backward,
    aten.glu_backward,
    aten.log_sigmoid_backward,
    aten._prelu_kernel_backward,
    aten.elu_backward,
    aten.leaky_relu_backward,
    aten.hardtanh_backward,
    aten.hardswish_backward,
    aten.hardsigmoid_backward,
    aten.sigmoid_backward,
    aten.tanh_backward,
    aten._softmax_backward_data,
    aten._log_softmax_backward_data,
    aten.select_backward,
    aten.slice_backward,
    aten.unfold_backward,
    aten.embedding_dense_backward,
    aten.max_pool2d_with_indices_backward,
    aten.value_selecting_reduction_backward,
    aten.new_zeros,
    aten.new_empty,
)


_BATCH = 1009  # a prime: a size of the graph that is a multiple of it is one of the batch
_IDENTITIES = (aten.detach.default, aten.detach_.default, aten.alias.default)


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
    # contiguous: with channels last, gradients of pooling write into strides; never filled: only shapes are followed
    shapes = [torch.empty(_BATCH, *value.shape[1:], dtype=value.dtype, device=value.device) for value in example]
    record = make_fx(
        lambda *inputs: function(*inputs),
        decomposition_table=_table(),
        tracing_mode="symbolic",
        _allow_non_fake_inputs=True,
    )
    try:
        with MeanPooling():
            traced = record(*shapes)
    except ModelError:
        raise
    except Exception as error:  # whatever tracing a user's model may raise
        raise ModelError(f"the gradients of the model cannot be traced: {_first_line(error)}") from error
    _free_the_batch(traced)
    _drop_checks(traced)
    _drop_identities(traced)
    _out_of_place(traced)
    _single_output_layer_norm(traced)
    _contiguous_inputs(traced)
    _merge_weights(traced)
    _cancel_transposes(traced)
    traced.graph.eliminate_dead_code()
    traced.graph = fx_graph_cse(traced.graph)  # the prediction's forward pass and the explanation's are one
    _untie_square_weights(traced)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    if left := sorted({str(node.target) for node in traced.graph.nodes if _has_no_forward_form(node)}):
        raise ModelError(f"no forward form is known of: {', '.join(left)}; report the model, it is worth supporting")
    return traced


def _has_no_forward_form(node: Node) -> bool:
    """A gradient that was not decomposed, or an operator that writes into memory."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return False
    return "backward" in str(target) or target._schema.is_mutable


def _table() -> dict[Any, Callable[..., Any]]:
    table: dict[Any, Callable[..., Any]] = dict(get_decompositions(_BACKWARD))
    table[aten.convolution_backward.default] = _convolution_backward
    table[aten.avg_pool2d_backward.default] = _avg_pool2d_backward
    table[aten._adaptive_avg_pool2d_backward.default] = _adaptive_avg_pool2d_backward
    return table


def _convolution_backward(
    gradient: Tensor,
    inputs: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    output_mask: list[bool],
) -> tuple[Tensor | None, None, None]:
    """The gradient for the input alone: a convolution with flipped, transposed weights, whatever the stride; dilated
    strided and padded-away ones a transposed convolution.
    """
    if transposed or output_mask[1] or output_mask[2]:
        raise ModelError("gradients of transposed convolutions, or for weights, are not part of an explanation")
    if not output_mask[0]:
        return None, None, None
    axes = weight.dim() - 2
    stride, padding, dilation = (
        list(values) * axes if len(values) == 1 else list(values) for values in (stride, padding, dilation)
    )
    kernel = [int(size) for size in weight.shape[2:]]
    mirrored = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    if groups == 1 and all(step == 1 for step in stride) and min(mirrored) >= 0:
        flipped = weight.transpose(0, 1)
        if max(kernel) > 1:
            flipped = flipped.flip(list(range(2, 2 + axes)))
        result = aten.convolution.default(gradient, flipped, None, stride, mirrored, dilation, False, [0] * axes, 1)
        return result, None, None
    if all(step == 1 for step in dilation):
        return _spread_convolution(gradient, inputs, weight, stride, padding, groups), None, None
    missing = [
        inputs.shape[2 + axis]
        - ((gradient.shape[2 + axis] - 1) * stride[axis] - 2 * padding[axis] + dilation[axis] * (kernel[axis] - 1) + 1)
        for axis in range(axes)
    ]
    result = aten.convolution.default(gradient, weight, None, stride, padding, dilation, True, missing, groups)
    return result, None, None


def _spread_convolution(
    gradient: Tensor, inputs: Tensor, weight: Tensor, stride: list[int], padding: list[int], groups: int
) -> Tensor:
    """The gradient of a strided convolution by a dense one: each phase of the input's pixels modulo the stride meets
    every stride-th tap of the kernel, so the phases become channels, and are interleaved afterwards.

    OpenVINO 2026.4 computes transposed convolutions with stride wrongly, and ONNX Runtime slowly.
    """
    count, _, height, width = gradient.shape
    outputs, inner, *kernel = weight.shape
    phases = [min(size, step) for size, step in zip(kernel, stride, strict=True)]
    taps = [-(-size // step) for size, step in zip(kernel, stride, strict=True)]
    (rows, columns), (row_taps, column_taps), (row_step, column_step) = phases, taps, stride
    padded = aten.constant_pad_nd.default(
        weight, [0, column_taps * columns - kernel[1], 0, row_taps * rows - kernel[0]], 0.0
    )
    apart = padded.reshape(groups, outputs // groups, inner, row_taps, rows, column_taps, columns)
    dense = apart.flip([3, 5]).permute(0, 2, 4, 6, 1, 3, 5)
    dense = dense.reshape(groups * inner * rows * columns, outputs // groups, row_taps, column_taps)
    edge = [row_taps - 1, column_taps - 1]
    found = aten.convolution.default(gradient, dense, None, [1, 1], edge, [1, 1], False, [0, 0], groups)
    height, width = height + row_taps - 1, width + column_taps - 1
    channels = groups * inner
    found = found.reshape(count, channels, rows, columns, height, width).permute(0, 1, 4, 2, 5, 3)
    if phases != stride:
        found = aten.constant_pad_nd.default(found, [0, column_step - columns, 0, 0, 0, row_step - rows], 0.0)
    found = found.reshape(count, channels, height * row_step, width * column_step)
    beyond = [max(0, int(inputs.shape[2 + axis]) + padding[axis] - int(found.shape[2 + axis])) for axis in range(2)]
    if any(beyond):
        found = aten.constant_pad_nd.default(found, [0, beyond[1], 0, beyond[0]], 0.0)
    top, left = padding
    spread: Tensor = found[:, :, top : top + inputs.shape[2], left : left + inputs.shape[3]]
    return spread


def _avg_pool2d_backward(
    gradient: Tensor,
    inputs: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    """Each output's gradient spread evenly over its window: a transposed convolution with a constant kernel."""
    kernel = list(kernel_size) * 2 if len(kernel_size) == 1 else list(kernel_size)
    step = (list(stride) * 2 if len(stride) == 1 else list(stride)) or kernel
    pad = list(padding) * 2 if len(padding) == 1 else list(padding)
    if not count_include_pad and max(pad) > 0:
        raise ModelError("average pooling that does not count its padding has no forward form of its gradient here")
    if ceil_mode:
        raise ModelError("average pooling with ceil_mode has no forward form of its gradient here")
    count, channels, height, width = gradient.shape
    window = gradient.new_full((1, 1, *kernel), 1.0 / (divisor_override or kernel[0] * kernel[1]))
    spread = _spread_convolution(
        gradient.reshape(count * channels, 1, height, width),
        inputs.reshape(count * channels, 1, *inputs.shape[2:]),
        window,
        step,
        pad,
        1,
    )
    return spread.reshape(inputs.shape)


def _adaptive_avg_pool2d_backward(gradient: Tensor, inputs: Tensor) -> Tensor:
    """Pooling is linear, rows and columns apart: the transposed averaging matrices."""
    rows, columns = (_averaging(int(gradient.shape[axis]), int(inputs.shape[axis]), gradient) for axis in (2, 3))
    return rows.t() @ gradient @ columns


def _averaging(outputs: int, inputs: int, like: Tensor) -> Tensor:
    """The matrix (outputs, inputs) of adaptive average pooling along one axis."""
    rows = []
    for index in range(outputs):
        start, stop = index * inputs // outputs, -(-(index + 1) * inputs // outputs)
        rows.append([1 / (stop - start) if start <= place < stop else 0.0 for place in range(inputs)])
    return torch.tensor(rows, dtype=like.dtype, device=like.device)


def _free_the_batch(traced: GraphModule) -> None:
    """Sizes that tracing fixed to the example's batch, or a multiple of it, follow the input's again: PyTorch's rules
    for batches of gradients (`torch.vmap`) take them for numbers.
    """
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
    with traced.graph.inserting_after(inputs[-1]):
        batch = traced.graph.call_function(aten.sym_size.int, (inputs[0], 0))
    multiples: dict[int, Node] = {1: batch}

    def freed(value: Any) -> Any:
        if type(value) is not int or value == 0 or value % _BATCH:
            return value
        times = value // _BATCH
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


def _out_of_place(traced: GraphModule) -> None:
    """In-place operators become their pure forms: a node that writes counts as impure, so the part of the model before
    a replaced layer would stay in the graph.
    """
    order = {node: place for place, node in enumerate(traced.graph.nodes)}
    for node in list(traced.graph.nodes):
        target = node.target
        if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
            continue
        name = target._schema.name.split("::")[1]
        if not (target._schema.is_mutable and name.endswith("_") and not name.endswith("__")):
            continue
        pure = getattr(getattr(aten, name[:-1], None), target._overloadname, None)
        if pure is None:
            continue
        node.target = pure
        written = node.args[0]
        assert isinstance(written, Node), "an in-place operator writes to a node"
        if any(order[user] > order[node] for alias in _aliases(written) for user in alias.users):
            raise ModelError(
                f"the model writes into a part of a tensor and reads the whole of it afterwards ({node.name}); "
                "that cannot be traced: write it without the in-place operation"
            )
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


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
