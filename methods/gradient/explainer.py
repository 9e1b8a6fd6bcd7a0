"""A gradient method and its classifier as one module, as the exporter and the command line see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...errors import ModelError, UsageError
from ..attention import AttentionTap, attention_layout
from ..batch_norm import right_batch_norm_gradients
from ..explainee import Explainee
from ..features import FeatureShape, capture, default_layers, device_of, feature_shapes, noise_images
from ..fold import folded
from ..last_block import LastBlock, last_block
from ..quadrature import quadrature
from ..representation import linear_head, run_from
from ..upsample import BilinearUpsample, interpolation_matrix
from .config import GradientConfig
from .feature_maps import Setting, dix, grad_cam, iia2, iia3, layer_cam
from .memory import batch_and_points, largest_batch, largest_output, room_of, saved_bytes
from .paths import Attribution
from .pixels import integrated_gradients
from .tokens import TOKEN_METHODS, cam_of_tokens, tokens_to_weigh
from .transformers import (
    AttentionSetting,
    attention_rollout,
    class_rollout,
    dix_of_attention,
    gradient_rollout,
    iia_of_attention,
)

__all__ = ["Attributed", "GradientExplainer", "MapToMask"]

_LAYERS = {"gradcam": 1, "layercam": 1, "dix1": 1, "dix2": 2, "dix3": 3, "iia2": 1, "iia3": 2}
_ON_MAPS: dict[str, Callable[..., Attribution]] = {
    "gradcam": grad_cam,
    "layercam": layer_cam,
    "dix1": dix,
    "dix2": dix,
    "dix3": dix,
    "iia2": iia2,
    "iia3": iia3,
}
_BATCH = 8
_ATTENTION_ONLY = ("rollout", "class-rollout", "gradient-rollout")
_FASTEST = 6  # points of an attention matrix's path per pass: of a ViT-B, 11 cost a third more each, out of the caches


class Attributed(NamedTuple):
    """A prediction and its map.

    Attributes:
        logits: (N, K).
        target: the class explained, int64 (N,).
        maps: at their own resolution, (N, h, w).
        gap: completeness gap, (N,), see `paths.completeness_gap`; None where the method integrates nothing.
    """

    logits: Tensor
    target: Tensor
    maps: Tensor
    gap: Tensor | None


class _Pass(NamedTuple):
    """The prediction's own pass, which methods take what they can from.

    Attributes:
        images: normalised (N, 3, H, W).
        target: the class to explain, int64 (N,).
        maps: outputs of the layers that are read, by name.
        matrices: attention (N, heads, T, T) of those that are spelled out, in the order of calls; of the last one
            perhaps the first rows alone.
        logits: (N, K), with their graph from a leaf on, where a method asked for one.
        run: the classifier once more, on other images (M, 3, H, W), in the same form.
    """

    images: Tensor
    target: Tensor
    maps: Mapping[str, Tensor]
    matrices: Sequence[Tensor]
    logits: Tensor
    run: Callable[[Tensor], Tensor]


_Attribute = Callable[[_Pass], Attribution]


class MapToMask(nn.Module):
    """Raw maps (N, h, w) to masks (N, 1, H, W): the positive part, over its largest value, enlarged bilinearly.

    Args:
        grid: (h, w) of the maps; None where they have the image's size already.
        size: (H, W).
    """

    def __init__(self, grid: tuple[int, int] | None, size: tuple[int, int]) -> None:
        super().__init__()
        self.upsample = None if grid is None else BilinearUpsample(grid, size)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps to masks."""
        positive = maps.relu()[:, None]
        scaled = positive / positive.amax((2, 3), keepdim=True).clamp_min(1e-20)
        return scaled if self.upsample is None else self.upsample(scaled)


