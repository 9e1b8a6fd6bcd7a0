"""A short measured search for ONNX Runtime's settings on this machine's processor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..contracts import Uint8
from ..errors import ParityError
from .bundle import Bundle, write_manifest
from .golden import ensure_golden
from .machine import core_count, tuning_key
from .manifest import Tuning
from .onnx_engine import OnnxEngine

__all__ = ["Trial", "store_tuning", "tune"]

_WORTH = 1.02  # images/s, in units of the best so far, that a setting must reach to be taken
_MIN_PAIRS = 7


@dataclass(frozen=True)
class Trial:
    """One setting that was tried.

    Attributes:
        name: what was changed.
        gain: images/s in units of the best settings before: the median over pairs of calls.
        low: 25th percentile of that.
        taken: it is part of the best settings now.
        refused: why it computes something else than the original explainer; empty if it does not.
    """

    name: str
    gain: float
    low: float
    taken: bool
    refused: str = ""


def tune(
    bundle: Bundle,
    *,
    precision: str = "fp32",
    batch: int | None = None,
    seconds: float = 3.0,
    on_trial: Callable[[str, float], None] = lambda name, done: None,
) -> tuple[Tuning, list[Trial]]:
    """Find the fastest settings: one after the other is changed, and stays changed where it is worth at least 2 %.

    Each is run in turn with the best so far, so a machine whose speed drifts changes both alike; in the end the best is
    held against the default.

    Args:
        bundle: an opened bundle.
        precision: of the graph.
        batch: images per call; None for the bundle's own.
        seconds: timed seconds of one trial.
        on_trial: told what is tried, and which fraction of all is done.

    Returns:
        The settings, with their gain over the default, and what was tried.

    Raises:
        EngineError: the bundle holds no graph in this precision.
    """
    default = Tuning()
    golden = bundle.golden.images
    images = np.ascontiguousarray(golden[np.arange(batch or bundle.manifest.batch) % len(golden)])
    best, trials = default, list[Trial]()
    changes = list(_changes())
    for number, (name, change) in enumerate(changes):
        on_trial(name, number / (len(changes) + 1))
        tried = best.model_copy(update=change)
        if tried == best:
            continue
        try:
            gain, low = _gain(bundle, precision, tried, best, images, seconds)
        except ParityError as error:
            trials.append(Trial(name, 0.0, 0.0, False, str(error)))
            continue
        taken = gain >= _WORTH and low > 1
        trials.append(Trial(name, gain, low, taken))
        best = tried if taken else best
    if best == default:
        return default, trials
    on_trial("the best against the default", len(changes) / (len(changes) + 1))
    gain, _ = _gain(bundle, precision, best, default, images, seconds)
    return (best.model_copy(update={"gain": gain}) if gain >= _WORTH else default), trials


def store_tuning(bundle: Bundle, precision: str, tuning: Tuning) -> Bundle:
    """Write settings into a bundle, for machines of this one's class.

    Raises:
        OutputError: the bundle cannot be written.
    """
    manifest = bundle.manifest.model_copy(update={"tuning": {**bundle.manifest.tuning, tuning_key(precision): tuning}})
    write_manifest(bundle.path, manifest)
    return Bundle(bundle.path, manifest)


def _changes() -> Iterator[tuple[str, dict[str, object]]]:
    threads = core_count() // 2
    while threads >= 1:
        yield f"{threads} thread{'s' if threads > 1 else ''}", {"threads": threads}
        threads //= 2
    yield "threads that wait keep their core", {"spinning": True}
    yield "graph optimisation: extended", {"graph_optimization": "extended"}
    yield "graph optimisation: basic", {"graph_optimization": "basic"}
    yield "no memory pattern", {"memory_pattern": False}
    yield "no arena", {"arena": False}


def _gain(
    bundle: Bundle, precision: str, tried: Tuning, against: Tuning, images: Uint8, seconds: float
) -> tuple[float, float]:
    """Images/s of settings in units of others': median and 25th percentile over pairs of calls.

    Raises:
        ParityError: with these settings another mask comes out.
    """
    engines = [OnnxEngine(bundle, precision=precision, tuning=settings) for settings in (tried, against)]
    ensure_golden(engines[0], engines[0].identity)
    for engine in engines * 2:
        engine.run(images)
    spent: tuple[list[float], list[float]] = ([], [])
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(spent[0]) < _MIN_PAIRS:
        order = (0, 1) if len(spent[0]) % 2 == 0 else (1, 0)
        for index in order:
            start = time.perf_counter()
            engines[index].run(images)
            spent[index].append(time.perf_counter() - start)
    ratios = np.asarray(spent[1]) / np.asarray(spent[0])
    return float(np.median(ratios)), float(np.percentile(ratios, 25))
