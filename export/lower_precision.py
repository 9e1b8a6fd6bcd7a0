"""A bundle's graph in lower precision: converted, held against PyTorch, and sensitive layers left in single."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
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
from ..evaluate.metrics import Sample, deletion, insertion, measure
from .half import computes, layer_of, rounded, to_half
from .quantise import prepared, to_int8

__all__ = ["write_lower"]

_FEW = 4  # images, those that lose most, with which sensitive layers are looked for
_GROUPS = 12  # of neighbouring nodes, that are in half precision one after the other
_MOST = 0.5  # share of the groups that may stay in single
_ENOUGH = 0.5  # of the bars, that few images may use up: other images may lose more


def write_lower(
    folder: Path,
    manifest: Manifest,
    precision: str,
    images: Uint8,
    target: NDArray[np.int64],
    original: Explanation,
    *,
    calibration: Uint8 | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> PrecisionReport:
    """Write a bundle's graph in lower precision beside that in single, if it passes its gate.

    Of half precision the gate runs a graph that rounds as a GPU does, see `rounded`; of int8 the graph itself. Where
    not all layers can be in lower precision, groups of neighbouring ones are tried there alone, and the most sensitive
    stay in single.

    Args:
        folder: with the graph in single precision.
        manifest: of the bundle.
        precision: ``"fp16"``, ``"bf16"`` or ``"int8"``.
        images: uint8 (N, H, W, 3) at the model's size.
        target: the classes that were asked for, (N,).
        original: PyTorch's answers for them.
        calibration: of int8, images like `images` whose values' ranges are taken; None for `images`.
        on_stage: told what is being done.

    Raises:
        ParityError: the gate is not passed with half of the layers in single precision; the message names the most
            sensitive one and the numbers.
    """
    model = onnx.load(folder / GRAPH_FILE)
    names = {node.name: layer_of(node) for node in model.graph.node}
    single = OnnxEngine(Bundle(folder, manifest))
    if precision == "int8":
        on_stage("int8: calibrating")
        model = prepared(model)
        some_images = images if calibration is None else calibration
        nobody = np.full(1, -1, dtype=np.int64)
        feeds = [single.inputs(some_images[at : at + 1], nobody) for at in range(len(some_images))]

    def converted(keep: Sequence[str]) -> onnx.ModelProto:
        return to_int8(model, feeds, keep) if precision == "int8" else to_half(model, precision, keep)

    def answers(keep: Sequence[str], which: NDArray[np.intp]) -> Explanation:
        graph = converted(keep) if precision == "int8" else rounded(converted(keep))
        return _answers(graph, manifest, images[which], target[which])

    def measured(found: Explanation, kept: tuple[str, ...] = ()) -> PrecisionReport:
        change = None
        if precision == "int8":
            change = _faithfulness_change(single, images, found, original)
        return measure_precision(found, original, kept).model_copy(update={"faithfulness_change": change})

    every, keep, layers = np.arange(len(images)), list[str](), tuple[str, ...]()
    on_stage(f"{precision}: asking {len(images)} images")
    found = answers((), every)
    report = measured(found)
    if losses(report, precision):
        worst = np.argsort(cosine(found.mask, original.mask))[:_FEW]
        some = _rows(original, worst)

        def share(nodes: Sequence[str]) -> float:
            return share_of_bars(measure_precision(answers(nodes, worst), some), precision)

        keep, layers = _sensitive(
            model, names, share, lambda done: on_stage(f"{precision}: looking for sensitive layers, {done:.0%}")
        )
        report = measured(answers(keep, every), layers)
    if failed := losses(report, precision):
        most = f", the most sensitive around '{layers[0]}'" if layers else ""
        raise ParityError(
            f"{precision} does not pass the gate, so no bundle was written: {'; '.join(failed)}; that is with "
            f"{len(layers)} layers in single precision{most}; leave out --precision {precision}"
        )
    onnx.save(converted(keep), folder / graph_file(precision))
    return report


def _faithfulness_change(single: OnnxEngine, images: Uint8, found: Explanation, original: Explanation) -> float:
    """The larger difference of the mean insertion and the mean deletion of the masks in lower precision from those of
    PyTorch's, both by the classifier in single precision.
    """
    metrics = (insertion(), deletion())

    def areas(masks: Explanation) -> list[float]:
        labels = original.target.reshape(len(images), -1)[:, 0]
        samples = [
            Sample(image, mask.mean(0), int(label))
            for image, mask, label in zip(images, masks.mask, labels, strict=True)
        ]
        rows = measure(metrics, samples, single.probabilities)
        return [metric.aggregate(rows[metric.name]) for metric in metrics]

    return max(abs(one - other) for one, other in zip(areas(found), areas(original), strict=True))


def _sensitive(
    model: onnx.ModelProto,
    names: Mapping[str, str],
    share: Callable[[Sequence[str]], float],
    on_progress: Callable[[float], None],
) -> tuple[list[str], tuple[str, ...]]:
    """Nodes to leave in single precision, and the layers they belong to, the most sensitive first.

    Args:
        model: in single precision.
        names: of the layers that nodes belong to.
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
        layers |= dict.fromkeys(names.get(node.name, node.name) for node in groups[place] if computes(node))
        if share(keep) <= _ENOUGH:
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
