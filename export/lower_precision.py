"""A bundle's graph in lower precision: converted, held against PyTorch, and sensitive layers left in single."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from ..accel.bundle import Bundle
from ..accel.compare import cosine
from ..accel.engine import run_in_batches
from ..accel.manifest import GRAPH_FILE, Manifest, PrecisionReport
from ..accel.onnx_engine import OnnxEngine
from ..accel.precision import graph_file, losses, measure_precision, share_of_bars
from ..contracts import Explanation, Uint8
from ..errors import ParityError
from .half import computes, layer_of, rounded, to_half

__all__ = ["write_half"]

_FEW = 4  # images, those that lose most, with which sensitive layers are looked for
_GROUPS = 12  # of neighbouring nodes, that are in half precision one after the other
_MOST = 0.5  # share of the groups that may stay in single


def write_half(
    folder: Path,
    manifest: Manifest,
    precision: str,
    images: Uint8,
    target: NDArray[np.int64],
    original: Explanation,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> PrecisionReport:
    """Write a bundle's graph in fp16 or bf16 beside that in single precision, if it passes its gate.

    The gate runs a graph that rounds as a GPU does, see `rounded`. Where not all layers can be in half precision,
    groups of neighbouring ones are tried there alone, and the most sensitive stay in single.

    Args:
        folder: with the graph in single precision.
        manifest: of the bundle.
        precision: ``"fp16"`` or ``"bf16"``.
        images: uint8 (N, H, W, 3) at the model's size.
        target: the classes that were asked for, (N,).
        original: PyTorch's answers for them.
        on_stage: told what is being done.

    Raises:
        ParityError: the gate is not passed with half of the layers in single precision; the message names the most
            sensitive one and the numbers.
    """
    model = onnx.load(folder / GRAPH_FILE)

    def answers(keep: Sequence[str], which: NDArray[np.intp]) -> Explanation:
        return _answers(rounded(to_half(model, precision, keep)), manifest, images[which], target[which])

    every, keep, layers = np.arange(len(images)), list[str](), tuple[str, ...]()
    on_stage(f"{precision}: asking {len(images)} images")
    found = answers((), every)
    report = measure_precision(found, original)
    if losses(report, precision):
        worst = np.argsort(cosine(found.mask, original.mask))[:_FEW]
        some = _rows(original, worst)

        def share(nodes: Sequence[str]) -> float:
            return share_of_bars(measure_precision(answers(nodes, worst), some), precision)

        keep, layers = _sensitive(
            model, share, lambda done: on_stage(f"{precision}: looking for sensitive layers, {done:.0%}")
        )
        report = measure_precision(answers(keep, every), original, layers)
    if failed := losses(report, precision):
        raise ParityError(
            f"{precision} does not pass the gate, so no bundle was written: {'; '.join(failed)}; that is with "
            f"{len(layers)} layers in single precision, the most sensitive around '{layers[0]}'; leave out "
            f"--precision {precision}"
        )
    onnx.save(to_half(model, precision, keep), folder / graph_file(precision))
    return report


def _sensitive(
    model: onnx.ModelProto, share: Callable[[Sequence[str]], float], on_progress: Callable[[float], None]
) -> tuple[list[str], tuple[str, ...]]:
    """Nodes to leave in single precision, and the layers they belong to, the most sensitive first.

    Args:
        model: in single precision.
        share: of the bars that are used up where some nodes are in single precision; at most 1 passes.
        on_progress: told the share of the groups that were tried.
    """
    nodes = list(model.graph.node)
    edges = np.linspace(0, len(nodes), min(_GROUPS, len(nodes)) + 1).round().astype(int)
    groups = [nodes[first:last] for first, last in pairwise(edges)]
    alone = []
    for place in range(len(groups)):
        on_progress(place / len(groups))
        others = groups[:place] + groups[place + 1 :]
        alone.append(share([node.name for group in others for node in group]))
    keep: list[str] = []
    layers: dict[str, None] = {}
    for place in np.argsort(-np.array(alone), kind="stable")[: max(1, round(_MOST * len(groups)))]:
        keep += [node.name for node in groups[place]]
        layers |= dict.fromkeys(layer_of(node) for node in groups[place] if computes(node))
        if share(keep) <= 1:
            break
    return keep, tuple(layers)


def _answers(model: onnx.ModelProto, manifest: Manifest, images: Uint8, target: NDArray[np.int64]) -> Explanation:
    with tempfile.TemporaryDirectory(prefix="saccade-") as folder:
        onnx.save(model, Path(folder) / GRAPH_FILE)
        engine = OnnxEngine(Bundle(Path(folder), manifest))
        return run_in_batches(engine, images, target, manifest.batch)


def _rows(answers: Explanation, which: NDArray[np.intp]) -> Explanation:
    return Explanation(
        probabilities=answers.probabilities[which], target=answers.target[which], mask=answers.mask[which]
    )
