"""An engine: a loaded bundle that answers with predictions and explanations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..contracts import Explanation, Floats, MaskQuery, Uint8
from .bundle import Bundle

__all__ = ["Engine", "joined", "run_in_batches"]


class Engine(Protocol):
    """What every engine offers. Images are uint8 (N, H, W, 3) at the model's size (any size for an any-size bundle).

    Attributes:
        bundle: what it runs.
        name: of the engine, such as ``"onnx"``.
        precision: of the graph that it runs, such as ``"fp32"``.
        concurrent: several threads may call it at the same time.
        streams: batches that are best run side by side, each called for from a thread of its own; 1 where one takes the
            whole device.
    """

    bundle: Bundle
    name: str
    precision: str
    concurrent: bool
    streams: int

    def run(
        self, images: Uint8, target: NDArray[np.int64] | int | None = None, query: MaskQuery | None = None
    ) -> Explanation:
        """Predict and explain.

        Args:
            images: see above.
            target: a class index per image (N,), one for all, several per image (N, T), or None; -1 is the predicted
                class. Several give masks (N, T, H, W); where the manifest says `several_targets` they cost hardly more
                than one, else as much as so many images.
            query: which masks, where the bundle holds them as functions of place and area; None for its own areas at
                the model's size.

        Raises:
            UsageError: images of another shape or dtype, a class that is not there, or masks that the bundle does not
                hold.
            OutOfMemory: the batch does not fit.
        """
        ...

    def probabilities(self, images: Uint8) -> Floats:
        """Predict only, float32 (N, K), softmax over the classes; the mask is not computed."""
        ...


def run_in_batches(
    engine: Engine,
    images: Uint8,
    target: NDArray[np.int64],
    batch: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Explanation:
    """An engine's answers for images and their classes, in batches of at most so many; `on_progress` is told the number
    of images done.
    """
    parts = []
    for start in range(0, len(images), batch):
        parts.append(engine.run(images[start : start + batch], target[start : start + batch]))
        on_progress(min(start + batch, len(images)))
    return joined(parts)


def joined(parts: Sequence[Explanation]) -> Explanation:
    """The answers of several batches as those of one."""
    if len(parts) == 1:
        return parts[0]
    return Explanation(
        probabilities=np.concatenate([part.probabilities for part in parts]),
        target=np.concatenate([part.target for part in parts]),
        mask=np.concatenate([part.mask for part in parts]),
        diagnostics={name: np.concatenate([part.diagnostics[name] for part in parts]) for name in parts[0].diagnostics},
    )
