"""A task with known evidence: the colour of a bright square in grey noise is the class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saccade.contracts import ImageSpec, Uint8
from saccade.methods.explainee import Explainee, fingerprint
from saccade.methods.ltx.config import LTXConfig

SPEC = ImageSpec(size=(32, 32), mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2))
NAMES = ("red", "green", "blue")


def squares(seed: int, count: int) -> tuple[Uint8, np.ndarray, np.ndarray]:
    """Images (N, 32, 32, 3), their classes, and where each one's 8×8 square is, bool (N, 32, 32)."""
    rng = np.random.default_rng([7, seed])
    grey = rng.normal(102, 20, (count, 32, 32, 1)) + rng.normal(0, 8, (count, 32, 32, 3))
    images = grey.clip(0, 160).astype(np.uint8)
    labels = rng.integers(0, 3, count)
    where = np.zeros((count, 32, 32), dtype=bool)
    for index, (top, left) in enumerate(rng.integers(0, 25, (count, 2))):
        where[index, top : top + 8, left : left + 8] = True
        images[index, where[index], labels[index]] = 250
    return images, labels, where


def stream(step: int) -> Uint8:
    return squares(1000 + step, 32)[0]


class SquareCNN(nn.Module):
    """Two resolutions, 16×16 and 8×8."""

    image_spec = SPEC
    class_names = NAMES

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU())
        self.late = nn.Sequential(nn.Conv2d(12, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.ReLU())
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.late(self.early(x)).mean((2, 3)))
        return logits


def as_input(images: Uint8) -> Tensor:
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.4) / 0.2


def to_explainee(model: nn.Module) -> Explainee:
    return Explainee(model.eval(), SPEC, NAMES, "python:squares:build", "pretrained", fingerprint(model))


def short(**changes: Any) -> LTXConfig:
    return LTXConfig(**({"steps": 12, "batch_size": 8, "warmup": 0.2} | changes))


def few(step: int) -> Uint8:
    return squares(step, 8)[0]


def history_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def states_equal(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def random_squares() -> Explainee:
    """An untrained classifier, always the same."""
    torch.manual_seed(11)
    return to_explainee(SquareCNN())


def random_model() -> nn.Module:
    """The classifier of `random_squares`, for ``python:squares:random_model``."""
    return random_squares().model


def trained_squares_state() -> dict[str, Tensor]:
    """Weights that tell the colours apart on images never seen."""
    torch.manual_seed(0)
    model = SquareCNN()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(150):
        images, labels, _ = squares(step, 64)
        loss = F.cross_entropy(model(as_input(images)), torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, labels, _ = squares(999, 512)
    with torch.no_grad():
        accuracy = (model.eval()(as_input(images)).argmax(1).numpy() == labels).mean()
    assert accuracy > 0.95
    return model.state_dict()
