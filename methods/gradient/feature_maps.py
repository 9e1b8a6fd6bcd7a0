"""Grad-CAM, LayerCAM, DIX and IIA on the feature maps of any network that has some.

All take the class whose logit is explained, and give one map (N, h, w) at the resolution of the finest layer that they
read. ``mode="paper"`` computes the formulas; ``mode="code"`` what the published code of IIA and DIX computes, whose
baselines differ: see each function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.attribution_reduce import attribution_reduce
from ...kernels.integration_path import integration_path
from ..features import capture
from ..quadrature import Quadrature
from ..representation import run_from
from .paths import (
    Attribution,
    Integrand,
    PathIntegral,
    by_point,
    channel_minimum,
    completeness_gap,
    integrate_layer,
    passes,
    weighted_sum,
)

__all__ = ["Setting", "dix", "grad_cam", "grad_cam_of", "iia2", "iia3", "layer_cam", "layer_cam_of"]


@dataclass(frozen=True)
class Setting:
    """What the methods share.

    Attributes:
        model: the classifier, frozen and in eval mode.
        layers: names, the last layer first.
        enlarging: per layer the matrices (H, h) and (W, w) that enlarge its maps to the finest layer's.
        heads: per layer the weights of a head that is linear after pooling it, or None.
        rule: of every integral.
        published: compute what the published code computes.
        at_once: points per pass, 0 for all.
    """

    model: nn.Module
    layers: Sequence[str]
    enlarging: Sequence[tuple[Tensor, Tensor]]
    heads: Sequence[Tensor | None]
    rule: Quadrature
    published: bool = False
    at_once: int = 0

    def integrand(self, depth: int) -> Integrand:
        """The gradient at the layer `depth` places before the end."""
        return Integrand(self.model, self.layers[depth], self.heads[depth])

    def gradient(self, images: Tensor, values: Tensor, target: Tensor, depth: int = 0) -> Tensor:
        """The gradient at given values, from the closed form where there is one; broadcasts against the values."""
        integrand = self.integrand(depth)
        if integrand.head is not None:
            return integrand.constant(values, target)
        return integrand.gradient(images, values, target)[0]

    def enlarged(self, layer: Tensor, depth: int) -> Tensor:
        """A map (N, h, w) of the layer `depth` places before the end at the size of the finest one, bilinearly.

        Two products with constant matrices: traced, `F.interpolate` becomes gathers of single pixels.
        """
        rows, columns = self.enlarging[depth]
        return rows.to(layer) @ layer @ columns.to(layer).T

    def integrate(self, images: Tensor, end: Tensor, target: Tensor, depth: int = 0, outer: int = 1) -> PathIntegral:
        """The innermost integral of the layer `depth` places before the end; `end` of `outer` points of each image."""
        at_once = self.at_once and max(1, self.at_once // outer)
        return integrate_layer(self.integrand(depth), images, end, target, self.rule, at_once)


def grad_cam(setting: Setting, images: Tensor, target: Tensor, maps: Mapping[str, Tensor]) -> Attribution:
    """max(0, Σ_c mean(∂f/∂A_c) · A_c) (Selvaraju et al. 2017, eqs. 1 and 2)."""
    values = maps[setting.layers[0]].detach()
    return grad_cam_of(values, setting.gradient(images, values, target))


def layer_cam(setting: Setting, images: Tensor, target: Tensor, maps: Mapping[str, Tensor]) -> Attribution:
    """max(0, Σ_c max(0, ∂f/∂A_c) ∘ A_c) (Jiang et al. 2021, eqs. 5 to 7)."""
    values = maps[setting.layers[0]].detach()
    return layer_cam_of(values, setting.gradient(images, values, target))


def grad_cam_of(values: Tensor, gradient: Tensor) -> Attribution:
    """Grad-CAM of maps (N, C, h, w) and the gradient there, which may be the same at all positions."""
    return Attribution((gradient.mean((2, 3), keepdim=True) * values).sum(1).relu(), None)


def layer_cam_of(values: Tensor, gradient: Tensor) -> Attribution:
    """LayerCAM of maps and the gradient there, as `grad_cam_of`."""
    gradient = gradient.expand_as(values)
    return Attribution(attribution_reduce(gradient, values, _once(values), "positive gradient").relu(), None)


def dix(setting: Setting, images: Tensor, target: Tensor, maps: Mapping[str, Tensor]) -> Attribution:
    """Deep integrated explanations over one, two or three layers.

    Paper: of each layer m_l = max(0, Σ_c (u − r) ∘ ∫ v ∘ ∂f/∂v da), r each channel's minimum, over its largest value;
    together m_1 + m_1∘m_2 (+ m_1∘m_2∘m_3), the coarser maps enlarged bilinearly. So the last layer says where, and the
    finer ones how exactly. The completeness gap is the largest of the layers.

    Published code: the last layer's path has length zero; of the others r is the minimum over channels of each
    position, the terms are weighted by the distance walked, and maps of different channels are resized to one another
    along the channels as well before they are multiplied.
    """
    ends = [maps[name].detach() for name in setting.layers]
    if setting.published:
        return Attribution(_published_dix(setting, images, target, ends), None)
    found = []
    gaps = []
    for depth, end in enumerate(ends):
        integral = setting.integrate(images, end, target, depth)
        gaps.append(completeness_gap(integral.walked, integral.gained))
        layer = integral.maps.relu()
        layer = layer / layer.amax((1, 2), keepdim=True).clamp_min(1e-12)
        if depth < len(ends) - 1:
            layer = setting.enlarged(layer, depth)
        found.append(layer)
    result = found[0]
    product = found[0]
    for finer in found[1:]:
        product = product * finer
        result = result + product
    return Attribution(result, torch.stack(gaps).amax(0))


def iia2(setting: Setting, images: Tensor, target: Tensor, maps: Mapping[str, Tensor]) -> Attribution:
    """Iterated integrated attributions over the image and the last layer (two integrals).

    Paper: ∫ da₀ (u − r) ∘ ∫ da₁ v ∘ ∂f/∂v, with u the layer's map of the image a₀·x, r each channel's minimum, and
    v = r + a₁·(u − r); summed over channels.

    Published code: the inner baseline is u itself, so that Σ_c ∂f/∂u ∘ max(0, u) is summed over the image's path.
    """
    total = torch.zeros_like(maps[setting.layers[0]][:, 0])
    walked = gained = total[:, 0, 0]
    for points, weights in passes(setting.rule, setting.at_once, images):
        end = _maps_along(setting, images, points, setting.layers[0])
        if setting.published:
            gradient = setting.gradient(images, end, target).expand_as(end)
            total = total + attribution_reduce(gradient, end, weights, "positive value")
            continue
        integral = setting.integrate(images, end, target, outer=len(points))
        total = total + weighted_sum(integral.maps, weights)
        walked = walked + weighted_sum(integral.walked, weights)
        gained = gained + weighted_sum(integral.gained, weights)
    if setting.published:
        return Attribution(total, None)
    return Attribution(total.relu(), completeness_gap(walked, gained))


def iia3(setting: Setting, images: Tensor, target: Tensor, maps: Mapping[str, Tensor]) -> Attribution:
    """Iterated integrated attributions over the image and the last two layers (three integrals).

    Paper: ∫∫ da₀ da₁ (u₂ − r₂) ∘ ∫ da₂ v₂ ∘ ∂f/∂v₂, with u₁ the earlier layer's map of a₀·x, v₁ = r₁ + a₁·(u₁ − r₁) and
    u₂ the last layer's map when the earlier one is v₁; baselines are each channel's minimum.

    Published code: baselines are the element-wise minimum over the image's path, and the sum is of
    max(0, ∂f/∂v₂ ∘ max(0, v₂)).
    """
    last, earlier = setting.layers[0], setting.layers[1]
    if setting.published:
        return Attribution(_published_iia3(setting, images, target), None)
    total = torch.zeros_like(maps[last][:, 0])
    walked = gained = total[:, 0, 0]
    for outer, outer_weights in passes(setting.rule, setting.at_once, images):
        first = _maps_along(setting, images, outer, earlier)
        baseline = channel_minimum(first)
        for inner, inner_weights in passes(setting.rule, 1, images):  # one point of all images' paths at a time
            path = integration_path(first, inner, baseline)
            end = run_from(setting.model, images, earlier, path, until=last).detach()
            integral = setting.integrate(images, end, target, outer=len(outer))
            weights = inner_weights * outer_weights
            total = total + weighted_sum(integral.maps, weights)
            walked = walked + weighted_sum(integral.walked, weights)
            gained = gained + weighted_sum(integral.gained, weights)
    return Attribution(total.relu(), completeness_gap(walked, gained))


def _maps_along(setting: Setting, images: Tensor, points: Tensor, layer: str) -> Tensor:
    """The layer's maps of the images a·x, point by point."""
    with torch.no_grad(), capture(setting.model, [layer]) as maps:
        setting.model(integration_path(images, points))
    return maps[layer].detach()


