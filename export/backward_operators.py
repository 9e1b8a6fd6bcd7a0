"""Backward operators in terms of forward ones: what autograd records for a gradient, in a form that can be exported."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions

from ..errors import ModelError
from ..kernels.registry import decompositions

__all__ = ["forward_forms"]

aten = torch.ops.aten

_BLOCK = 16  # channels that ONNX Runtime computes together at most

_BACKWARD = (  # operators for which PyTorch has a decomposition into forward ones
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
    aten._adaptive_avg_pool2d,  # not a backward one; ONNX has none of its kind either
)


def forward_forms() -> dict[Any, Callable[..., Any]]:
    """Of every backward operator that has one, and of our own operators; a decomposition table for `make_fx`."""
    table: dict[Any, Callable[..., Any]] = {**get_decompositions(_BACKWARD), **decompositions()}
    table[aten.threshold_backward.default] = _threshold_backward
    table[aten.hardtanh_backward.default] = _hardtanh_backward
    table[aten.convolution_backward.default] = _convolution_backward
    table[aten.avg_pool2d_backward.default] = _avg_pool2d_backward
    table[aten._adaptive_avg_pool2d_backward.default] = _adaptive_avg_pool2d_backward
    pooling = aten.max_pool2d_with_indices_backward.default
    table[pooling] = partial(_max_pool2d_backward, table[pooling])
    return table


def _threshold_backward(gradient: Tensor, values: Tensor, threshold: float) -> Tensor:
    """The gradient of a ReLU: a product with zeros and ones, which ONNX Runtime computes six times as fast on a CPU as
    a choice between two values.
    """
    return gradient * (values > threshold)


def _hardtanh_backward(gradient: Tensor, values: Tensor, lowest: float, highest: float) -> Tensor:
    """The gradient of a clamp, a ReLU6 among them; in the form of `_threshold_backward`."""
    return gradient * ((values > lowest) & (values < highest))


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
    """The gradient of a strided convolution by dense ones: each phase of the input's pixels modulo the stride meets
    every stride-th tap of the kernel, and the phases are interleaved afterwards.

    OpenVINO 2026.4 computes transposed convolutions with stride wrongly, and ONNX Runtime slowly.
    """
    size = [int(inputs.shape[axis]) for axis in (2, 3)]
    cells = [-(-length // step) for length, step in zip(size, stride, strict=True)]
    apart = _phase_by_phase if groups == 1 and weight.shape[1] >= _BLOCK else _phases_as_channels
    phases: list[list[Tensor | None]] = [[None] * stride[1] for _ in range(stride[0])]
    for (row, column), found in apart(gradient, weight, stride, groups).items():
        (up, row_phase), (left, column_phase) = (
            divmod(row - padding[0], stride[0]),
            divmod(column - padding[1], stride[1]),
        )
        phases[row_phase][column_phase] = _cropped(found, [-up, -left], cells)
    return _cropped(_interleaved(phases), [0, 0], size)


def _phase_by_phase(gradient: Tensor, weight: Tensor, stride: list[int], groups: int) -> dict[tuple[int, int], Tensor]:
    """Of each phase (row, column) that a kernel reaches, what its pixels get; a convolution for each."""
    found = {}
    for row in range(min(stride[0], weight.shape[2])):
        for column in range(min(stride[1], weight.shape[3])):
            taps = weight[:, :, row :: stride[0], column :: stride[1]]
            edge = [taps.shape[2] - 1, taps.shape[3] - 1]
            turned = taps.transpose(0, 1).flip([2, 3])
            found[row, column] = aten.convolution.default(
                gradient, turned, None, [1, 1], edge, [1, 1], False, [0, 0], groups
            )
    return found


def _phases_as_channels(
    gradient: Tensor, weight: Tensor, stride: list[int], groups: int
) -> dict[tuple[int, int], Tensor]:
    """As `_phase_by_phase`, in one convolution, with zeros for taps that only some phases have: few channels would
    leave most of a runtime's blocks of them empty.
    """
    count, _, height, width = gradient.shape
    outputs, inner, *kernel = weight.shape
    phases = [min(size, step) for size, step in zip(kernel, stride, strict=True)]
    taps = [-(-size // step) for size, step in zip(kernel, stride, strict=True)]
    (rows, columns), (row_taps, column_taps) = phases, taps
    padded = aten.constant_pad_nd.default(
        weight, [0, column_taps * columns - kernel[1], 0, row_taps * rows - kernel[0]], 0.0
    )
    apart = padded.reshape(groups, outputs // groups, inner, row_taps, rows, column_taps, columns)
    dense = apart.flip([3, 5]).permute(0, 4, 6, 2, 1, 3, 5)
    dense = dense.reshape(groups * rows * columns * inner, outputs // groups, row_taps, column_taps)
    edge = [row_taps - 1, column_taps - 1]
    both = aten.convolution.default(gradient, dense, None, [1, 1], edge, [1, 1], False, [0, 0], groups)
    size = [height + edge[0], width + edge[1]]
    both = both.reshape(count, groups, rows, columns, inner, *size)
    return {
        (row, column): both[:, :, row, column].reshape(count, groups * inner, *size)
        for row in range(rows)
        for column in range(columns)
    }


def _interleaved(phases: list[list[Tensor | None]]) -> Tensor:
    """Maps whose pixels (row, column) modulo the numbers of phases are those of phases[row][column]; zeros for None.

    Columns first, pixel by pixel, and then whole rows: ONNX Runtime takes a third of the time of one permutation.
    """
    like = next(each for line in phases for each in line if each is not None)
    count, channels, height, width = like.shape
    wide = len(phases[0]) * width
    empty = torch.zeros_like(like)
    lines = []
    for line in phases:
        if all(each is None for each in line):
            lines.append(like.new_zeros(()).expand(count, channels, height, wide))
        else:
            lines.append(
                torch.stack([empty if each is None else each for each in line], -1).reshape(
                    count, channels, height, wide
                )
            )
    return torch.cat(lines, -1).reshape(count, channels, len(phases) * height, wide)


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
    kernel, step, pad = (_pair(values) for values in (kernel_size, stride or kernel_size, padding))
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


def _max_pool2d_backward(
    by_index: Callable[..., Tensor],
    gradient: Tensor,
    inputs: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    indices: Tensor,
) -> Tensor:
    """Each output's gradient goes to the first largest pixel of its window, found by comparison.

    TensorRT has no max-pooling that gives indices. The pixels are sorted by their place modulo the stride, so that
    those at one offset of all windows lie side by side; what they get is interleaved, as in `_spread_convolution`.
    Dilated windows take `by_index`, PyTorch's form.
    """
    kernel, step, pad, apart = (_pair(values) for values in (kernel_size, stride or kernel_size, padding, dilation))
    if apart != [1, 1]:
        return by_index(gradient, inputs, kernel_size, stride, padding, dilation, ceil_mode, indices)
    largest, _ = aten.max_pool2d_with_indices.default(inputs, kernel, step, pad, apart, ceil_mode)
    count, channels, *size = (int(length) if axis > 1 else length for axis, length in enumerate(inputs.shape))
    windows = [int(gradient.shape[axis]) for axis in (2, 3)]
    taps = [-(-wide // each) for wide, each in zip(kernel, step, strict=True)]
    cells = [number + more - 1 for number, more in zip(windows, taps, strict=True)]
    seen = [each * number - before for each, number, before in zip(step, cells, pad, strict=True)]
    beyond = [max(0, end - length) for end, length in zip(seen, size, strict=True)]
    padded = inputs[:, :, : seen[0], : seen[1]]
    if any(pad) or any(beyond):
        edges = [pad[1], beyond[1], pad[0], beyond[0]]
        padded = aten.constant_pad_nd.default(padded, edges, float("-inf"))
    # (rows modulo the stride, columns modulo the stride, N, C, cells down, cells across)
    apart_by_phase = padded.reshape(count, channels, cells[0], step[0], cells[1], step[1]).permute(3, 5, 0, 1, 2, 4)
    phases: list[list[Tensor | None]] = [[None] * step[1] for _ in range(step[0])]
    left = gradient  # what no earlier pixel of the window has taken
    for row in range(kernel[0]):
        for column in range(kernel[1]):
            (down, row_phase), (across, column_phase) = divmod(row, step[0]), divmod(column, step[1])
            phase = apart_by_phase[row_phase, column_phase]
            pixels = phase[:, :, down : down + windows[0], across : across + windows[1]]
            taken = left * (pixels == largest)
            if (row, column) != (kernel[0] - 1, kernel[1] - 1):
                left = left - taken
            if max(taps) > 1:
                edges = [across, taps[1] - 1 - across, down, taps[0] - 1 - down]
                taken = aten.constant_pad_nd.default(taken, edges, 0.0)
            others = phases[row_phase][column_phase]
            phases[row_phase][column_phase] = taken if others is None else others + taken
    return _cropped(_interleaved(phases), pad, size)


def _pair(values: list[int]) -> list[int]:
    return list(values) * 2 if len(values) == 1 else list(values)


def _cropped(found: Tensor, before: list[int], size: list[int]) -> Tensor:
    """A part (size) of maps that begins where `before` ends; zeros beyond what is there."""
    beyond = [max(0, size[axis] + before[axis] - int(found.shape[2 + axis])) for axis in range(2)]
    if any(beyond):
        found = aten.constant_pad_nd.default(found, [0, beyond[1], 0, beyond[0]], 0.0)
    if any(before) or list(found.shape[2:]) != size:
        found = found[:, :, before[0] : before[0] + size[0], before[1] : before[1] + size[1]]
    return found


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
