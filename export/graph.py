"""The module that becomes the graph: raw pixels in; probabilities, target class and mask out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..methods.ltx.model import LTXExplainer

__all__ = ["ExplainerGraph"]


class ExplainerGraph(nn.Module):
    """Preprocessing, classifier, explainer and up-sampling as one function of raw pixels."""

    def __init__(self, explainer: LTXExplainer) -> None:
        super().__init__()
        self.explainer = explainer

    def forward(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict and explain.

        Args:
            image: uint8 (N, H, W, 3), at the model's size.
            target: int64 (N,), the class to explain; negative for the predicted class.

        Returns:
            probabilities (N, K); the class explained, int64 (N,); mask (N, 1, H, W) in [0, 1], 1 keeps the pixel.
        """
        pixels = (image.float() / 255).permute(0, 3, 1, 2)  # TensorRT casts uint8 but moves no axes of it
        logits, mask = self.explainer(self.explainer.explainee.normalise(pixels))
        probabilities = logits.softmax(1)
        chosen = torch.where(target < 0, logits.argmax(1), target)
        return probabilities, chosen, mask
