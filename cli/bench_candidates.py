"""The engines that ``saccade bench`` holds side by side, by the names that a user types."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from ..accel.bench import Candidate
from ..accel.bundle import Bundle
from ..accel.engine import Engine
from ..accel.engines import ENGINES, open_engine
from ..accel.onnx_engine import short_name
from ..errors import EngineError, UsageError, suggest

if TYPE_CHECKING:
    from ..accel.torch_engine import TorchEngine

__all__ = ["RIVALS", "make_candidates", "make_rivals"]

RIVALS = ("torch-eager", "torch-compile")


def make_candidates(
    bundle: Bundle,
    engines: Sequence[str],
    precisions: Sequence[str],
    *,
    providers: Sequence[str] = (),
    provider_options: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    threads: int | None = None,
) -> list[Candidate]:
    """Every engine in every precision; ``"all"`` stands for those that there are.

    Raises:
        EngineError: an engine that there is not, or a precision that the bundle does not hold.
    """
    for name in engines:
        if name not in (*ENGINES, "all"):
            raise EngineError(f"there is no engine '{name}'; {suggest(name, [*ENGINES, 'all'])}")
    known = [short_name(name) for name in providers or ("cpu", *(("cuda",) if "all" in engines else ()))]
    for name in provider_options:
        if short_name(name) not in known:
            raise UsageError(
                f"--provider-option is for '{name}', and the providers are {', '.join(known)}; add --provider"
            )
    held = ("fp32", *bundle.manifest.precisions)
    chosen = ENGINES if "all" in engines else tuple(dict.fromkeys(engines))
    kinds = held if "all" in precisions else tuple(dict.fromkeys(precisions))
    found = []
    for name in chosen:
        for asked in _providers(name, engines, providers):
            for precision in kinds:
                settings = {
                    "precision": precision,
                    "threads": None if name == "tensorrt" else threads,
                    "providers": asked or None,
                    "provider_options": {
                        key: value
                        for key, value in provider_options.items()
                        if short_name(key) in map(short_name, asked)
                    }
                    or None,
                }
                title = f"{name} {asked[0]}" if asked and asked != ("cpu",) else name
                found.append(Candidate(title, partial(open_engine, bundle, name, **settings)))  # type: ignore[arg-type]
    return found


def make_rivals(
    bundle: Bundle, names: Sequence[str], checkpoint: Path | None, weights: Path | None, threads: int | None = None
) -> list[Candidate]:
    """The original explainer in PyTorch, as it is and compiled.

    Args:
        bundle: an opened bundle.
        names: of `RIVALS`.
        checkpoint: of a trained explainer.
        weights: of the classifier, where they are not where they were.
        threads: of PyTorch on a processor; None takes all cores.

    Raises:
        UsageError: there is no such rival, or a trained explainer's checkpoint was not given.
        ModelError: the classifier is not the one that the bundle was exported from.
    """
    for name in names:
        if name not in RIVALS:
            raise UsageError(f"there is nothing called '{name}' to compare with; {suggest(name, RIVALS)}")
    if not names:
        return []
    original = _original(bundle, checkpoint, weights)
    if threads:
        import torch

        torch.set_num_threads(threads)
    return [Candidate(name, partial(_rival, original, compiled=name == "torch-compile")) for name in names]


def _providers(engine: str, engines: Sequence[str], providers: Sequence[str]) -> list[tuple[str, ...]]:
    """Of ONNX Runtime, the providers of each candidate; where all engines are asked for, the GPU's as well."""
    if engine != "onnx":
        return [()]
    if providers or "all" not in engines:
        return [tuple(providers) or ("cpu",)]
    import onnxruntime as ort

    return [("cpu",), *([("cuda",)] if "CUDAExecutionProvider" in ort.get_available_providers() else [])]


def _original(bundle: Bundle, checkpoint: Path | None, weights: Path | None) -> Callable[[], TorchEngine]:
    """What makes the original explainer's engine."""
    from ..export.in_torch import as_original
    from ..methods.features import best_device

    manifest = bundle.manifest
    if manifest.method in ("ltx", "inr"):
        if checkpoint is None:
            raise UsageError(f"the original of '{manifest.name}' is its checkpoint: give it with --checkpoint DIR")
        from ..methods.checkpoint import load_checkpoint

        explainer, _ = load_checkpoint(checkpoint, weights=str(weights) if weights else None)
        return lambda: as_original(explainer.to(best_device()), bundle)
    from ..methods.gradient.explainer import GradientExplainer
    from .contenders import original_config, original_explainee

    explainee = original_explainee(bundle, weights)
    explainee.model.to(best_device())
    gradients = GradientExplainer(explainee, original_config(manifest)).eval()
    return lambda: as_original(gradients, bundle)


def _rival(original: Callable[[], TorchEngine], *, compiled: bool) -> Engine:
    from ..export.in_torch import compiled_in_torch

    return compiled_in_torch(original()) if compiled else original()
