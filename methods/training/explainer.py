"""What a trained explainer is, and how one method's differ from another's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..explainee import Explainee
from .config import TrainingConfig

__all__ = ["Batch", "Losses", "TrainedExplainer", "TrainedMethod", "weighted"]


class TrainedExplainer(nn.Module):
    """An explainee and a network that is trained to explain it.

    Args:
        explainee: the classifier; kept frozen and in eval mode.
        network: the only part that is trained and stored.

    Attributes:
        class_specific: the mask is about any class that is asked for; if not, about the predicted one.
    """

    def __init__(self, explainee: Explainee, network: nn.Module, *, class_specific: bool) -> None:
        super().__init__()
        self.explainee = explainee
        self.classifier = explainee.model
        self.network = network
        self.class_specific = class_specific

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the explainee's layers that are read, coarsest first."""
        raise NotImplementedError

    def forward(self, images: Tensor, target: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Predict and explain normalised images (N, 3, H, W): logits (N, K) and masks (N, M, H, W) in [0, 1]."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> TrainedExplainer:
        """Switch the network; the explainee stays in eval mode."""
        super().train(mode)
        self.classifier.eval()
        return self


class Batch(NamedTuple):
    """The images of a step, and what is asked about them.

    Attributes:
        pixels: (N, 3, H, W) in [0, 1].
        baseline: what replaces a removed pixel, of a shape that broadcasts to the pixels'.
        target: the class to explain, int64 (N,); None for the predicted one.
        elsewhere: where there is no evidence of it, (N, 1, H, W); None where nothing is known.
        seed: another for every step and process.
    """

    pixels: Tensor
    baseline: Tensor
    target: Tensor | None
    elsewhere: Tensor | None
    seed: int


@dataclass(frozen=True)
class Losses:
    """The losses of a batch.

    Attributes:
        terms: by name, before weighting, one number per image, (N,); a term whose weight is 0 is not there.
        total: mean over the batch of their weighted sum, a scalar.
    """

    terms: Mapping[str, Tensor]
    total: Tensor


def weighted(terms: Mapping[str, Tensor], config: TrainingConfig) -> Losses:
    """Terms (N,) and their sum, weighted by the config's settings of the same names."""
    return Losses(terms, torch.stack([getattr(config, name) * values.mean() for name, values in terms.items()]).sum())


@dataclass(frozen=True)
class TrainedMethod:
    """A method whose explainers are trained.

    Attributes:
        name: in checkpoints and manifests.
        terms: names of all its losses, which are names of their weights in the config too.
        config: the type of its settings.
        build: from an explainee, a config and, by the name ``pretrained``, whether the weights of a library are loaded,
            to a fresh explainer.
        losses: from an explainer, a batch and a config to the losses; and for each term what it looks at, which depends
            on the masks: (N, …).
        objects: from an explainer and normalised images to where it finds the evidence of the predicted classes,
            (N, 1, H, W) in [0, 1].
    """

    name: str
    terms: tuple[str, ...]
    config: type[TrainingConfig]
    build: Callable[..., TrainedExplainer]
    losses: Callable[[Any, Batch, Any], tuple[Losses, dict[str, Tensor]]]
    objects: Callable[[Any, Tensor], Tensor]
