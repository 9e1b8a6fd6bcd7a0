"""What engines have in common: what they are asked is checked, and large or multiple requests are taken apart."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..contracts import Explanation, Floats, MaskQuery, Uint8
from ..errors import BundleError, EngineError, OutOfMemory, UsageError
from .bundle import Bundle
from .engine import joined
from .manifest import Manifest
from .memory import physical_bytes
from .onnx_prune import prune_onnx, refuse_other_files
from .precision import graph_file

__all__ = [
    "ALLOCATION",
    "Answer",
    "GraphEngine",
    "answer_graph",
    "check_precision",
    "check_query",
    "first_line",
    "smaller",
]

Answer = Literal["mask", "parts", "probabilities"]
ALLOCATION = ("allocate", "bad_alloc", "bad allocation", "out of memory")  # in messages of runtimes that lack memory
_COPIES = 2  # of rendered masks: the graph holds one, results are made from another


class GraphEngine:
    """An engine that runs one graph; what runs it is a subclass.

    Args:
        bundle: an opened bundle.
        precision: of the graph, one that the bundle holds.

    Attributes:
        most_images: that go through the graph together; larger requests are taken apart.
        most_targets: classes of an image that do; None for any number.
        concurrent: several threads may call it at the same time.
        streams: so many of them get through more than one does.
    """

    name: str
    concurrent = False
    streams = 1

    def __init__(self, bundle: Bundle, precision: str = "fp32") -> None:
        check_precision(bundle, precision)
        self.bundle = bundle
        self.precision = precision
        self.most_targets: int | None = None if bundle.manifest.several_targets else 1
        self.most_images: int | None = bundle.manifest.batch if bundle.manifest.splits else None

    @property
    def file(self) -> Path:
        """The bundle's graph in the engine's precision."""
        return self.bundle.path / graph_file(self.precision)

    def graph_of(self, what: Answer) -> bytes:
        """That graph, with what an answer needs alone.

        Raises:
            BundleError: it cannot be read, or wants weights from other files.
        """
        try:
            graph = self.file.read_bytes()
        except OSError as error:  # since it was opened
            raise BundleError(f"the bundle's graph '{self.file}' cannot be read: {error.strerror or error}") from None
        try:
            refuse_other_files(graph)
        except BundleError as error:
            raise BundleError(f"the bundle's graph '{self.file}' cannot be used: {error}") from None
        return answer_graph(graph, what, self.bundle.manifest.parts)

    def run(
        self, images: Uint8, target: NDArray[np.int64] | int | None = None, query: MaskQuery | None = None
    ) -> Explanation:
        """Predict and explain a batch; see `Engine.run`.

        Raises:
            UsageError: images of another shape or dtype, a target class that is not there, or a query for masks that
                the bundle does not hold.
            OutOfMemory: the batch does not fit.
        """
        images, manifest = self._checked_images(images), self.bundle.manifest
        asked = query or MaskQuery()
        if query is not None:
            check_query(manifest, query)
        if asked.parts == 1:  # the first of several is the mask itself
            asked = query = replace(asked, areas=(asked.areas or manifest.areas)[:1], parts=0)
        classes = self._checked_target(target, len(images))
        if classes.ndim == 2 and classes.shape[1] > (self.most_targets or classes.shape[1]):
            return self._in_groups(images, classes, query)
        batches = _batches(len(images), self.most_images)
        requests = (self.inputs(images[batch], classes[batch], asked) for batch in batches)
        if manifest.areas:
            self._check_room(self.inputs(images, classes, asked), asked)
        answers = self._answers_each("parts" if asked.parts else "mask", requests)
        return joined(
            [
                _explanation(self._fitting(found, classes[batch], asked), classes[batch], asked)
                for found, batch in zip(answers, batches, strict=True)
            ]
        )

    def probabilities(self, images: Uint8) -> Floats:
        """Predict a batch, (N, K), by a second graph cut out of the same file; see `Engine.probabilities`."""
        images = self._checked_images(images)
        requests = ({"image": images[batch]} for batch in _batches(len(images), self.most_images))
        answers = self._answers_each("probabilities", requests)
        found = np.concatenate([np.asarray(answer["probabilities"]) for answer in answers])
        self._refuse_other("probabilities", found, (len(images), len(self.bundle.manifest.class_names)))
        return found

    def inputs(self, images: Uint8, classes: NDArray[np.int64], query: MaskQuery | None = None) -> dict[str, Any]:
        """What the graph is given for images and their classes, (N,) or (N, T)."""
        manifest, query = self.bundle.manifest, query or MaskQuery()
        feeds: dict[str, Any] = {
            "image": images,
            "target": classes.reshape(len(images), -1) if manifest.several_targets else classes,
        }
        if manifest.areas:
            feeds["areas"] = np.array(query.areas or manifest.areas, dtype=np.float32)
            feeds["rows"], feeds["columns"] = query.places(manifest.mask_size)
        return feeds

    def _answers(self, what: Answer, feeds: dict[str, Any]) -> dict[str, Any]:
        """The graph's outputs, by name, for inputs by name; of probabilities those alone.

        Raises:
            OutOfMemory: the batch does not fit.
        """
        raise NotImplementedError

    def _answers_each(self, what: Answer, requests: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """`_answers` of each request, in order; an engine may have several under way."""
        for feeds in requests:
            yield self._answers(what, feeds)

    def _fitting(self, answers: dict[str, Any], classes: NDArray[np.int64], query: MaskQuery) -> dict[str, Any]:
        """A graph's answers, if they are what the manifest says; one that was changed may give anything."""
        manifest, count = self.bundle.manifest, len(classes)
        masks = len(query.areas or manifest.areas) or (classes.shape[1] if classes.ndim == 2 else 1)
        size = tuple(map(len, query.places(manifest.mask_size))) if manifest.areas else manifest.mask_size
        shapes = {
            "probabilities": (count, len(manifest.class_names)),
            "target_class": classes.shape if manifest.several_targets else (count,),
            **({"parts": (count, manifest.parts, *size)} if query.parts else {"mask": (count, masks, *size)}),
        }
        if manifest.several_targets and classes.ndim == 1:
            shapes["target_class"] = (count, 1)
        for name, shape in shapes.items():
            self._refuse_other(name, answers.get(name), shape)
        return answers

    def _refuse_other(self, name: str, found: Any, shape: tuple[int, ...]) -> None:
        if found is None or found.shape != shape:
            gives = "does not give" if found is None else f"gives {found.shape} as"
            raise BundleError(
                f"the graph '{self.file}' {gives} '{name}', which the manifest has as {shape}; export the bundle again"
            )

    def _check_room(self, feeds: dict[str, Any], query: MaskQuery) -> None:
        """Refuse masks that no memory of this machine can hold, before the system ends the process for them."""
        height, width, count = len(feeds["rows"]), len(feeds["columns"]), len(feeds["image"])
        masks = query.parts or len(feeds["areas"])
        needed, room = _COPIES * 4 * count * masks * height * width, physical_bytes()
        if room is not None and needed > room:
            raise OutOfMemory(
                f"{count * masks} masks of {height}×{width} pixels take {needed / 2**30:.0f} GiB while they are made, "
                f"more than this machine has; {smaller(feeds)}"
            )

    def _in_groups(self, images: Uint8, classes: NDArray[np.int64], query: MaskQuery | None) -> Explanation:
        """Several classes of each image by a graph that takes one, or not as many."""
        if not self.bundle.manifest.several_targets:
            parts = [self.run(images, column, query) for column in classes.T]
            join = functools.partial(np.stack, axis=1)
        else:
            size = self.most_targets or classes.shape[1]
            firsts = range(0, classes.shape[1], size)
            parts = [self.run(images, classes[:, first : first + size], query) for first in firsts]
            join = functools.partial(np.concatenate, axis=1)
        return Explanation(
            probabilities=parts[0].probabilities,
            target=join([part.target for part in parts]),
            mask=np.concatenate([part.mask for part in parts], 1),
            diagnostics={name: join([part.diagnostics[name] for part in parts]) for name in parts[0].diagnostics},
        )

    def _checked_images(self, images: Uint8) -> Uint8:
        images = np.asarray(images)
        spec = self.bundle.manifest.image
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) == 0:
            raise UsageError(f"images are uint8 (N, H, W, 3) with N ≥ 1, not {images.dtype} {images.shape}")
        if not self.bundle.manifest.any_size and images.shape[1:3] != spec.size:
            raise UsageError(
                f"this explainer takes images of {spec.size[0]}×{spec.size[1]} pixels, "
                f"not {images.shape[1]}×{images.shape[2]}; "
                "resize them with saccade.resize_image, or export with --any-size"
            )
        return np.ascontiguousarray(images)

    def _checked_target(self, target: NDArray[np.int64] | int | None, count: int) -> NDArray[np.int64]:
        if target is None:
            return np.full(count, -1, dtype=np.int64)
        chosen = np.asarray(target)
        several = chosen.ndim == 2 and len(chosen) == count and chosen.shape[1] > 0
        if chosen.dtype.kind not in "iu" or not (several or chosen.shape in ((), (count,))):
            raise UsageError(
                f"target is one class index, or one for each of the {count} images, or several for each (N, T); not "
                f"{chosen.dtype} {chosen.shape}"
            )
        if several and not self.bundle.manifest.class_specific:
            raise UsageError(
                "this explainer is about the predicted class only; take another method, or train one with "
                "--class-conditional"
            )
        classes = len(self.bundle.manifest.class_names)
        if chosen.size and (chosen.min() < -1 or chosen.max() >= classes):
            raise UsageError(f"target classes go from 0 to {classes - 1}, or -1 for the predicted class; not {target}")
        return np.array(chosen if several else np.broadcast_to(chosen, (count,)), dtype=np.int64)


