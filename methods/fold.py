"""Batch norm folded into the convolution before it, for any architecture."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..contracts import ImageSpec
from .explainee import Explainee
from .features import noise_images

__all__ = ["fast_for_input_gradients", "folded"]


def fast_for_input_gradients(explainee: Explainee) -> Explainee:
    """The same classifier for work that takes hundreds of gradients for its input: a frozen copy, batch norms folded,
    weights in the memory format in which convolutions are fastest.
    """
    model = folded(explainee.model, explainee.image_spec).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return replace(explainee, model=model)


def folded(model: nn.Module, spec: ImageSpec, keep: Sequence[str] = ()) -> nn.Module:
    """A frozen copy in eval mode whose convolutions have taken in the batch norms that follow them.

    Which norm follows which convolution is seen from one run: the norm is given the very tensor that the convolution
    made. A fold that changes the logits, as where that tensor goes elsewhere as well, is taken back.

    Args:
        model: a classifier of normalised images (N, 3, H, W).
        spec: its input.
        keep: convolutions that stay as they are, since somebody looks at their output.
    """
    result = copy.deepcopy(model).eval().requires_grad_(False)
    exact = copy.deepcopy(result).double()
    images = noise_images(exact, spec, 2)
    pairs = [pair for pair in _pairs(exact, images) if pair[0] not in keep]
    if not pairs:
        return result
    with torch.no_grad():
        expected = exact(images)
    if not _equal(_fold(copy.deepcopy(exact), pairs), images, expected):  # one goes wrong: find those that do not
        pairs = [pair for pair in pairs if _equal(_fold(copy.deepcopy(exact), [pair]), images, expected)]
    return _fold(result, pairs)


def _pairs(model: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    made: dict[int, str] = {}
    kept: list[Tensor] = []  # so that no identity is used twice
    pairs: list[tuple[str, str]] = []
    calls: dict[str, int] = {}

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            if isinstance(module, nn.Conv2d):
                made[id(output)] = name
                kept.append(output)
            elif id(inputs[0]) in made:
                pairs.append((made[id(inputs[0])], name))

        return module.register_forward_hook(hook)

    handles = [
        watch(name, module) for name, module in model.named_modules() if type(module) in (nn.Conv2d, nn.BatchNorm2d)
    ]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return [pair for pair in pairs if all(calls[name] == 1 for name in pair)]


def _fold(model: nn.Module, pairs: list[tuple[str, str]]) -> nn.Module:
    for convolution, norm in pairs:
        before, after = model.get_submodule(convolution), model.get_submodule(norm)
        assert isinstance(before, nn.Conv2d), "pairs begin with a convolution"
        assert isinstance(after, nn.BatchNorm2d), "and end with a norm"
        _set(model, convolution, fuse_conv_bn_eval(before, after))
        _set(model, norm, nn.Identity())
    return model.eval().requires_grad_(False)


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _equal(model: nn.Module, images: Tensor, expected: Tensor) -> bool:
    with torch.no_grad():
        found = model(images)
    return bool(torch.allclose(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max())))
