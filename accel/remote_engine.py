"""A bundle as a server answers for it, behind the same face as the engines of this machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..contracts import MaskQuery
from ..errors import EngineError, UsageError
from .bundle import Bundle
from .graph_engine import Answer, GraphEngine
from .oip_client import OipClient

__all__ = ["RemoteEngine", "model_name"]

_ENDINGS = {"mask": "", "probabilities": "_classifier", "parts": "_parts"}
_BESIDE = ("_classifier", "_parts", "_from_bytes")
_ANSWERS = ("probabilities", "target_class", "mask", "parts")
# What servers take and give besides a bundle's graph: Triton's from_bytes model, and saccade serve
_IN_PLACE_OF_PIXELS = "encoded_image"
_BESIDE_ANSWERS = ("pixels", "mask_png", "overlay_png", "model_image", "explained")


def model_name(bundle: Path) -> str:
    """What servers call a bundle unless told otherwise: its folder's name, as far as a model may be called so."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", bundle.resolve().name).lstrip("._-") or "explainer"


class RemoteEngine(GraphEngine):
    """Asks a server that speaks the Open Inference Protocol v2, in place of running the bundle here.

    Probabilities alone come from the model whose name ends in ``_classifier``, where there is one, as Triton computes
    every output of a model.

    Args:
        bundle: that the server is expected to serve.
        client: of the server.
        model: its name on the server; None for that of the bundle's folder.
        precision: of the graph that it serves.

    Raises:
        EngineError: the server cannot be reached, or has no such model.
        UsageError: the model is not one that takes pixels and explains.
    """

    name = "server"

    def __init__(self, bundle: Bundle, client: OipClient, *, model: str | None = None, precision: str = "fp32") -> None:
        super().__init__(bundle, precision)
        self.client = client
        self.model = model or model_name(bundle.path)
        self._metadata: dict[str, dict[str, Any]] = {}
        inputs, outputs = self._tensors(self.model, "inputs"), self._tensors(self.model, "outputs")
        if "image" not in inputs or "probabilities" not in outputs:
            raise UsageError(
                f"the model '{self.model}' at {client.url} has inputs {', '.join(inputs)} and outputs "
                f"{', '.join(outputs)}; it is no explainer of Saccade's, name one with --model"
            )
        pixels, classes = inputs["image"], outputs["probabilities"]["shape"]
        takes_pixels = pixels["datatype"] == "UINT8" and len(pixels["shape"]) == 4 and classes
        if not {"mask", "target_class"} <= set(outputs) or not takes_pixels:
            raise UsageError(
                f"the model '{self.model}' does not take pixels and give masks; name the explainer itself with "
                f"--model, such as {re.sub('_(classifier|parts|decode|from_bytes)$', '', self.model)}"
            )
        self._check_bundle(inputs, outputs)
        most = client.max_batch_size(self.model)
        self.most_images = min(filter(None, (most, self.most_images)), default=None)

    @property
    def identity(self) -> str:
        """What is asked."""
        return f"the model '{self.model}' at {self.client.url}"

    @property
    def asked(self) -> list[str]:
        """The models that have been asked."""
        return list(self._metadata)

    def not_asked(self) -> list[str]:
        """The bundle's other models on the server that are ready, about which nothing is known.

        Raises:
            EngineError: the server cannot be reached.
        """
        others = [f"{self.model}{ending}" for ending in _BESIDE]
        return [name for name in others if name not in self._metadata and self.client.is_ready(name)]

    def _check_bundle(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        """Refuse a model that is plainly another bundle's."""
        manifest = self.bundle.manifest
        sizes = (-1, -1) if manifest.any_size else manifest.image.size
        one = np.zeros((1, *manifest.image.size, 3), np.uint8)
        expected = {
            "inputs": sorted(self.inputs(one, np.array([-1]))),
            "size": [*sizes],
            "classes": len(manifest.class_names),
        }
        found = {
            "inputs": sorted(inputs.keys() - {_IN_PLACE_OF_PIXELS}),
            "size": inputs["image"]["shape"][1:3],
            "classes": outputs["probabilities"]["shape"][-1],
        }
        for what, value in expected.items():
            if found[what] != value:
                raise UsageError(
                    f"{self.identity} is not of the bundle '{self.bundle.path}': it has {what} {_words(found[what])} "
                    f"and the bundle {_words(value)}; name its model with --model"
                )

    def _fitting(self, answers: dict[str, Any], classes: NDArray[np.int64], query: MaskQuery) -> dict[str, Any]:
        return answers  # `_answers` has judged the server's

    def _answers(self, what: Answer, feeds: dict[str, Any]) -> dict[str, Any]:
        model = self._model_of(what)
        inputs, outputs = self._tensors(model, "inputs"), self._tensors(model, "outputs")
        inputs = {name: tensor for name, tensor in inputs.items() if name != _IN_PLACE_OF_PIXELS}
        count = len(feeds["image"])
        feeds = {**self.inputs(feeds["image"], np.full(count, -1, np.int64)), **feeds}
        if unknown := [name for name in inputs if name not in feeds]:
            raise EngineError(
                f"the model '{model}' at {self.client.url} wants '{unknown[0]}', of which the bundle "
                f"'{self.bundle.path}' knows nothing; deploy the bundle again"
            )
        asked = {name: _with_rank(np.asarray(feeds[name]), len(inputs[name]["shape"])) for name in inputs}
        wanted = [what] if what == "probabilities" else ["probabilities", "target_class", what]
        if what != "probabilities":
            known = {*_ANSWERS, *_BESIDE_ANSWERS}
            wanted += [name for name in outputs if name not in known]  # diagnostics
        found = self.client.infer(model, asked, wanted)
        if missing := [name for name in wanted if name not in found or found[name].shape[:1] != (count,)]:
            raise EngineError(
                f"{self.identity} answered without '{missing[0]}' for {count} images; see the server's log"
            )
        for name in wanted:
            if not self._fits(name, found[name], feeds):
                raise EngineError(f"{self.identity} answered with '{name}' of the shape {[*found[name].shape]}")
        return {name: value if name in _ANSWERS else value.reshape(count) for name, value in found.items()}

    def _fits(self, name: str, value: NDArray[Any], feeds: dict[str, Any]) -> bool:
        """Whether an answer has the shape that the bundle's graph would give it."""
        manifest, count = self.bundle.manifest, len(feeds["image"])
        targets = feeds["target"].size if manifest.several_targets else count
        if name == "probabilities":
            return value.shape == (count, len(manifest.class_names))
        if name in ("mask", "parts"):
            size = (len(feeds["rows"]), len(feeds["columns"])) if manifest.areas else manifest.mask_size
            several = {
                "parts": manifest.parts,
                "mask": len(feeds["areas"]) if manifest.areas else targets // count,
            }[name]
            return value.shape == (count, several, *size)
        return value.size == (targets if name == "target_class" else count)

    def _model_of(self, what: Answer) -> str:
        """The model that gives an answer: one of its own, or the explainer."""
        own = f"{self.model}{_ENDINGS[what]}"
        if own == self.model or own in self._metadata:
            return own
        return own if self.client.is_ready(own) else self.model

    def _tensors(self, model: str, which: str) -> dict[str, dict[str, Any]]:
        """Inputs or outputs of a model by name, as the server tells them."""
        if model not in self._metadata:
            self._metadata[model] = self.client.metadata(model)
        return {tensor["name"]: tensor for tensor in self._metadata[model].get(which, [])}


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _with_rank(value: NDArray[Any], rank: int) -> NDArray[Any]:
    """One number per image is (N,) in graphs, and (N, 1) in Triton."""
    return value.reshape(*value.shape, *[1] * (rank - value.ndim))
