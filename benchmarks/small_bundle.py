"""The smallest real bundle: a random CNN of two resolutions at 32 pixels with an untrained explainer, made in seconds.

Tests, the fuzzer, the soak and the checks of installations run it, where the pipeline matters and the model does not.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from random_weights import randomise
from torch import Tensor, nn

from saccade.contracts import ImageSpec
from saccade.methods.explainee import Explainee, fingerprint

__all__ = ["TINY_SPEC", "TinyCNN", "build_tiny", "make_bundle", "make_explainee"]

TINY_SPEC = ImageSpec(size=(32, 32), mean=(0.5, 0.45, 0.4), std=(0.25, 0.2, 0.3))


class TinyCNN(nn.Module):
    """Two resolutions, batch norm, global pooling: the shape of a real CNN at 32 pixels."""

    image_spec = TINY_SPEC
    class_names = ("ant", "bee", "cat", "dog", "emu")

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU())
        self.late = nn.Sequential(nn.Conv2d(12, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.pool(self.late(self.early(x))).flatten(1))
        return logits


def build_tiny() -> nn.Module:
    """For ``python:`` specs."""
    return randomise(TinyCNN())


def make_explainee() -> Explainee:
    """The tiny CNN as it is explained."""
    model = build_tiny()
    return Explainee(model, TINY_SPEC, TinyCNN.class_names, "python:tiny:build", "pretrained", fingerprint(model))


def make_bundle(explainee: Explainee, out: Path, *, form: str = "shared", any_size: bool = False) -> Path:
    """Export an untrained explainer whose masks vary from image to image."""
    from saccade.export.write_bundle import export_trained
    from saccade.methods.checkpoint import CheckpointRecord
    from saccade.methods.ltx.config import LTXConfig
    from saccade.methods.ltx.model import build_ltx

    torch.manual_seed(0)
    config = LTXConfig(form=form)  # type: ignore[arg-type]
    explainer = build_ltx(explainee, config)
    randomise(explainer.network, seed=1)
    images = np.random.default_rng(0).integers(0, 256, (16, *explainee.image_spec.size, 3), dtype=np.uint8)
    images[::2] //= 4  # dark ones too, so that not all masks are alike
    export_trained(explainer, CheckpointRecord.of(explainer, config, "noise", 0), images, out, any_size=any_size)
    return out
