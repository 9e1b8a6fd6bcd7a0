"""A bundle's graph in lower precision: converted, held against PyTorch, and sensitive layers left in single."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args

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
from .quantise import OPERATORS, RANGES, Quantiser

__all__ = ["write_lower"]

_FEW = 32  # images, those that lose most, with which sensitive layers are looked for
_GROUPS = 12  # of neighbouring nodes, that are in lower precision one after the other
_MOST = 0.5  # share of the groups that may stay in single
_PARTS = 4  # of a group, that go back to lower precision where the gate passes without them
_RUNS = 5  # of a batch, by which the faster of two graphs is found

Convert = Callable[[Sequence[str]], onnx.ModelProto]
Bits = Literal[7, 8]


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

    Of half precision the gate runs a graph that rounds as a GPU does, see `rounded`; of int8 the graph itself, with as
    many kinds of operators in int8 as the gate lets pass, and with the ranges of all values, or of most where those do
    not pass. Where not all layers can be in lower precision, groups of neighbouring ones are tried there alone, and the
    most sensitive stay in single. Weights in int8 take 7 bits, with which every processor computes the same; 8 if that
    is refused, and this processor computes rightly with them.

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
    gate = _Gate(precision, single, images, target, original)
    converters: dict[Bits | None, list[list[Convert]]] = {None: [[lambda keep: to_half(model, precision, keep)]]}
    if precision == "int8":
        on_stage("int8: calibrating")
        some_images = images if calibration is None else calibration
        nobody = np.full(1, -1, dtype=np.int64)
        quantiser = Quantiser(
            model, (single.inputs(some_images[at : at + 1], nobody) for at in range(len(some_images)))
        )
        model = quantiser.model
        converters = {
            bits: [
                [partial(quantiser.to_int8, kinds, ranges=ranges, weight_bits=bits) for ranges in RANGES]
                for kinds in OPERATORS
            ]
            for bits in get_args(Bits)
        }

    refused: _Try | None = None
    for bits, ways in converters.items():
        on_stage(f"{precision}: asking {len(images)} images")
        best = _fastest((_nearest(gate, model, names, alike) for alike in ways), precision, on_stage)
        if not best.failures:
            onnx.save(best.converted(), folder / graph_file(precision))
            return best.report.model_copy(update={"weight_bits": bits})
        refused = refused or best
    assert refused is not None, "there is a way"
    raise _refusal(precision, refused)


def _nearest(gate: _Gate, model: onnx.ModelProto, names: Mapping[str, str], converts: Sequence[Convert]) -> _Try:
    """Of ways to convert a graph that are as fast as one another, the first that passes the gate as it is; or the one
    that is nearest to it.
    """
    tries: list[_Try] = []
    for convert in converts:
        tries.append(one := _Try(gate, model, names, convert))
        if not one.failures:
            return one
    return min(tries, key=lambda one: share_of_bars(one.report, gate.precision, of_all=True))


def _fastest(ways: Iterable[_Try], precision: str, on_stage: Callable[[str], None]) -> _Try:
    """Of ways to convert a graph, the fastest first, one that passes the gate as it is, or with layers in single
    precision; the last one if none does.
    """
    tries: list[_Try] = []
    for one in ways:
        if not one.failures:
            return one
        tries.append(one)

    def on_progress(before: int, done: float) -> None:
        on_stage(f"{precision}: looking for sensitive layers, {(before + done) / len(tries):.0%}")

    for number, one in enumerate(tries):
        one.search(partial(on_progress, number))
    found = [one for one in tries if not one.failures]
    return min(found, key=lambda one: one.seconds()) if len(found) > 1 else (found or tries)[-1]


def _refusal(precision: str, last: _Try) -> ParityError:
    most = f", the most sensitive around '{last.layers[0]}'" if last.layers else ""
    return ParityError(
        f"{precision} does not pass the gate, so no bundle was written: {'; '.join(last.failures)}; that is with "
        f"{len(last.layers)} layers in single precision{most}; leave out --precision {precision}"
    )


@dataclass(frozen=True)
class _Gate:
    """What a graph in lower precision is held against."""

    precision: str
    single: OnnxEngine
    images: Uint8
    target: NDArray[np.int64]
    original: Explanation

    def answers(self, graph: onnx.ModelProto, which: NDArray[np.intp] | None = None) -> Explanation:
        """Of a graph, for some of the images or all; of half precision as a GPU rounds."""
        rows = np.arange(len(self.images)) if which is None else which
        with tempfile.TemporaryDirectory(prefix="saccade-") as folder:
            onnx.save(graph if self.precision == "int8" else rounded(graph), Path(folder) / GRAPH_FILE)
            manifest = self.single.bundle.manifest
            engine = OnnxEngine(Bundle(Path(folder), manifest))
            return run_in_batches(engine, self.images[rows], self.target[rows], manifest.batch)

    def report(self, found: Explanation, kept: Sequence[str]) -> PrecisionReport:
        """What answers for all images lose; whether masks are as faithful costs many passes, so it is asked last."""
        report = measure_precision(found, self.original, tuple(kept))
        if self.precision != "int8" or losses(report, self.precision):
            return report
        changes = zip(self.faithfulness(found), self._faithfulness_of_original, strict=True)
        change = max(abs(one - other) for one, other in changes)
        return report.model_copy(update={"faithfulness_change": change})

    @cached_property
    def _faithfulness_of_original(self) -> list[float]:
        return self.faithfulness(self.original)

    def faithfulness(self, answers: Explanation) -> list[float]:
        """The mean insertion and the mean deletion of masks, both by the classifier in single precision."""
        metrics = (insertion(), deletion())
        labels = self.original.target.reshape(len(self.images), -1)[:, 0]
        samples = [
            Sample(image, mask.mean(0), int(label))
            for image, mask, label in zip(self.images, answers.mask, labels, strict=True)
        ]
        rows = measure(metrics, samples, self.single.probabilities)
        return [metric.aggregate(rows[metric.name]) for metric in metrics]


class _Try:
    """One way to convert a graph, and the layers that must stay in single precision with it.

    Args:
        gate: what it is held against.
        model: in single precision.
        names: of the layers that nodes belong to.
        convert: makes the graph in lower precision, but for nodes by name.

    Attributes:
        keep: names of nodes in single precision.
        layers: that they belong to, the most sensitive first.
        report: what is lost.
    """

    def __init__(self, gate: _Gate, model: onnx.ModelProto, names: Mapping[str, str], convert: Convert) -> None:
        self._gate, self._model, self._names, self._convert = gate, model, names, convert
        self.keep: list[str] = []
        self.layers: tuple[str, ...] = ()
        found = gate.answers(convert(()))
        self.report = gate.report(found, ())
        self._worst = np.argsort(cosine(found.mask, gate.original.mask))[:_FEW]

    @property
    def failures(self) -> list[str]:
        """What is lost too much, in words."""
        return losses(self.report, self._gate.precision)

    def converted(self) -> onnx.ModelProto:
        """The graph in lower precision."""
        return self._convert(self.keep)

    def seconds(self) -> float:
        """Of a batch, the shortest of a few runs."""
        with tempfile.TemporaryDirectory(prefix="saccade-") as folder:
            onnx.save(self.converted(), Path(folder) / GRAPH_FILE)
            manifest = self._gate.single.bundle.manifest
            engine = OnnxEngine(Bundle(Path(folder), manifest))
            images = self._gate.images[: manifest.batch]
            spent = []
            for _ in range(_RUNS):
                start = time.perf_counter()
                engine.run(images)
                spent.append(time.perf_counter() - start)
            return min(spent[1:])

    def search(self, on_progress: Callable[[float], None]) -> None:
        """Leave groups of nodes in single precision, the most sensitive first, until the gate passes; and then those
        parts of them in lower precision without which it passes as well.

        Args:
            on_progress: told the share of the work that is done.
        """
        nodes = list(self._model.graph.node)
        groups = _split(nodes, _GROUPS)
        alone = []
        for place in range(len(groups)):
            on_progress(place / len(groups) * 0.6)
            alone.append(self._share([group for other, group in enumerate(groups) if other != place]))
        chosen: list[list[onnx.NodeProto]] = []
        for place in np.argsort(-np.array(alone), kind="stable")[: max(1, round(_MOST * len(groups)))]:
            chosen.append(groups[place])
            if self._share(chosen) <= 1 and self._passes(chosen):
                break
        else:
            self._passes(chosen)
            return
        for place in reversed(range(len(chosen))):
            on_progress(0.6 + 0.4 * (1 - (place + 1) / len(chosen)))
            for part in _split(chosen[place], _PARTS):
                released = {node.name for node in part}
                fewer = [[node for node in group if node.name not in released] for group in chosen]
                if any(computes(node) for node in part) and self._share(fewer) <= 1 and self._passes(fewer):
                    chosen = fewer

    def _share(self, kept: Sequence[Sequence[onnx.NodeProto]]) -> float:
        """How much of the bars few images use up; at most 1 passes."""
        answers = self._gate.answers(self._convert(_names(kept)), self._worst)
        return share_of_bars(measure_precision(answers, _rows(self._gate.original, self._worst)), self._gate.precision)

    def _passes(self, kept: Sequence[Sequence[onnx.NodeProto]]) -> bool:
        """Whether the gate passes with nodes in single precision; if so, or if nothing passed before, it is kept."""
        layers = tuple(
            dict.fromkeys(self._names.get(node.name, node.name) for group in kept for node in group if computes(node))
        )
        report = self._gate.report(self._gate.answers(self._convert(_names(kept))), layers)
        passes = not losses(report, self._gate.precision)
        if passes or self.failures:
            self.keep, self.layers, self.report = _names(kept), layers, report
        return passes


def _split(nodes: Sequence[onnx.NodeProto], parts: int) -> list[list[onnx.NodeProto]]:
    """Neighbouring nodes in so many groups of nearly the same size; fewer where there are fewer nodes."""
    edges = np.linspace(0, len(nodes), min(parts, len(nodes)) + 1).round().astype(int)
    return [list(nodes[first:last]) for first, last in pairwise(edges)]


def _names(groups: Sequence[Sequence[onnx.NodeProto]]) -> list[str]:
    return [node.name for group in groups for node in group]


def _rows(answers: Explanation, which: NDArray[np.intp]) -> Explanation:
    return Explanation(
        probabilities=answers.probabilities[which], target=answers.target[which], mask=answers.mask[which]
    )
