"""Attention rollout, gradient rollout, DIX and IIA on the attention matrices of a vision transformer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..attention import AttentionTap, rollout
from ..quadrature import Quadrature
from ..representation import logit_sum
from .paths import by_point, passes

__all__ = ["AttentionSetting", "attention_rollout", "dix_of_attention", "gradient_rollout", "iia_of_attention"]


@dataclass(frozen=True)
class AttentionSetting:
    """What the methods share.

    Attributes:
        model: the classifier, frozen and in eval mode.
        blocks: number of attention matrices.
        grid: (h, w) of the patches.
        extra: tokens before the patches.
        rule: of every integral.
        published: compute what the published code computes.
        at_once: points per pass, 0 for all.
    """

    model: nn.Module
    blocks: int
    grid: tuple[int, int]
    extra: int
    rule: Quadrature
    published: bool = False
    at_once: int = 0

    def roll(self, layers: Sequence[Tensor]) -> Tensor:
        """Rollout of (N, T, T) per block."""
        return rollout(list(layers), self.grid, self.extra)


def attention_rollout(setting: AttentionSetting, images: Tensor, target: Tensor) -> Tensor:
    """Rollout of the attention's mean over heads (Abnar & Zuidema 2020); the class plays no role."""
    with torch.no_grad(), AttentionTap() as tap:
        setting.model(images)
    return setting.roll([matrix.mean(1) for matrix in tap.matrices])


def gradient_rollout(setting: AttentionSetting, images: Tensor, target: Tensor) -> Tensor:
    """Rollout of the mean over heads of max(0, A ∘ ∂f/∂A)."""
    return setting.roll(_evidence(setting, images, target, {}))


def dix_of_attention(setting: AttentionSetting, images: Tensor, target: Tensor, depth: int) -> Tensor:
    """Deep integrated explanations over the attention of the last one, two or three blocks.

    For each of these blocks its matrix is scaled by a, the evidence max(0, A_l ∘ ∂f/∂A_l) of *all* blocks l is averaged
    over a in [0, 1], and rolled out; the maps of the blocks are added. The published code scales the last block's
    matrix for the second-last block as well.
    """
    with torch.no_grad(), AttentionTap() as tap:
        setting.model(images)
    total: Tensor | None = None
    for back in range(1, depth + 1):
        block = setting.blocks - back
        source = tap.matrices[-1 if setting.published else block].detach()
        mean = _mean_evidence(setting, images, target, block, source)
        found = setting.roll(mean)
        total = found if total is None else total + found
    assert total is not None, "depth is at least one"
    return total


def iia_of_attention(setting: AttentionSetting, images: Tensor, target: Tensor) -> Tensor:
    """Iterated integrated attributions over the image and the last block's attention.

    The image is scaled by a₀ and the last block's matrix of that image by a₁; the evidence of all blocks is averaged
    over both and rolled out once.
    """
    total: list[Tensor] | None = None
    for points, weights in passes(setting.rule, 1, images):
        dimmed = points[0] * images
        with torch.no_grad(), AttentionTap() as tap:
            setting.model(dimmed)
        mean = _mean_evidence(setting, dimmed, target, setting.blocks - 1, tap.matrices[-1].detach())
        scaled = [weights[0] * part for part in mean]
        total = scaled if total is None else [a + b for a, b in zip(total, scaled, strict=True)]
    assert total is not None, "a rule has points"
    return setting.roll(total)


def _mean_evidence(
    setting: AttentionSetting, images: Tensor, target: Tensor, block: int, source: Tensor
) -> list[Tensor]:
    """Evidence of all blocks, averaged over the path of one block's matrix from 0 to `source`."""
    total: list[Tensor] | None = None
    for points, weights in passes(setting.rule, setting.at_once, images):
        count = len(points)
        scaled = (points.reshape(-1, 1, 1, 1, 1) * source[None]).flatten(0, 1)
        copies = images.repeat(count, 1, 1, 1)
        leaf = scaled.detach().requires_grad_(True)
        found = _evidence(setting, copies, target.repeat(count), {block: leaf})
        means = [(by_point(part, count) * weights.reshape(-1, 1, 1, 1)).sum(0) for part in found]
        total = means if total is None else [a + b for a, b in zip(total, means, strict=True)]
    assert total is not None, "a rule has points"
    return total


def _evidence(
    setting: AttentionSetting,
    images: Tensor,
    target: Tensor,
    replace: dict[int, Tensor],
) -> list[Tensor]:
    """The mean over heads of max(0, A ∘ ∂f/∂A) of every block, (N, T, T)."""
    with torch.enable_grad(), AttentionTap(replace) as tap:
        logits = setting.model(images.detach().requires_grad_(True))
        gradients = torch.autograd.grad(logit_sum(logits, target), tap.matrices)
    return [
        (matrix.detach() * gradient).relu().mean(1) for matrix, gradient in zip(tap.matrices, gradients, strict=True)
    ]
