"""A model as a function of one of its inner representations, for any architecture.

The layer is replaced by a forward hook while the model runs on its image; what lies before the layer is computed and
dropped, which a traced graph leaves out altogether.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..contracts import ImageSpec
from ..errors import ModelError, UsageError, suggest
from .features import capture, noise_images

__all__ = [
    "checked_target",
    "class_gradient",
    "class_logits",
    "class_weights",
    "classes_to_explain",
    "linear_head",
    "logits_of",
    "replaced",
    "run_from",
]


@contextmanager
def replaced(model: nn.Module, layer: str, values: Tensor) -> Iterator[None]:
    """Inside the block the layer gives a copy of `values`, whatever it computes; a copy, since models write into it.

    Raises:
        ModelError: the model has no such layer.
    """
    known = dict(model.named_modules())
    if layer not in known or not layer:
        raise ModelError(f"the model has no layer '{layer}'; {suggest(layer, [name for name in known if name])}")
    handle = known[layer].register_forward_hook(lambda module, inputs, output: values.clone())
    try:
        yield
    finally:
        handle.remove()


def run_from(model: nn.Module, images: Tensor, layer: str, values: Tensor, *, until: str | None = None) -> Tensor:
    """The logits, or the map of a later layer, of the model whose `layer` gives `values`.

    Args:
        model: the classifier.
        images: (N, 3, H, W); only their shape matters, but for a layer inside a residual branch.
        layer: the layer that is replaced.
        values: (M, C, h, w), for any number of points M.
        until: the later layer; None for the logits.

    Raises:
        ModelError: the layer lies in a branch beside which the image itself flows on.
    """
    try:
        with replaced(model, layer, values):
            if until is None:
                result: Tensor = model(images)
            else:
                with capture(model, [until]) as maps:
                    model(images)
                result = maps[until]
    except RuntimeError as error:
        if "size of tensor" in str(error) or "shape" in str(error).lower():
            raise ModelError(
                f"the layer '{layer}' lies inside a branch: what goes past it meets its output again later; "
                "name the block that holds it with --layer"
            ) from error
        raise
    if result.shape[0] != values.shape[0]:
        raise ModelError(f"what comes after the layer '{layer}' does not depend on it; name another with --layer")
    return result


def logits_of(logits: Tensor, target: Tensor) -> Tensor:
    """The target's logit of each image, (N,).

    A product with a one-hot: the gradient of a gather is a scatter, which TensorRT does not build.

    Args:
        logits: (N, K).
        target: int64 (N,).
    """
    classes = torch.arange(logits.shape[1], device=logits.device)
    return (logits * (classes[None] == target[:, None]).to(logits.dtype)).sum(1)


def classes_to_explain(logits: Tensor, target: Tensor | None) -> Tensor:
    """The class to explain of each image, int64 (N,): the one asked for, or where that is negative the predicted one.

    Args:
        logits: (N, K).
        target: int64 (N,), on any device; None for the predicted ones.

    Raises:
        UsageError: the model has no such class, or there is not one for each image.
    """
    predicted = logits.argmax(1)
    if target is None:
        return predicted
    asked = checked_target(target, len(logits), logits.shape[1]).to(predicted.device)
    return torch.where(asked < 0, predicted, asked)


def checked_target(target: Tensor, images: int, classes: int) -> Tensor:
    """The targets (N,) as they are.

    Raises:
        UsageError: the model has no such class, or there is not one for each image.
    """
    if target.shape != (images,):
        raise UsageError(f"{images} images have one target each, not targets of shape {tuple(target.shape)}")
    if bool((target >= classes).any()):
        raise UsageError(
            f"there is no class {int(target.max())}: the model has {classes}, counted from 0; "
            "a negative one asks for the predicted class"
        )
    return target


def class_gradient(
    model: nn.Module, images: Tensor, layer: str, values: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient of the target's logit with respect to a layer's output, at `values`, of the same shape; and that logit,
    (M,).

    Args:
        model: the classifier, whose parameters take no gradient.
        images: (N, 3, H, W).
        layer: name of the layer.
        values: (M, C, h, w), M a multiple of N, point by point.
        target: int64 (N,).
    """
    points = values.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = run_from(model, images, layer, points)
        chosen = logits_of(logits, target.repeat(values.shape[0] // images.shape[0]))
        (gradient,) = torch.autograd.grad(chosen.sum(), points)
    return gradient, chosen.detach()


def class_logits(model: nn.Module, images: Tensor, layer: str, values: Tensor, target: Tensor) -> Tensor:
    """The target's logit (M,) where a layer gives `values`; arguments as for `class_gradient`."""
    with torch.no_grad():
        logits = run_from(model, images, layer, values)
    return logits_of(logits, target.repeat(values.shape[0] // images.shape[0]))


def linear_head(model: nn.Module, layer: str, image_spec: ImageSpec) -> Tensor | None:
    """The weights (K, C) of a head that is linear after global average pooling of a layer's map, or None if it is not.

    Found by its shape and proven on noise: the pooled map times the weights must give the logits.
    """
    with torch.no_grad(), capture(model, [layer]) as maps:
        logits = model(noise_images(model, image_spec, 2))
    pooled = maps[layer].mean((2, 3))
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.weight.shape == (logits.shape[1], pooled.shape[1]):
            if torch.allclose(module(pooled), logits, rtol=1e-3, atol=1e-4 * float(logits.abs().max())):
                return module.weight
    return None


def class_weights(model: nn.Module, image_spec: ImageSpec) -> Tensor:
    """What the classifier knows of each class: the weights (K, D) of the linear layer that gives the logits; the
    identity (K, K) where there is no such layer.

    Found by its output on noise, which must be the logits.
    """
    outputs: dict[nn.Linear, Tensor] = {}

    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        assert isinstance(module, nn.Linear), "hooked on no other"
        outputs[module] = output

    handles = [module.register_forward_hook(keep) for module in model.modules() if isinstance(module, nn.Linear)]
    try:
        with torch.no_grad():
            logits = model(noise_images(model, image_spec, 2))
    finally:
        for handle in handles:
            handle.remove()
    for module, output in outputs.items():
        if output.shape == logits.shape and torch.equal(output, logits):
            return module.weight
    return torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
