"""The classifiers that explainers are compared on, and what every row of the comparison gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from zoo import build, photographs

from saccade.contracts import Floats, Uint8
from saccade.evaluate.scenes import SceneSource
from saccade.methods.attention import attention_layout
from saccade.methods.explainee import Explainee, load_explainee
from saccade.methods.features import default_layers

__all__ = ["SUBJECTS", "Subject", "Work", "enlarged"]


@dataclass(frozen=True)
class Work:
    """What a row does.

    Attributes:
        explain: from images uint8 (N, H, W, 3) to probabilities (N, K) and masks (N, H, W) of the predicted class.
        part: does a part of the work, where all of it would take minutes, and returns how often it takes that part;
            None where `explain` is timed.
        forwards: plain forwards that the work takes beside its parts.
        weights_mib: of the model, where it is in memory already when the row is made.
    """

    explain: Callable[[Uint8], tuple[Floats, Floats]]
    part: Callable[[Uint8], float] | None = None
    forwards: float = 0
    weights_mib: float = 0


@dataclass(frozen=True)
class Subject:
    """A classifier under comparison.

    Attributes:
        title: for people.
        explainee: the classifier; its weights want gradients, as those of a model that was just loaded do.
        layer: name of the module whose maps CAMs weigh.
        grid: (h, w) of the patches where that module gives tokens, the class token first; None where it gives maps.
        trained: folder of the explainers that were trained on it, with `{}` for "ltx_shared" and "inr"; "" for none.
        images: to time and to trace with, uint8 (N, H, W, 3).
        graphs: folder where compiled graphs are kept.
        threads: of every engine.
    """

    title: str
    explainee: Explainee
    layer: str
    grid: tuple[int, int] | None
    trained: str
    images: Uint8
    graphs: Path
    threads: int

    @cached_property
    def weights_mib(self) -> float:
        """Of the classifier."""
        return sum(value.numel() * value.element_size() for value in self.explainee.model.state_dict().values()) / 2**20

    def images_of(self, batch: int) -> Uint8:
        """So many images, those there are over and over."""
        return np.ascontiguousarray(self.images[np.arange(batch) % len(self.images)])

    def tensors(self, images: Uint8) -> Tensor:
        """Images as the classifier takes them."""
        pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
        return self.explainee.normalise(pixels)

    def maps_of(self, tokens: Tensor) -> Tensor:
        """Tokens (N, 1 + h·w, C) as maps (N, C, h, w)."""
        assert self.grid is not None, "maps are maps already"
        return tokens[:, 1:].transpose(1, 2).unflatten(2, self.grid)


def _zoo(name: str, graphs: Path, threads: int, **options: int) -> Subject:
    explainee = build(name, **options)
    explainee.model.requires_grad_(True)
    images = photographs(explainee.image_spec)
    if name.startswith("ViT"):
        last = max((key for key, _ in explainee.model.named_modules() if key.endswith(".norm1")), key=_number)
        grid = attention_layout(explainee.model, explainee.image_spec).grid
        return Subject(name, explainee, last, grid, "", images, graphs, threads)
    (layer,) = default_layers(explainee.model, explainee.image_spec, 1)
    return Subject(name, explainee, layer, None, "", images, graphs, threads)


def _number(name: str) -> int:
    return int(name.split(".")[-2])


def _scenes(graphs: Path, threads: int) -> Subject:
    explainee = load_explainee("python:saccade.evaluate.scenes_models:resnet")
    explainee.model.requires_grad_(True)
    (layer,) = default_layers(explainee.model, explainee.image_spec, 1)
    images = SceneSource("val").batch(range(24)).images
    return Subject("scenes ResNet", explainee, layer, None, "scenes_resnet_{}", images, graphs, threads)


SUBJECTS: dict[str, Callable[[Path, int], Subject]] = {
    "ResNet-50": lambda graphs, threads: _zoo("ResNet-50", graphs, threads),
    "ViT-B/16": lambda graphs, threads: _zoo("ViT-B/16 (timm)", graphs, threads),
    "scenes ResNet": _scenes,
}
"""By the names that are typed."""


def enlarged(maps: Tensor, size: tuple[int, int]) -> Floats:
    """Maps (N, h, w) as masks (N, H, W) in [0, 1]: the positive part over its largest value, enlarged bilinearly."""
    positive = maps.detach().float().relu()
    scaled = positive / positive.amax((1, 2), keepdim=True).clamp_min(1e-20)
    masks: Floats = torch.nn.functional.interpolate(scaled[:, None], size, mode="bilinear")[:, 0].numpy()
    return masks
