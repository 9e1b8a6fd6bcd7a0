"""The ONNX Runtime engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..contracts import Explanation, Floats, MaskQuery, Uint8
from ..errors import EngineError, OutOfMemory, UsageError
from .bundle import Bundle
from .engine import run_in_batches
from .memory import physical_bytes
from .onnx_prune import prune_onnx

__all__ = ["OnnxEngine"]

_COPIES = 2  # of rendered masks: the graph holds one, results are made from another
_ALLOCATION = ("allocate", "bad_alloc", "bad allocation", "out of memory")


class OnnxEngine:
    """Runs a bundle's graph in ONNX Runtime; sessions are made when they are first needed.

    Args:
        bundle: an opened bundle.
        providers: execution providers by name (``"CUDAExecutionProvider"`` or just ``"cuda"``), in priority order.
        threads: threads for one operator; None takes all cores.
    """

    name = "onnx"

    def __init__(self, bundle: Bundle, *, providers: Sequence[str] | None = None, threads: int | None = None) -> None:
        self.bundle = bundle
        self.providers = _resolve_providers(providers or ("cpu",))
        self.threads = threads or 0
        self._sessions: dict[str, ort.InferenceSession] = {}

    @property
    def identity(self) -> str:
        """Engine, version and providers: what a cached golden pass holds for."""
        return f"onnxruntime {ort.__version__} {' '.join(self.providers)}"

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
            self._check_query(query)
        if asked.parts == 1:  # the first of several is the mask itself
            asked = query = replace(asked, areas=(asked.areas or manifest.areas)[:1], parts=0)
        session = self._open("parts" if asked.parts else "mask")
        classes = self._checked_target(target, len(images))
        if manifest.splits and len(images) > manifest.batch:
            return run_in_batches(self, images, classes, manifest.batch)
        if classes.ndim == 2 and not manifest.several_targets:
            return self._one_after_the_other(images, classes, query)
        feeds: dict[str, Any] = {
            "image": images,
            "target": classes.reshape(len(images), -1) if manifest.several_targets else classes,
        }
        if manifest.areas:
            feeds["areas"] = np.array(asked.areas or manifest.areas, dtype=np.float32)
            feeds["rows"], feeds["columns"] = asked.places(manifest.mask_size)
            self._check_room(feeds, asked.parts or len(feeds["areas"]))
        outputs = [output.name for output in session.get_outputs()]
        answers = dict(zip(outputs, self._run(session, outputs, feeds), strict=True))
        probabilities, chosen = answers.pop("probabilities"), answers.pop("target_class")
        mask = answers.pop("parts")[:, : asked.parts] if asked.parts else answers.pop("mask")
        return Explanation(
            probabilities=probabilities, target=chosen.reshape(classes.shape), mask=mask, diagnostics=answers
        )

    def probabilities(self, images: Uint8) -> Floats:
        """Predict a batch, (N, K), by a second graph cut out of the same file; see `Engine.probabilities`."""
        images = self._checked_images(images)
        (probabilities,) = self._run(self._open("probabilities"), ("probabilities",), {"image": images})
        return np.asarray(probabilities)

    def _open(self, what: str) -> ort.InferenceSession:
        """The session that gives the masks, the parts, or the probabilities alone; made when first needed."""
        if what not in self._sessions:
            graph = self.bundle.graph.read_bytes()
            if what == "probabilities":
                graph = prune_onnx(graph, (what,))
            elif self.bundle.manifest.parts > 1:  # ONNX Runtime would compute both
                graph = prune_onnx(graph, ("probabilities", "target_class", what))
            self._sessions[what] = self._session(graph)
        return self._sessions[what]

    def _check_query(self, query: MaskQuery) -> None:
        manifest = self.bundle.manifest
        if not manifest.areas:
            raise UsageError(
                "this bundle's masks have one area and one size; functions of both are trained with: saccade train inr"
            )
        if query.parts > max(1, manifest.parts):
            gives = f"{manifest.parts} masks without a common pixel" if manifest.parts > 1 else "one mask"
            raise UsageError(
                f"this bundle was trained for {gives}, not {query.parts}; train another with --parts {query.parts}"
            )
        replace(query, areas=query.areas or manifest.areas)  # do so many masks fit side by side?

    def _check_room(self, feeds: dict[str, Any], masks: int) -> None:
        """Refuse masks that no memory of this machine can hold, before the system ends the process for them."""
        height, width, count = len(feeds["rows"]), len(feeds["columns"]), len(feeds["image"])
        needed, room = _COPIES * 4 * count * masks * height * width, physical_bytes()
        if room is not None and needed > room:
            raise OutOfMemory(
                f"{count * masks} masks of {height}×{width} pixels take {needed / 2**30:.0f} GiB while they are made, "
                f"more than this machine has; {_smaller(feeds)}"
            )

    def _one_after_the_other(self, images: Uint8, classes: NDArray[np.int64], query: MaskQuery | None) -> Explanation:
        """Several classes of each image by a graph that takes one."""
        parts = [self.run(images, column, query) for column in classes.T]
        return Explanation(
            probabilities=parts[0].probabilities,
            target=np.stack([part.target for part in parts], 1),
            mask=np.concatenate([part.mask for part in parts], 1),
            diagnostics={
                name: np.stack([part.diagnostics[name] for part in parts], 1) for name in parts[0].diagnostics
            },
        )

    def _session(self, graph: bytes) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self.threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if self.bundle.manifest.splits:  # keeps to a memory budget: a pattern sets a second block aside
            options.enable_mem_pattern = False
        try:
            session = ort.InferenceSession(graph, options, providers=self.providers)
        except MemoryError:
            raise OutOfMemory(f"the bundle '{self.bundle.path}' does not fit into memory") from None
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise EngineError(
                f"ONNX Runtime {ort.__version__} cannot load '{self.bundle.graph}': {_line(error)}"
            ) from error
        used = session.get_providers()
        if missing := [name for name in self.providers if name not in used]:
            raise EngineError(
                f"ONNX Runtime could not start {', '.join(missing)}; it started {', '.join(used)}; see: saccade doctor"
            )
        return session

    def _run(self, session: ort.InferenceSession, outputs: Sequence[str], feeds: dict[str, Any]) -> list[Any]:
        try:
            return list(session.run(list(outputs), feeds))
        except Exception as error:  # as above
            count = len(feeds["image"])
            if isinstance(error, MemoryError) or any(word in str(error).lower() for word in _ALLOCATION):
                raise OutOfMemory(f"a batch of {count} images does not fit into memory; {_smaller(feeds)}") from None
            raise EngineError(f"ONNX Runtime failed on a batch of {count} images: {_line(error)}") from error

    def _checked_images(self, images: Uint8) -> Uint8:
        images = np.asarray(images)
        spec = self.bundle.manifest.image
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) == 0:
            raise UsageError(f"images are uint8 (N, H, W, 3) with N ≥ 1, not {images.dtype} {images.shape}")
        if not self.bundle.manifest.any_size and images.shape[1:3] != spec.size:
            raise UsageError(
                f"this bundle takes images of {spec.size[0]}×{spec.size[1]} pixels, "
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
                "this bundle explains the predicted class only; one for any class is trained with --class-conditional"
            )
        classes = len(self.bundle.manifest.class_names)
        if chosen.size and (chosen.min() < -1 or chosen.max() >= classes):
            raise UsageError(f"target classes go from 0 to {classes - 1}, or -1 for the predicted class; not {target}")
        return np.array(chosen if several else np.broadcast_to(chosen, (count,)), dtype=np.int64)


def _resolve_providers(names: Sequence[str]) -> list[str]:
    available = ort.get_available_providers()
    by_short_name = {name.removesuffix("ExecutionProvider").lower(): name for name in available}
    resolved = []
    for name in names:
        full = name if name in available else by_short_name.get(name.lower())
        if full is None:
            raise EngineError(
                f"provider '{name}' is not in this ONNX Runtime; it offers: {', '.join(available)}; "
                "for NVIDIA GPUs install onnxruntime-gpu in place of onnxruntime"
            )
        resolved.append(full)
    return resolved


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _smaller(feeds: dict[str, Any]) -> str:
    """What to ask for in place of what does not fit."""
    count, (height, width) = len(feeds["image"]), feeds["image"].shape[1:3]
    if count > 1:
        return f"try --batch-size {max(1, count // 4)}"
    if "rows" in feeds and len(feeds["rows"]) * len(feeds["columns"]) > height * width:
        return "ask for a smaller --size, or for one part of the image after another with --box"
    return "free some memory or use a smaller model"