def check_precision(bundle: Bundle, precision: str) -> None:
    """Refuse a precision that a bundle holds no graph in.

    Raises:
        EngineError: it holds none.
    """
    held = ("fp32", *bundle.manifest.precisions)
    if precision not in held:
        raise EngineError(
            f"the bundle '{bundle.path}' holds no {precision} graph, but {', '.join(held)}; "
            f"export it again with --precision {precision}"
        )


def check_query(manifest: Manifest, query: MaskQuery) -> None:
    """Refuse masks that a bundle does not hold.

    Raises:
        UsageError: it holds no masks as functions of place and area, or not so many at once.
    """
    if not manifest.areas:
        raise UsageError(
            "this explainer's masks have one area and one size; functions of both come from: saccade train inr"
        )
    if query.parts > max(1, manifest.parts):
        gives = f"{manifest.parts} masks without a common pixel" if manifest.parts > 1 else "one mask"
        raise UsageError(
            f"this explainer was trained for {gives}, not {query.parts}; train another with --parts {query.parts}"
        )
    replace(query, areas=query.areas or manifest.areas)  # do so many masks fit side by side?


def _batches(count: int, most: int | None) -> list[slice]:
    """So many images in batches of at most so many."""
    size = most or count
    return [slice(start, start + size) for start in range(0, count, size)]


