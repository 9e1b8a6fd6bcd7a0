"""The module that becomes the graph: raw pixels in; probabilities, target class and mask out."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from ..methods.gradient.explainer import GradientExplainer
from ..methods.inr.amortized import AmortizedExplainer
from ..methods.inr.network import grid_of_points
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
        self.graph = trace_autograd_free(
            partial(explainer.attribute, spelled_out=True), (images, torch.tensor([0, -1]))
        )
        self.mask = explainer.mask
        self.has_gap = explainer.has_gap

    def forward(self, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """As `GradientExplainer.forward`."""
        logits, chosen, maps, gap = self.graph(images, target)
        return logits, chosen, self.mask(maps), gap


class ExplainerGraph(nn.Module):
    """Preprocessing, classifier, explainer and up-sampling as one function of raw pixels."""

    def __init__(self, explainer: LTXExplainer | AmortizedExplainer | GradientExplainer | TracedExplainer) -> None:
        super().__init__()
        self.explainer = explainer

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what the graph gives; an ONNX output cannot be called like an input, so not "target"."""
        more: tuple[str, ...] = ()
        if getattr(self.explainer, "has_gap", False):
            more = ("completeness_gap",)
        elif isinstance(self.explainer, AmortizedExplainer) and self.explainer.parts > 1:
            more = ("parts",)
        return ("probabilities", "target_class", "mask", *more)

    @property
    def several_targets(self) -> bool:
        """One pass answers for several classes of each image."""
        return isinstance(self.explainer, LTXExplainer) and self.explainer.class_specific

    def example(self) -> dict[str, tuple[Tensor, dict[int, str]]]:
        """Inputs to trace with, by name, each with the names of its dynamic axes."""
        height, width = self.explainer.explainee.image_spec.size
        generator = torch.Generator().manual_seed(0)
        image = torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8, generator=generator)
        target = torch.full((2, 3) if self.several_targets else (2,), -1, dtype=torch.int64)
        axes = {0: "batch", 1: "targets"} if self.several_targets else {0: "batch"}
        inputs = {"image": (image, {0: "batch"}), "target": (target, axes)}
        if isinstance(self.explainer, AmortizedExplainer):
            inputs["areas"] = (torch.tensor([0.05, 0.1, 0.3]), {0: "areas"})
            inputs["rows"] = (torch.linspace(-0.9, 0.9, 37), {0: "rows"})
            inputs["columns"] = (torch.linspace(-0.9, 0.9, 41), {0: "columns"})
        return inputs

    def forward(self, image: Tensor, target: Tensor, *query: Tensor) -> tuple[Tensor, ...]:
        """Predict and explain.

        Args:
            image: uint8 (N, H, W, 3), at the model's size.
            target: int64 (N,), the class to explain; negative for the predicted class. Of an explainer that takes
                `several_targets` (N, T).
            query: of an explainer whose masks are functions: areas (A,), y of the rows (H,) and x of the columns (W,)
                in which they are rendered, both in (−1, 1). Without them its own areas, at the model's size.

        Returns:
            As named by `outputs`: probabilities (N, K); the class explained, int64, of the target's shape; mask
            (N, M, H, W) in [0, 1], 1 keeps the pixel, M the number of targets or areas; and what a method gives
            besides.
        """
        normalised = self._normalised(image)
        if isinstance(self.explainer, AmortizedExplainer):
            return self._function(normalised, target, *query)
        if isinstance(self.explainer, LTXExplainer):
            if self.several_targets:
                found = self.explainer.predict(normalised, target)
                return found.logits.softmax(1), found.target, self.explainer.mask(found)
            logits, mask = self.explainer(normalised)
            return logits.softmax(1), torch.where(target < 0, logits.argmax(1), target), mask
        logits, chosen, mask, gap = self.explainer(normalised, target)
        return (logits.softmax(1), chosen, mask) if gap is None else (logits.softmax(1), chosen, mask, gap)

    def predict(self, image: Tensor) -> Tensor:
        """The probabilities alone, (N, K), of images uint8 (N, H, W, 3)."""
        probabilities: Tensor = self.explainer.explainee.model(self._normalised(image)).softmax(1)
        return probabilities

    def _normalised(self, image: Tensor) -> Tensor:
        pixels = (image.float() / 255).permute(0, 3, 1, 2)  # TensorRT casts uint8 but moves no axes of it
        return self.explainer.explainee.normalise(pixels)

    def _function(self, images: Tensor, target: Tensor, *query: Tensor) -> tuple[Tensor, ...]:
        explainer = self.explainer
        assert isinstance(explainer, AmortizedExplainer), "others have no functions"
        areas, rows, columns = query or (explainer.areas, *_pixels(*explainer.explainee.image_spec.size))
        field = explainer.predict(images, target)
        chosen = torch.where(target < 0, field.logits.argmax(1), target)
        answers = (field.logits.softmax(1), chosen, explainer.render(field, areas, rows, columns))
        if explainer.parts == 1:
            return answers
        return (*answers, explainer.render_parts(field, areas[:1], rows, columns))


def _pixels(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Places of an image's rows and columns."""
    return grid_of_points(height, 1)[:, 1], grid_of_points(1, width)[:, 0]
