"""Attention rollout, class rollout, gradient rollout, DIX and IIA on the attention matrices of a vision transformer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.attribution_reduce import attribution_reduce
from ...kernels.integration_path import integration_path
from ..attention import AttentionLayout, AttentionTap, block_input, rollout
from ..quadrature import Quadrature
from ..representation import logits_of
from .paths import Attribution, by_point, completeness_gap, passes, weighted_sum

__all__ = [
    "AttentionSetting",
    "attention_rollout",
    "class_rollout",
    "dix_of_attention",
    "gradient_rollout",
    "iia_of_attention",
]


@dataclass(frozen=True)
class AttentionSetting:
    """What the methods share.

    Attributes:
        model: the classifier, frozen and in eval mode.
        layout: of its attention.
        rule: of the integral over an attention matrix.
        outer_rule: of the integral over the image around it.
        published: compute what the published code computes.
        at_once: points per pass, 0 for all.
    """

    model: nn.Module
    layout: AttentionLayout
    rule: Quadrature
    outer_rule: Quadrature
    published: bool = False
    at_once: int = 0

    def roll(self, layers: Sequence[Tensor]) -> Tensor:
        """Rollout of (N, T, T) per block."""
        return rollout(list(layers), self.layout.grid, self.layout.extra)

    def roll_row(self, before: list[Tensor], last: Tensor, *, skip: bool) -> Tensor:
        """Rollout of which the last block's matrix is the class token's row alone, (N, 1, T); with `skip` that token
        keeps of itself what it has, as in all blocks.
        """
        row = last
        if skip:
            row = last + F.one_hot(torch.zeros(1, dtype=torch.int64, device=last.device), last.shape[-1]).to(last)
        row = row / row.sum(-1, keepdim=True).clamp_min(1e-20)
        return rollout(before, self.layout.grid, self.layout.extra, row)


def attention_rollout(setting: AttentionSetting, matrices: Sequence[Tensor]) -> Attribution:
    """Rollout of the attention's mean over heads (Abnar & Zuidema 2020); the class plays no role.

    Args:
        setting: the model.
        matrices: of the prediction's own pass, (N, heads, T, T); of the last one the class token's row is enough.
    """
    *before, last = (matrix.mean(1) for matrix in matrices)
    return Attribution(setting.roll_row(before, last[:, :1], skip=True), None)


def class_rollout(setting: AttentionSetting, matrices: Sequence[Tensor], logits: Tensor, target: Tensor) -> Attribution:
    """What speaks for the class in the last block, followed to the patches by the rollout of the blocks before.

    e = the class token's row of mean_heads max(0, A_L ∘ ∂f/∂A_L), over its sum, and then e · Π_{l<L} norm(Ā_l + I) with
    Ā the mean over heads. Gradient rollout with the gradients of the last block alone, whose backward pass is all that
    it takes; what the class token keeps of itself in the last block is no evidence, and left out.

    Args:
        setting: the model.
        matrices: as of `attention_rollout`, the last one a leaf.
        logits: of that pass, (N, K).
        target: class, int64 (N,).
    """
    last = len(matrices) - 1
    (gradient,) = _gradients_of(logits, target, matrices[last:])
    evidence = _evidence(matrices[last][:, :, :1], gradient[:, :, :1], logits.new_ones(1))
    return Attribution(setting.roll_row([matrix.mean(1) for matrix in matrices[:last]], evidence, skip=False), None)


def gradient_rollout(
    setting: AttentionSetting, matrices: Sequence[Tensor], logits: Tensor, target: Tensor
) -> Attribution:
    """Rollout of the mean over heads of max(0, A ∘ ∂f/∂A); arguments as of `class_rollout`, the first matrix a leaf."""
    gradients = _gradients_of(logits, target, matrices)
    once = logits.new_ones(1)
    *before, last = (_evidence(*pair, once) for pair in zip(matrices, gradients, strict=True))
    return Attribution(setting.roll_row(before, last[:, :1], skip=True), None)


def _gradients_of(logits: Tensor, target: Tensor, matrices: Sequence[Tensor]) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        return torch.autograd.grad(logits_of(logits, target).sum(), matrices)


def dix_of_attention(setting: AttentionSetting, images: Tensor, target: Tensor, depth: int) -> Attribution:
    """Deep integrated explanations over the attention of the last one, two or three blocks.

    For each of these blocks its matrix is scaled by a, the evidence max(0, A_l ∘ ∂f/∂A_l) of *all* blocks l is averaged
    over a in [0, 1], and rolled out; the maps of the blocks are added. The completeness gap is the largest of the
    blocks. The published code scales the last block's matrix for the second-last block as well.
    """
    total: Tensor | None = None
    gaps = []
    for back in range(1, depth + 1):
        layers, walked, gained = _unpacked(_mean_evidence(setting, images, target, len(setting.layout) - back), setting)
        found = setting.roll(layers)
        total = found if total is None else total + found
        gaps.append(completeness_gap(walked, gained))
    assert total is not None, "depth is at least one"
    return Attribution(total, None if setting.published else torch.stack(gaps).amax(0))


def iia_of_attention(setting: AttentionSetting, images: Tensor, target: Tensor) -> Attribution:
    """Iterated integrated attributions over the image and the last block's attention.

    The image is scaled by a₀ and the last block's matrix of that image by a₁; the evidence of all blocks is averaged
    over both and rolled out once.
    """
    total = images.new_zeros(())
    at_once = setting.at_once and max(1, setting.at_once // len(setting.rule))
    for points, weights in passes(setting.outer_rule, at_once, images):
        dimmed = integration_path(images, points)
        mean = _mean_evidence(setting, dimmed, target.repeat(len(points)), len(setting.layout) - 1)
        total = total + weighted_sum(mean, weights)
    layers, walked, gained = _unpacked(total, setting)
    return Attribution(setting.roll(layers), None if setting.published else completeness_gap(walked, gained))


def _mean_evidence(setting: AttentionSetting, images: Tensor, target: Tensor, block: int) -> Tensor:
    """Along the path of one block's matrix from 0 to its value: per block the mean over the path and over heads of
    max(0, A ∘ ∂f/∂A), then ∫ ⟨∂f/∂A, dA⟩, then what the target's logit gains.

    All in one tensor (N, blocks·T·T + 2), so that a runtime, which goes from results back to what they need, finishes
    one pass before it begins the next.
    """
    plain = _run(setting, images, block)
    source = plain.matrices[-1 if setting.published else block].detach()
    total = images.new_zeros(())
    for points, weights in passes(setting.rule, setting.at_once, images):
        leaf = integration_path(source, points).requires_grad_(True)
        layers, gradient, _ = _evidence_at(setting, images, target, plain, block, leaf, weights)
        walked = attribution_reduce(gradient, source, weights).sum((1, 2))
        total = total + torch.cat([*(layer.flatten(1) for layer in layers), walked[:, None]], 1)
    nowhere, once = torch.zeros_like(source).requires_grad_(True), images.new_ones(1)
    start = _evidence_at(setting, images, target, plain, block, nowhere, once)[2]
    return torch.cat([total, (logits_of(plain.logits, target) - start)[:, None]], 1)


def _unpacked(packed: Tensor, setting: AttentionSetting) -> tuple[list[Tensor], Tensor, Tensor]:
    """The layers (N, T, T), what was walked and what was gained, (N,), of `_mean_evidence`."""
    tokens = setting.layout.tokens
    layers = packed[:, :-2].reshape(-1, len(setting.layout), tokens, tokens).unbind(1)
    return list(layers), packed[:, -2], packed[:, -1]


class _Plain(NamedTuple):
    """The model on the images themselves, with its graph.

    Attributes:
        inputs: of the blocks up to the one whose path is walked, (N, T, D); empty where the model cannot be split.
        matrices: of all blocks, (N, heads, T, T).
        logits: (N, K).
    """

    inputs: list[Tensor]
    matrices: list[Tensor]
    logits: Tensor


def _run(setting: AttentionSetting, images: Tensor, block: int) -> _Plain:
    names = setting.layout.blocks[: block + 1]
    with ExitStack() as stack, torch.enable_grad(), AttentionTap() as tap:
        taken = [stack.enter_context(block_input(setting.model, name)) for name in names] if all(names) else []
        logits = setting.model(images.detach().requires_grad_(True))
    return _Plain([tensors[0] for tensors in taken], tap.matrices, logits)


def _evidence_at(
    setting: AttentionSetting,
    images: Tensor,
    target: Tensor,
    plain: _Plain,
    block: int,
    leaf: Tensor,
    weights: Tensor,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Where a block's matrix is `leaf` (P·N, heads, T, T): the evidence of every block, summed over the points with
    weights (P,) to (N, T, T); the gradient for `leaf`; and the target's logit, (P·N,).

    What lies before the block is the same at all points: it was run once, and one backward pass through it carries the
    gradients of all points.
    """
    count = leaf.shape[0] // images.shape[0]
    copied = target.repeat(count)
    if not plain.inputs:
        with torch.enable_grad(), AttentionTap({block: leaf}) as tap:
            logits = logits_of(setting.model(images.detach().repeat(count, 1, 1, 1).requires_grad_(True)), copied)
            whole = logits.sum()
        gradients = torch.autograd.grad(whole, tap.matrices)
        layers = [_evidence(*pair, weights) for pair in zip(tap.matrices, gradients, strict=True)]
        return layers, gradients[block], logits.detach()
    tokens = plain.inputs[block].detach().repeat(count, 1, 1).requires_grad_(True)
    name = setting.layout.blocks[block]
    with torch.enable_grad(), AttentionTap({block: leaf}) as tap, block_input(setting.model, name, tokens):
        logits = logits_of(setting.model(images), copied)
        whole = logits.sum()
    after = tap.matrices[block:]
    cotangent, *gradients = torch.autograd.grad(whole, [tokens, *after])
    layers = [_evidence(*pair, weights) for pair in zip(after, gradients, strict=True)]
    return _pulled_back(plain, block, by_point(cotangent, count), weights) + layers, gradients[0], logits.detach()


def _pulled_back(plain: _Plain, block: int, cotangents: Tensor, weights: Tensor) -> list[Tensor]:
    """Evidence of the blocks before one, (N, T, T), from the gradients (P, N, T, D) for its input."""
    layers: list[Tensor] = []
    for index in reversed(range(block)):
        matrix = plain.matrices[index]
        wanted = [matrix, *plain.inputs[index : index + 1]] if index else [matrix]
        pull = torch.vmap(partial(_gradients, plain.inputs[index + 1], wanted))
        gradient, *rest = pull(cotangents)
        layers.insert(0, _evidence(matrix, gradient.flatten(0, 1), weights))
        cotangents = rest[0] if rest else cotangents
    return layers


def _gradients(output: Tensor, inputs: list[Tensor], cotangent: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, inputs, cotangent, retain_graph=True)


def _evidence(matrix: Tensor, gradient: Tensor, weights: Tensor) -> Tensor:
    """The mean over heads of max(0, A ∘ ∂f/∂A), summed over points with weights (P,): (N, T, T), or of some rows."""
    return attribution_reduce(gradient, matrix, weights / matrix.shape[1], "positive product")
