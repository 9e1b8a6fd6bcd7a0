"""What an amortized coordinate network is trained for."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..training.explainer import Batch, Losses, TrainedMethod, weighted
from ..training.targets import generator_of
from .amortized import AmortizedExplainer, Field, build_amortized
from .amortized_config import AmortizedConfig
from .objective import area_loss, evidence_loss, sorted_reference

__all__ = ["INR", "draw_areas"]

_ENOUGH = 0.1  # area from which taking a mask away is asked to take the class away


def draw_areas(config: AmortizedConfig, seed: int) -> Tensor:
    """The areas of a step, ascending, (A,): log-uniform, one in each of as many equal ranges."""
    generator = generator_of(config.seed, seed)
    low, high = math.log(config.smallest), math.log(config.largest)
    places = (torch.arange(config.drawn) + torch.rand(config.drawn, generator=generator)) / config.drawn
    return (low + (high - low) * places).exp()


def _losses(explainer: AmortizedExplainer, batch: Batch, config: AmortizedConfig) -> tuple[Losses, dict[str, Tensor]]:
    """One set of areas for all images; the classifier sees what every mask keeps and leaves in one batch."""
    explainee, pixels = explainer.explainee, batch.pixels
    areas = draw_areas(config, batch.seed).to(pixels.device)
    field = explainer.predict(explainee.normalise(pixels), batch.target)
    field = Field(field.logits, field.target, field.hidden.float())
    masks = explainer.masks(field, areas)
    shown = masks
    if config.parts > 1:  # (N, A + parts − 1, P)
        shown = torch.cat([masks, explainer.part_masks(field, areas[:1])[:, 1:]], 1)
    count, each = shown.shape[:2]
    large = explainer.upsample(shown.reshape(count * each, 1, *explainer.network.grid))
    large = large.reshape(count, each, *large.shape[2:])
    views = {}
    if config.preserve:
        views["preserve"] = large
    if config.complement:
        views["complement"] = 1 - large[:, : len(areas)]
    every = torch.cat(list(views.values()), 1)
    answers = explainer.classifier(explainee.perturbed(pixels, every, batch.baseline)).float()
    by_view = answers.reshape(count, every.shape[1], -1).split([view.shape[1] for view in views.values()], 1)
    terms: dict[str, Tensor] = {}
    for (name, view), logits in zip(views.items(), by_view, strict=True):
        target = field.target.repeat_interleave(view.shape[1])
        if name == "preserve":
            terms[name] = evidence_loss(logits.flatten(0, 1), None, target, "preserve").reshape(count, -1).mean(1)
        else:
            heavy = (areas / _ENOUGH).clamp_max(1)
            found = evidence_loss(None, logits.flatten(0, 1), target, "delete").reshape(count, -1)
            terms[name] = (found * heavy).mean(1)
    if config.binary:
        terms["binary"] = area_loss(masks, sorted_reference(areas, masks.shape[2])).mean(1)
    if config.smooth:
        maps = masks.reshape(count, len(areas), *explainer.network.grid)
        down, across = maps.diff(dim=2).abs(), maps.diff(dim=3).abs()
        terms["smooth"] = (down.sum((2, 3)) + across.sum((2, 3))).mean(1) / masks.shape[2]
    if config.nested and len(areas) > 1:
        terms["nested"] = (masks[:, :-1] - masks[:, 1:]).clamp_min(0).mean((1, 2))
    if config.elsewhere and batch.elsewhere is not None:
        outside = F.adaptive_avg_pool2d(batch.elsewhere, explainer.network.grid).flatten(2)
        room = 1 - outside.mean(2)  # (N, 1)
        wrong = -(outside * (-masks.clamp_max(1 - 1e-6)).log1p()).mean(2)  # (N, A)
        terms["elsewhere"] = (wrong * (areas < room)).mean(1)
    return weighted(terms, config), dict.fromkeys(terms, masks)


TERMS = ("preserve", "complement", "binary", "smooth", "nested", "elsewhere")
INR = TrainedMethod("inr", TERMS, AmortizedConfig, build_amortized, _losses, AmortizedExplainer.objects)
