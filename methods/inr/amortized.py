"""One network that emits the mask of any image as a function of place, area and class, in one pass (amortized
implicit neural representations).

Where an image's own coordinate network is found by hundreds of passes (Byra & Skibbe 2025), this one reads what the
classifier's frozen feature maps say *at* the coordinate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..explainee import Explainee
from ..features import FeatureShape, capture, device_of
from ..places import ClassReadout, PlaceFeatures, enlarge_to
from ..representation import class_weights
from ..spatial import SpatialLayers, spatial_layers
from ..training.explainer import TrainedExplainer
from ..upsample import BilinearUpsample, sample_maps
from .amortized_config import AmortizedConfig
from .area import masks_of_area
from .config import grid_of
from .network import area_code, grid_of_points, logit

__all__ = ["AmortizedExplainer", "AmortizedNetwork", "Field", "build_amortized"]

_LEVELS = 3  # feature maps or blocks that are read
_MIXERS = 2  # of a network on tokens
_OBJECT = 0.08  # area of the mask that stands for the object itself
_RANKS = 8  # areas of which one map is made


class Field(NamedTuple):
    """The masks of a batch as functions, before area and part are chosen.

    Attributes:
        logits: of the classifier, (N, K).
        target: the classes explained, int64 (N,).
        hidden: at each point of the grid, (N, D, P).
    """

    logits: Tensor
    target: Tensor
    hidden: Tensor


class AmortizedNetwork(PlaceFeatures):
    """(what the maps say at a place, the place, area, class, part) to the logit of the mask there.

    Everything but the last hidden layer is the same for all areas and parts, so that many of them cost little more
    than one.

    Args:
        shapes: (channels, height, width) of the maps, coarsest first.
        width: of every layer.
        grid: (height, width) of the points.
        config: number of parts, Fourier features.
        classes: see `ClassReadout`; None where only the predicted class is explained.
        mixers: see `PlaceFeatures`.
    """

    frequencies: Tensor
    points: Tensor

    def __init__(
        self,
        shapes: Sequence[FeatureShape],
        width: int,
        grid: tuple[int, int],
        config: AmortizedConfig,
        classes: Tensor | None,
        mixers: int,
    ) -> None:
        super().__init__(shapes, width, mixers)
        self.grid = grid
        self.gain = config.gain
        self.of_class = None if classes is None else ClassReadout(classes, width if mixers else shapes[0][0])
        self.agreement = nn.Parameter(torch.randn(width, 1, 1) / math.sqrt(width))
        self.read = nn.Conv2d(width, width, 1)
        self.sample = BilinearUpsample(shapes[-1][1:], grid)
        self.register_buffer("frequencies", config.frequency * torch.randn(config.features, 2) / 2)
        self.register_buffer("points", grid_of_points(*grid), persistent=False)
        self.of_place = nn.Linear(2 * config.features, width)
        self.inner = nn.Conv1d(width, width, 1)
        self.of_area = nn.Linear(1, width, bias=False)
        self.of_part = nn.Parameter(0.1 * torch.randn(config.parts, width))
        self.taken = nn.Parameter(torch.zeros(width))
        self.last = nn.Conv1d(width, 1, 1)
        nn.init.normal_(self.last.weight, std=0.5 / math.sqrt(width))
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor], target: Tensor) -> Tensor:
        """Feature maps (N, C, h, w), coarsest first, and classes int64 (N,) to `Field.hidden`."""
        gathered = self.gather(maps)
        found = self.read(gathered)
        if self.of_class is not None:
            source = gathered if len(self.mixers) else maps[0]
            agreement = enlarge_to(self.of_class(source, target[:, None]), gathered.shape[2:])
            found = found + self.agreement * agreement
        turned = 2 * math.pi * self.points @ self.frequencies.T
        encoded = self.of_place(torch.cat([turned.sin(), turned.cos()], 1)).T
        hidden: Tensor = self.inner(F.relu(self.sample(found).flatten(2) + encoded))
        return hidden

    def at(self, hidden: Tensor, areas: Tensor, part: int = 0, taken: Tensor | None = None) -> Tensor:
        """The logits of masks; outside training times the gain.

        Args:
            hidden: (N, D, P).
            areas: (A,) in (0, 1).
            part: which of the masks that have no common pixel.
            taken: what the parts before have, (N, 1, P) or (N, A, P).

        Returns:
            (N, A, P).
        """
        asked = self.of_area(area_code(areas)) + self.of_part[part]  # (A, D)
        values = hidden[:, None] + asked[:, :, None]
        if taken is not None:
            values = values + self.taken[:, None] * taken[:, :, None]
        count, number, width, points = values.shape
        found: Tensor = self.last(F.relu(values).reshape(count * number, width, points))
        found = found.reshape(count, number, points) + logit(areas)[:, None]
        return found if self.training else self.gain * found


class AmortizedExplainer(TrainedExplainer):
    """Explainee and amortized network as one module.

    Args:
        explainee: the classifier; kept frozen and in eval mode.
        network: the only part that is trained and stored.
        spatial: the explainee's layers that it reads.
        config: areas that are shown, and the number of parts.
    """

    areas: Tensor
    ranks: Tensor
    object_area: Tensor
    network: AmortizedNetwork

    def __init__(
        self, explainee: Explainee, network: AmortizedNetwork, spatial: SpatialLayers, config: AmortizedConfig
    ) -> None:
        super().__init__(explainee, network, class_specific=network.of_class is not None)
        self.spatial = spatial
        self.parts = config.parts
        self.upsample = BilinearUpsample(network.grid, explainee.image_spec.size)
        self.register_buffer("areas", torch.tensor(config.areas), persistent=False)
        ranks = torch.logspace(math.log10(config.smallest), math.log10(config.largest), _RANKS)
        self.register_buffer("ranks", ranks, persistent=False)
        self.register_buffer("object_area", torch.tensor([_OBJECT]), persistent=False)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the explainee's layers that are read, coarsest first."""
        return self.spatial.names

    def forward(self, images: Tensor, target: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Predict and explain by one map: the mean of masks from the smallest to the largest area that is trained, so
        that a pixel is the brighter the earlier it is kept, (N, 1, H, W).
        """
        field = self.predict(images, target)
        masks = self.masks(field, self.ranks)
        return field.logits, self.upsample(masks.mean(1).reshape(len(masks), 1, *self.network.grid))

    def predict(self, images: Tensor, target: Tensor | None = None) -> Field:
        """Predict, and find the functions.

        Args:
            images: normalised (N, 3, H, W).
            target: the class to explain, int64 (N,), negative for the predicted one; used if `class_specific`.
        """
        with capture(self.classifier, self.layers) as outputs:
            logits = self.classifier(images)
        chosen = logits.argmax(1)
        if target is not None and self.class_specific:
            chosen = torch.where(target < 0, chosen, target)
        return Field(logits, chosen, self.network(self.spatial.read(outputs), chosen))

    def masks(self, field: Field, areas: Tensor) -> Tensor:
        """Masks of areas (A,) at the points of the grid, (N, A, P)."""
        return masks_of_area(self.network.at(field.hidden, areas), areas)

    def render(self, field: Field, areas: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Masks of areas (A,) at any places: y of the rows (H,) and x of the columns (W,), both in (−1, 1) over the
        image; (N, A, H, W) in [0, 1].
        """
        return self._sampled(self.masks(field, areas), rows, columns)

    def render_parts(self, field: Field, area: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Masks of an area (1,) whose sum is nowhere above one, (N, J, H, W); strongest evidence first."""
        return self._sampled(self.part_masks(field, area), rows, columns)

    def part_masks(self, field: Field, area: Tensor) -> Tensor:
        """Masks of an area (1,) at the points of the grid, each where those before it are not, (N, J, P)."""
        found = [self.masks(field, area)]
        for part in range(1, self.parts):
            taken = torch.cat(found, 1).sum(1, keepdim=True).detach().clamp_max(1)
            logits = self.network.at(field.hidden, area, part, taken)
            found.append(masks_of_area(logits, area, 1 - taken))
        return torch.cat(found, 1)

    def objects(self, images: Tensor) -> Tensor:
        """Where the predicted classes' evidence is, (N, 1, H, W)."""
        masks = self.masks(self.predict(images), self.object_area)
        found: Tensor = self.upsample(masks.reshape(-1, 1, *self.network.grid))
        return found

    def _sampled(self, values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Values (N, A, P) on the grid, of masks and not of their logits, at places: (N, A, H, W)."""
        return sample_maps(values.reshape(values.shape[0], values.shape[1], *self.network.grid), rows, columns)


def build_amortized(explainee: Explainee, config: AmortizedConfig, *, pretrained: bool = True) -> AmortizedExplainer:
    """A fresh explainer, where the explainee lies.

    Args:
        explainee: the classifier to explain.
        config: settings.
        pretrained: plays no role; nothing of a library is loaded.

    Raises:
        ModelError: the explainee has neither feature maps nor tokens, or a named layer gives neither.
    """
    model, spec = explainee.model, explainee.image_spec
    spatial = SpatialLayers(model, config.layers or spatial_layers(model, spec, _LEVELS), spec)
    tokens = spatial.gives_tokens(spatial.names[0])
    classes = class_weights(model, spec) if config.class_conditional else None
    network = AmortizedNetwork(
        spatial.shapes, config.width or 64, grid_of(spec.size, config.grid), config, classes, _MIXERS if tokens else 0
    )
    explainer = AmortizedExplainer(explainee, network, spatial, config)
    return explainer.to(device_of(model)).eval()
