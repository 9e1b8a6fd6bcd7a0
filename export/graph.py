"""The module that becomes the graph: raw pixels in; probabilities, target class and mask out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..methods.gradient.explainer import GradientExplainer
from ..methods.ltx.model import LTXExplainer
from .autograd_free import trace_autograd_free

__all__ = ["ExplainerGraph", "TracedExplainer"]


class TracedExplainer(nn.Module):
    """A gradient explainer whose gradients were traced into forward operators."""

    def __init__(self, explainer: GradientExplainer) -> None:
        super().__init__()
        self.explainee = explainer.explainee
        height, width = explainer.explainee.image_spec.size
        images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
        self.graph = trace_autograd_free(explainer.attribute, (images, torch.tensor([0, -1])))
        self.mask = explainer.mask
        self.has_gap = explainer.has_gap

    def forward(self, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """As `GradientExplainer.forward`."""
        logits, chosen, maps, gap = self.graph(images, target)
        return logits, chosen, self.mask(maps), gap


class ExplainerGraph(nn.Module):
    """Preprocessing, classifier, explainer and up-sampling as one function of raw pixels."""

    def __init__(self, explainer: LTXExplainer | GradientExplainer | TracedExplainer) -> None:
        super().__init__()
        self.explainer = explainer

    @property
    def diagnostics(self) -> tuple[str, ...]:
        """Names of what the graph gives besides probabilities, class and mask."""
        return ("completeness_gap",) if getattr(self.explainer, "has_gap", False) else ()

    @property
    def several_targets(self) -> bool:
        """One pass answers for several classes of each image."""
        return isinstance(self.explainer, LTXExplainer) and self.explainer.class_specific

    def forward(self, image: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        """Predict and explain.

        Args:
            image: uint8 (N, H, W, 3), at the model's size.
            target: int64 (N,), the class to explain; negative for the predicted class. Of an explainer that takes
                `several_targets` (N, T).

        Returns:
            probabilities (N, K); the class explained, int64, of the target's shape; mask (N, T, H, W) in [0, 1], 1
            keeps the pixel, T = 1 but for several targets; and what `diagnostics` names.
        """
        pixels = (image.float() / 255).permute(0, 3, 1, 2)  # TensorRT casts uint8 but moves no axes of it
        normalised = self.explainer.explainee.normalise(pixels)
        if isinstance(self.explainer, LTXExplainer):
            if self.several_targets:
                found = self.explainer.predict(normalised, target)
                return found.logits.softmax(1), found.target, self.explainer.mask(found)
            logits, mask = self.explainer(normalised)
            return logits.softmax(1), torch.where(target < 0, logits.argmax(1), target), mask
        logits, chosen, mask, gap = self.explainer(normalised, target)
        return (logits.softmax(1), chosen, mask) if gap is None else (logits.softmax(1), chosen, mask, gap)
