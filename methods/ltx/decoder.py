"""The shared form's network: a light decoder on the frozen explainee's own maps or tokens."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..features import FeatureShape
from ..places import ClassReadout, PlaceFeatures, enlarge_to

__all__ = ["MASK_PRIOR", "MaskDecoder"]

MASK_PRIOR = 0.0  # logit of the mask before training: half of every pixel


class MaskDecoder(PlaceFeatures):
    """A light decoder on frozen feature maps: what they say about each place, and a read-out that gives a selection in
    (0, 1); so the explanation costs a few percent of the prediction.

    Args:
        shapes: (channels, height, width) of the maps, coarsest first.
        width: channels inside.
        classes: what tells the classes apart, (K, D), see `ClassReadout`; None for a selection that is the same for
            every class.
        mixers: see `PlaceFeatures`.
    """

    def __init__(
        self, shapes: Sequence[FeatureShape], width: int, classes: Tensor | None = None, mixers: int = 0
    ) -> None:
        super().__init__(shapes, width, mixers)
        self.read = nn.Conv2d(width, 1, 1)
        nn.init.constant_(self.read.bias, MASK_PRIOR)  # type: ignore[arg-type]
        self.of_class = None if classes is None else ClassReadout(classes, width if mixers else shapes[0][0])

    def forward(self, maps: Sequence[Tensor], target: Tensor | None = None) -> Tensor:
        """Feature maps to the selection at the finest map's resolution.

        Args:
            maps: (N, C, h, w), coarsest first.
            target: for a decoder that knows classes, those to select for, int64 (N, T).

        Returns:
            (N, T, h, w) in (0, 1); T = 1 without classes.
        """
        hidden = self.gather(maps)
        found: Tensor = self.read(hidden)
        if self.of_class is not None:
            assert target is not None, "a decoder that knows classes is told which"
            found = found + enlarge_to(self.of_class(hidden if len(self.mixers) else maps[0], target), hidden.shape[2:])
        selection: Tensor = found.sigmoid()
        return selection
