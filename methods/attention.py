"""What the attention of a vision transformer looks like, and how it is rolled out into a map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..contracts import ImageSpec
from ..errors import ModelError
from .attention_tap import AttentionTap
from .features import noise_images

__all__ = ["AttentionTap", "attention_grid", "rollout"]

_EXTRA_TOKENS = (1, 2, 5)  # the class token alone, with a distillation token (DeiT), with four registers (DINOv2)


def attention_grid(model: nn.Module, spec: ImageSpec) -> tuple[int, tuple[int, int], int]:
    """What the attention of a model looks like: the number of matrices, the grid (h, w) of patches, and the number of
    tokens before the patches (class and register tokens).

    Raises:
        ModelError: the model calls no attention, or not one whose tokens are all patches of the image.
    """
    with torch.no_grad(), AttentionTap() as tap:
        model(noise_images(model, spec, 1))
    shapes = {tuple(matrix.shape[-2:]) for matrix in tap.matrices}
    if not tap.matrices:
        raise ModelError("the model calls no attention; use a method for feature maps, such as dix or gradcam")
    if len(shapes) != 1 or any(matrix.shape[0] != 1 for matrix in tap.matrices):
        raise ModelError(
            "the model's attention is not between all patches of the image, as in a Swin transformer; "
            "name a layer with feature maps with --layer"
        )
    ((tokens, _),) = shapes
    height, width = spec.size
    for extra in _EXTRA_TOKENS:
        patches = tokens - extra
        if patches < 1:
            break
        rows = round((patches * height / width) ** 0.5)
        if rows > 0 and patches % rows == 0 and height % rows == 0 and rows * width == (patches // rows) * height:
            return len(tap.matrices), (rows, patches // rows), extra
    raise ModelError(f"{tokens} tokens are no class token and a grid of patches; such a model is not supported")


def rollout(layers: list[Tensor], grid: tuple[int, int], extra: int) -> Tensor:
    """Attention rollout (Abnar & Zuidema 2020): how much of each patch arrives in the class token.

    R = Π_l norm(A_l + I), the last layer leftmost, where norm divides each row by its sum; the map is the class token's
    row of R. Only that row is carried along, from the last layer to the first.

    Args:
        layers: non-negative (N, T, T), first layer first.
        grid: (h, w) of the patches.
        extra: tokens before the patches.

    Returns:
        (N, h, w).
    """
    last = layers[-1]
    row = F.one_hot(torch.zeros(1, dtype=torch.int64, device=last.device), last.shape[-1]).to(last.dtype)
    carried = row[None]  # (1, 1, T), broadcast by the first product
    for layer in reversed(layers):
        scaled = carried / (1 + layer.sum(-1))[:, None]
        carried = scaled @ layer + scaled
    return carried[:, 0, extra:].reshape(-1, *grid)
