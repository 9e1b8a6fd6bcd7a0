"""An engine: a loaded bundle that answers with predictions and explanations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..contracts import Explanation, Floats, MaskQuery, Uint8
from ..errors import EngineError
from .bundle import Bundle, open_bundle

__all__ = ["ENGINES", "Engine", "open_engine", "run_in_batches"]

ENGINES = ("onnx",)


class Engine(Protocol):
    """What every engine offers. Images are uint8 (N, H, W, 3) at the model's size (any size for an any-size bundle)."""

    bundle: Bundle
    name: str

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
        """
        ...

    def probabilities(self, images: Uint8) -> Floats:
        """Predict only, (N, K); the mask is not computed."""
        ...


def open_engine(
    bundle: str | Path | Bundle,
    engine: str = "onnx",
    *,
    providers: Sequence[str] | None = None,
    threads: int | None = None,
    check: bool = True,
) -> Engine:
    """Open a bundle in an engine.

    Before an engine runs a bundle for the first time on a machine it must reproduce the bundle's golden samples; the
    pass is remembered.

    Args:
        bundle: the bundle's folder, or an opened one.
        engine: ``"onnx"`` (ONNX Runtime).
        providers: execution providers by name, in priority order; default CPU.
        threads: threads for one operator; default: all cores.
        check: hold the engine against the golden samples first.

    Raises:
        EngineError: no such engine or provider here; the message says which there are.
        ParityError: the engine computes something else than the original.
    """
    if engine not in ENGINES:
        raise EngineError(f"there is no engine '{engine}'; there are: {', '.join(ENGINES)}")
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    from .onnx_engine import OnnxEngine

    made = OnnxEngine(opened, providers=providers, threads=threads)
    if check:
        from .golden import ensure_golden

        ensure_golden(made, made.identity)
    return made


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
    return Explanation(
        probabilities=np.concatenate([part.probabilities for part in parts]),
        target=np.concatenate([part.target for part in parts]),
        mask=np.concatenate([part.mask for part in parts]),
        diagnostics={name: np.concatenate([part.diagnostics[name] for part in parts]) for name in parts[0].diagnostics},
    )