def _once(values: Tensor) -> Tensor:
    """The weights of a path that is one point."""
    return values.new_ones(1)


def _published_dix(setting: Setting, images: Tensor, target: Tensor, ends: Sequence[Tensor]) -> Tensor:
    gradient = setting.gradient(images, ends[0], target)
    if len(ends) == 1:
        return attribution_reduce(gradient.expand_as(ends[0]), ends[0], _once(ends[0]), "positive product")
    rule = setting.rule
    layers = [len(rule) * gradient.relu() * ends[0].relu()]
    for depth, end in enumerate(ends[1:], 1):
        baseline = end.amin(1, keepdim=True)
        total = torch.zeros_like(end)
        for points, _ in passes(rule, setting.at_once, end):
            path = integration_path(end, points, baseline)
            step = (
                ((path - baseline.repeat(len(points), 1, 1, 1)) / max(len(rule) - 1, 1))
                .pow(2)
                .sum((1, 2, 3), keepdim=True)
            )
            terms = (setting.gradient(images, path, target, depth) * path.relu() * step.sqrt()).relu()
            total = total + by_point(terms, len(points)).sum(0)
        layers.append(total)
    channels, (height, width) = ends[1].shape[1], ends[-1].shape[-2:]
    resized = [
        F.interpolate(layer[:, None], size=(channels, height, width), mode="trilinear", align_corners=False)[:, 0]
        for layer in layers
    ]
    if len(resized) == 2:
        return (resized[0] + resized[0] * resized[1]).sum(1)
    return ((resized[0] + resized[0] * resized[1] * resized[2]) * resized[0]).sum(1)


def _published_iia3(setting: Setting, images: Tensor, target: Tensor) -> Tensor:
    last, earlier = setting.layers[0], setting.layers[1]
    points = next(passes(setting.rule, 0, images))[0]
    count = len(points)
    first = by_point(_maps_along(setting, images, points, earlier), count)  # (P, N, C, h, w)
    baseline = first.amin(0, keepdim=True)
    total: Tensor | None = None
    for a in points:
        path = (baseline + a * (first - baseline)).flatten(0, 1)
        second = by_point(run_from(setting.model, images, earlier, path, until=last).detach(), count)
        lowest = second.amin(0, keepdim=True)
        for b in points:
            inner = (lowest + b * (second - lowest)).flatten(0, 1)
            terms = (setting.gradient(images, inner, target) * inner.relu()).relu().sum(1)
            part = by_point(terms, count).sum(0)
            total = part if total is None else total + part
    assert total is not None, "a rule has points"
    return total