class GradientExplainer(nn.Module):
    """From normalised images and target classes to logits, the class explained, and the mask.

    DIX and IIA work on feature maps where the model has some, and on attention matrices where it has not.

    Args:
        explainee: the classifier; the explainer works on a frozen copy whose batch norms are folded.
        config: the method and its settings.

    Attributes:
        layers: names of the layers that are read, the last one first; empty for attention and pixels.
        on_attention: the method works on attention matrices.
        on_tokens: it works on the tokens of a transformer, whose gradient is taken in the prediction's own pass.
        to_the_image: it is a path whose last point is the image, where the gradient is that of the prediction's own
            pass.
        steps: of every integral.
        rule: the quadrature of every integral, of the outermost where they differ.
        inner_rule: that of the innermost integral on attention.
        batch: images that fit into the memory budget together, up to 8 or what was asked for; engines split what is
            larger.
        at_once: points of a path that go through the model together; 0 for all of them.

    Raises:
        ModelError: the model has neither feature maps nor attention, or not enough layers.
        UsageError: the method does not exist for this kind of model, or does not fit into the memory budget.
    """

    nothing: Tensor  # logits of the baseline of integrated gradients, (1, K)

    def __init__(self, explainee: Explainee, config: GradientConfig) -> None:
        super().__init__()
        self.explainee = explainee
        self.config = config
        self.classifier = folded(explainee.model, explainee.image_spec, config.layers)
        self.layers: tuple[str, ...] = ()
        self.on_attention = config.method in _ATTENTION_ONLY or self._attention_is_better()
        self.steps = config.steps_of(self.on_attention)
        self.rule = quadrature(config.quadrature, self.steps)
        self.inner_rule = quadrature(config.quadrature, config.inner_steps_of(self.on_attention))
        self.at_once = config.points_per_pass
        self.batch = max(_BATCH, config.batch)
        self.on_tokens = False
        self.to_the_image = config.method == "ig" and self.rule.reaches_end
        self._leaf: int | None = None  # number of the attention whose matrix the prediction's own gradient reaches
        self._last: LastBlock | None = None  # of methods that need no more of it than the logits do
        self._spelled: tuple[int, ...] | None = None  # attentions that are spelled out outside graphs; None for all
        self._attribute, grid = self._choose()
        self.mask = MapToMask(grid, explainee.image_spec.size).to(device_of(self.classifier))

    def forward(self, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Predict and explain.

        Args:
            images: normalised (N, 3, H, W).
            target: int64 (N,); negative for the predicted class.

        Returns:
            logits (N, K); the class explained (N,); mask (N, 1, H, W) in [0, 1]; completeness gap (N,) or None.
        """
        logits, chosen, maps, gap = self.attribute(images, target)
        return logits, chosen, self.mask(maps), gap

    def attribute(self, images: Tensor, target: Tensor, *, spelled_out: bool = False) -> Attributed:
        """The prediction and the raw map; arguments as for `forward`.

        With `spelled_out` all attention is in matrices, as in graphs, since the gradient of PyTorch's fused operator
        has no forward form; else a CAM of tokens and integrated gradients leave all but the shortened block to that
        operator, which is faster.
        """
        images = images.detach().requires_grad_(self.to_the_image)
        gradients = self.on_tokens or self.to_the_image or self._leaf is not None
        tap = self._tap(spelled_out)
        with tap, right_batch_norm_gradients(self.classifier):
            with (
                torch.set_grad_enabled(gradients),
                capture(self.classifier, self.layers, leaves=self.on_tokens) as maps,
                self._shortened(tap),
            ):
                logits = self.classifier(images)
            chosen = torch.where(target < 0, logits.argmax(1), target)
            run = partial(self._run, spelled_out)
            found = self._attribute(_Pass(images, chosen, maps, tuple(tap.matrices), logits, run))
        return Attributed(
            logits.detach(), chosen, found.maps.detach(), None if found.gap is None else found.gap.detach()
        )

    @property
    def has_gap(self) -> bool:
        """The method integrates, so that its completeness gap is known."""
        method, mode = self.config.method, self.config.mode
        return method == "ig" or (mode == "paper" and method.startswith(("dix", "iia")))

    def train(self, mode: bool = True) -> GradientExplainer:
        """Nothing here is trained: everything stays in eval mode."""
        super().train(False)
        return self

    def _tap(self, spelled_out: bool) -> AttentionTap:
        only, keep = None if spelled_out else self._spelled, self.config.method not in ("ig", *TOKEN_METHODS)
        return AttentionTap(leaf=self._leaf, only=only, keep=keep)

    def _shortened(self, tap: AttentionTap) -> AbstractContextManager[None]:
        return nullcontext() if self._last is None else self._last.shortened(self.classifier, tap)

    def _run(self, spelled_out: bool, images: Tensor) -> Tensor:
        tap = self._tap(spelled_out)
        with tap, self._shortened(tap):
            logits: Tensor = self.classifier(images)
        return logits

    def _choose(self) -> tuple[_Attribute, tuple[int, int] | None]:
        """The function that attributes, and the grid of its maps (None: the image's own)."""
        if self.config.method == "ig":
            model, spec = self.classifier, self.explainee.image_spec
            one = noise_images(model, spec, 1).requires_grad_(True)
            with torch.no_grad():
                self.register_buffer("nothing", model(torch.zeros_like(one)))
            self._shorten()
            self._fit(0, saved_bytes(model, lambda: self._run(False, one)), len(self.rule.before_end))
            return self._integrate_pixels, None
        return self._choose_attention() if self.on_attention else self._choose_maps()

    def _choose_attention(self) -> tuple[_Attribute, tuple[int, int]]:
        config, model, spec = self.config, self.classifier, self.explainee.image_spec
        if config.layers:
            raise UsageError(f"{config.method} reads all attention blocks of this model; leave out --layer")
        layout = attention_layout(model, spec)
        if config.method in _ATTENTION_ONLY:
            self._last = last_block(model, spec, layout)
        if config.method.startswith("dix") and int(config.method[3:]) > len(layout):
            raise ModelError(
                f"{config.method} reads the last {config.method[3:]} attention blocks; there is {len(layout)}"
            )
        one = noise_images(model, spec, 1).requires_grad_(True)
        with AttentionTap():
            whole = saved_bytes(model, lambda: model(one))
        if config.method.startswith("iia"):
            self._fit(whole, 2 * whole / len(layout), len(self.inner_rule), outer=len(self.rule))
        elif config.method.startswith("dix"):
            self._fit(whole, 2 * whole / len(layout), len(self.inner_rule))
            self.at_once = min(self.at_once or len(self.inner_rule), config.points_per_pass or _FASTEST)
        published = config.mode == "code"
        setting = AttentionSetting(model, layout, self.inner_rule, self.rule, published, self.at_once)
        return self._on_attention(setting), layout.grid

    def _choose_maps(self) -> tuple[_Attribute, tuple[int, int]]:
        config, model, spec = self.config, self.classifier, self.explainee.image_spec
        if config.method in TOKEN_METHODS and (tokens := tokens_to_weigh(model, spec, config.layers)):
            self.layers, self.on_tokens = tokens.names, True
            self._shorten()
            grid = tokens.shapes[0][1:]
            return lambda one: cam_of_tokens(config.method, tokens, one.target, one.maps, one.logits), grid
        needed = _LAYERS[config.method]
        self.layers = config.layers or default_layers(model, spec, needed)
        if len(self.layers) != needed:
            raise ModelError(
                f"{config.method} reads {needed} layer{'s' * (needed > 1)} of the model, the last one first, and there "
                f"{'is' if len(self.layers) == 1 else 'are'} {len(self.layers)}: {', '.join(self.layers)}; "
                "name them with --layer"
            )
        shapes = feature_shapes(model, self.layers, spec)
        heads = [linear_head(model, name, spec) for name in self.layers]
        if config.method[:3] in ("dix", "iia"):
            self._fit_maps(shapes, heads)
        dtype = noise_images(model, spec, 1).dtype
        enlarging = [
            (
                interpolation_matrix(height, shapes[-1][1], dtype),
                interpolation_matrix(width, shapes[-1][2], dtype),
            )
            for _, height, width in shapes
        ]
        setting = Setting(model, self.layers, enlarging, heads, self.rule, config.mode == "code", self.at_once)
        method = _ON_MAPS[config.method]
        finest = shapes[-1] if config.method.startswith("dix") else shapes[0]
        return lambda one: method(setting, one.images, one.target, one.maps), finest[1:]

    def _shorten(self) -> None:
        """Of a transformer that reads its logits from a few tokens, its last block for those alone."""
        model, spec = self.classifier, self.explainee.image_spec
        with suppress(ModelError):
            self._last = last_block(model, spec, attention_layout(model, spec))
        self._spelled = () if self._last is None else (self._last.attention,)

    def _fit_maps(self, shapes: Sequence[FeatureShape], heads: Sequence[Tensor | None]) -> None:
        model, spec = self.classifier, self.explainee.image_spec
        forward = 4 * largest_output(model, spec)
        backward = 0
        one = noise_images(model, spec, 1)
        for name, shape, head in zip(self.layers, shapes, heads, strict=True):
            if head is None:
                values = one.new_zeros(1, *shape).requires_grad_(True)
                with AttentionTap():
                    backward = max(backward, saved_bytes(model, partial(run_from, model, one, name, values)))
        if self.config.method.startswith("dix"):
            self._fit(forward, backward or forward, len(self.rule))
        else:
            self._fit(forward, max(forward, backward), len(self.rule), outer=len(self.rule) if backward else 1)

    def _fit(self, fixed: float, each: float, points: int, outer: int = 1) -> None:
        """As many images and points per pass as the memory budget allows; see `batch_and_points`."""
        config = self.config
        if not config.points_per_pass:
            room = room_of(self.classifier, config.memory_budget)
            batch, found = batch_and_points(room, fixed, each, points, outer, config.batch, _FASTEST)
            self.at_once = 0 if found >= points * outer else found
            self.batch = max(batch, min(_BATCH, largest_batch(room, fixed, each, points, found)))

    def _integrate_pixels(self, one: _Pass) -> Attribution:
        return integrated_gradients(one.run, one.images, one.logits, one.target, self.rule, self.at_once, self.nothing)

    def _on_attention(self, setting: AttentionSetting) -> _Attribute:
        method = self.config.method
        if method == "rollout":
            return lambda one: attention_rollout(setting, one.matrices)
        if method == "class-rollout":
            self._leaf = len(setting.layout) - 1
            return lambda one: class_rollout(setting, one.matrices, one.logits, one.target)
        if method == "gradient-rollout":
            self._leaf = 0
            return lambda one: gradient_rollout(setting, one.matrices, one.logits, one.target)
        if method == "iia2":
            return lambda one: iia_of_attention(setting, one.images, one.target)
        if method.startswith("dix"):
            return lambda one: dix_of_attention(setting, one.images, one.target, int(method[3:]))
        raise UsageError(f"{method} does not exist for attention; take iia2")

    def _attention_is_better(self) -> bool:
        """DIX and IIA of a model without feature maps."""
        if self.config.layers or self.config.method[:3] not in ("dix", "iia"):
            return False
        try:
            default_layers(self.classifier, self.explainee.image_spec, 1)
        except ModelError:
            return True
        return False
