"""Right gradients of batch norm for a batch of one.

PyTorch's batch norm on a CPU (2.13 and before) takes a gradient whose strides are those of channels-last maps but for
the batch's, which nothing tells for a batch of one, for one in the ordinary format, and gives the values back in the
wrong places, in training and in eval mode, without a word. Such a gradient comes out of every transformer whose patches
are made by convolutions that end in a batch norm. One that is given the strides of its format is treated rightly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["right_batch_norm_gradients"]


@contextmanager
def right_batch_norm_gradients(model: nn.Module) -> Iterator[None]:
    """While this is open, gradients that go through the model's batch norms are right for a batch of one too."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    handles = [module.register_forward_hook(_watch, with_kwargs=True) for module in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watch(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
    if output.requires_grad and output.ndim == 4 and output.shape[0] == 1:
        given = _is_clear(inputs[0] if inputs else named["input"])

        def clear(gradient: Tensor) -> Tensor:
            return gradient if given and _is_clear(gradient) else _clear(gradient)

        output.register_hook(clear)  # type: ignore[no-untyped-call]


def _is_clear(maps: Tensor) -> bool:
    """The batch's stride says as well how the maps lie."""
    return maps.stride(0) == maps[0].numel()


def _clear(maps: Tensor) -> Tensor:
    return maps.clone(memory_format=torch.channels_last)