def _explanation(answers: dict[str, Any], classes: NDArray[np.int64], query: MaskQuery) -> Explanation:
    """What a graph's outputs mean; those without a name of their own are diagnostics."""
    probabilities, chosen = answers.pop("probabilities"), answers.pop("target_class")
    mask = answers.pop("parts")[:, : query.parts] if query.parts else answers.pop("mask")
    return Explanation(
        probabilities=probabilities, target=chosen.reshape(classes.shape), mask=mask, diagnostics=answers
    )


def answer_graph(graph: bytes, what: Answer, parts: int) -> bytes:
    """A bundle's graph with what an answer needs alone: runtimes compute every output of a graph.

    Args:
        graph: a serialized ModelProto.
        what: the answer.
        parts: the manifest's; with more than one the graph gives masks in two ways.
    """
    if what == "probabilities":
        return prune_onnx(graph, (what,))
    return prune_onnx(graph, ("probabilities", "target_class", what)) if parts > 1 else graph


def smaller(feeds: dict[str, Any]) -> str:
    """What to ask for in place of what does not fit."""
    count, (height, width) = len(feeds["image"]), feeds["image"].shape[1:3]
    if count > 1:
        return f"try --batch-size {max(1, count // 4)}"
    if "rows" in feeds and len(feeds["rows"]) * len(feeds["columns"]) > height * width:
        return "ask for a smaller --size, or for one part of the image after another with --box"
    return "free some memory or use a smaller model"


def first_line(error: Exception) -> str:
    """Of a runtime's message, what fits into a sentence."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if not line.startswith("Exception from ")), lines[0])
