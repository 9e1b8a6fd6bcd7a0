"""Settings of masks that are optimised for each image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ...errors import UsageError, suggest
from ..perturb import checked_replacement

__all__ = ["OBJECTIVES", "INRConfig", "Objective", "checked_areas", "grid_of"]

Objective = Literal["preserve", "delete", "dual"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


@dataclass(frozen=True, kw_only=True)
class INRConfig:
    """How the mask of an image is found.

    Attributes:
        areas: fractions of the image that a mask keeps, in (0, 1); all of them are optimised together.
        objective: ``"preserve"``, what the mask keeps must be enough; ``"delete"``, without it the class must go;
            ``"dual"``, both.
        odds: count evidence in log odds in place of log probabilities: a mask with which the class is nearly certain
            still learns which of its pixels matter.
        baselines: what replaces a removed pixel, names or colours, see `make_baseline`. Several are taken in turn, step
            by step, and what a mask keeps counts as little as it says with any: the outline of a mask that a classifier
            reads as a shape stands out from one of them only.
        steps: updates at most.
        learning_rate: peak of the schedule, of Adam.
        warmup: fraction of the steps in which learning rate and area weight rise; then the rate falls as a cosine.
        area_weight: of the area term, at the end of the warm-up; it doubles until the last step. The area itself is
            exact (see `masks_of_area`), so the term only says that no pixel be grey.
        width: of the hidden layers.
        layers: hidden layers.
        features: frequencies of the Fourier features; each gives a sine and a cosine.
        frequency: their standard deviation, in cycles per half the image; higher ones find adversarial speckle.
        grid: positions a side at which masks are optimised; 0 takes half the image's longer side, at most 56.
        patience: steps without a better objective after which an image is finished; 0 for never.
        seed: of the features and the first weights, the same for every image.
        gain: factor of the logits of the masks that were found: fewer of their pixels are grey, and the order of the
            pixels is the same.
    """

    areas: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3)
    objective: Objective = "preserve"
    odds: bool = True
    baselines: tuple[str, ...] = ("blur",)
    steps: int = 300
    learning_rate: float = 3e-3
    warmup: float = 0.1
    area_weight: float = 30.0
    width: int = 64
    layers: int = 3
    features: int = 32
    frequency: float = 1.0
    grid: int = 0
    patience: int = 60
    seed: int = 0
    gain: float = 1.5

    def __post_init__(self) -> None:
        checked_areas(self.areas)
        if self.objective not in OBJECTIVES:
            raise UsageError(f"unknown objective '{self.objective}'; {suggest(self.objective, OBJECTIVES)}")
        for baseline in self.baselines:
            checked_replacement(baseline)
        if not self.baselines:
            raise UsageError("nothing takes the place of a removed pixel; give at least one baseline, such as blur")
        if min(self.steps, self.width, self.layers, self.features) < 1 or min(self.grid, self.patience) < 0:
            raise UsageError("steps, width, layers and features are at least 1; grid and patience are not negative")
        if not 0 <= self.warmup < 1:
            raise UsageError("warmup is a fraction of the steps, in [0, 1)")
        for name, value in (
            ("learning rate", self.learning_rate),
            ("area weight", self.area_weight),
            ("frequency", self.frequency),
            ("gain", self.gain),
        ):
            if not 0 < value < math.inf:
                raise UsageError(f"the {name} {value} is not positive and finite")

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the grid of an image of a size."""
        return grid_of(size, self.grid)


def grid_of(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """(height, width) of a grid over an image of a size: so many positions along the longer side; with 0 half of its
    pixels, at most 56, and on both sides as many as let every cell have the same even number of pixels, where there are
    such: a mask then has the same means at every finer resolution to the last digits.

    Raises:
        UsageError: more positions than the image has pixels: some would go unseen.
    """
    if longest > max(size):
        raise UsageError(f"a grid of {longest} positions is finer than the image's {max(size)} pixels; ask for fewer")
    positions = longest or min(56, -(-max(size) // 2))
    height, width = (max(1, round(positions * side / max(size))) for side in size)
    return (height, width) if longest else (_even_cells(size[0], height), _even_cells(size[1], width))


def _even_cells(side: int, most: int) -> int:
    """The largest number of cells, down to two fifths of `most`, that gives each of them an even number of pixels."""
    return next((cells for cells in range(most, 2 * most // 5, -1) if side % (2 * cells) == 0), most)


def checked_areas(areas: tuple[float, ...]) -> tuple[float, ...]:
    """The areas as they are.

    Raises:
        UsageError: there is none, or one lies outside (0, 1).
    """
    if not areas:
        raise UsageError("no area is asked for; give at least one, such as 0.1")
    for area in areas:
        if not 0 < np.float32(area) < 1:
            raise UsageError(f"the area {area} is not inside (0, 1); 0.1 keeps a tenth of the image")
    return areas
