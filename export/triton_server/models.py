"""The models that a bundle becomes: their configurations and the files of each."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ... import contracts, errors
from ...accel import image
from ...accel.bundle import Bundle
from ...accel.graph_engine import Answer, answer_graph
from ...accel.onnx_prune import GraphValue, graph_values
from ...accel.precision import graph_file
from ...contracts import MaskQuery
from . import decoder
from .model_config import LABELS, check_config, decoder_config, ensemble_config, graph_config, is_batched
from .settings import TritonSettings, answers_of, plans_of

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

__all__ = ["ModelFiles", "models_of"]

_VENDORED = {"contracts.py": contracts, "errors.py": errors, "accel/image.py": image}


@dataclass(frozen=True)
class ModelFiles:
    """One model of a repository.

    Attributes:
        config: of the model.
        of_version: files of the version's folder, by path inside: content, or the file to copy.
        of_model: files of the model's folder.
        values: inputs and outputs of the graph; None for a model that is no graph.
    """

    config: ModelConfig
    of_version: Mapping[str, bytes | Path] = field(default_factory=dict)
    of_model: Mapping[str, bytes] = field(default_factory=dict)
    values: tuple[list[GraphValue], list[GraphValue]] | None = None

    @property
    def name(self) -> str:
        """Of the model."""
        return self.config.name  # type: ignore[no-any-return]

    def check(self, written: ModelConfig) -> None:
        """Hold a configuration that was read back against the graph.

        Raises:
            BundleError: they differ.
        """
        if self.values is not None:
            check_config(written, *self.values)


def models_of(bundle: Bundle, name: str, settings: TritonSettings) -> list[ModelFiles]:
    """A bundle's models, those that others need first.

    Args:
        bundle: an opened bundle.
        name: of the explainer; the others' names begin with it.
        settings: fitted to the bundle.
    """
    graph = (bundle.path / graph_file(settings.precision)).read_bytes()
    plans = plans_of(settings, bundle)
    labels = "\n".join(" ".join(one.split()) for one in bundle.manifest.class_names).encode() + b"\n"
    made = [
        _graph_model(bundle, graph, answer, f"{name}{ending}", settings, labels, plans.get(answer, {}))
        for answer, ending in answers_of(bundle).items()
    ]
    if settings.images:
        explainer = made[0]
        assert explainer.values is not None, "it is a graph"
        decoding = _decoder(bundle, f"{name}_decode", explainer.values[0], settings)
        together = ensemble_config(f"{name}_from_bytes", decoding.config, explainer.config)
        made += [
            decoding,
            ModelFiles(together, {".keep": b""}, {LABELS: labels}),
        ]  # object stores keep no empty folders
    return made


def _graph_model(
    bundle: Bundle,
    graph: bytes,
    answer: Answer,
    name: str,
    settings: TritonSettings,
    labels: bytes,
    plans: Mapping[str, Any],
) -> ModelFiles:
    part = answer_graph(graph, answer, bundle.manifest.parts)
    inputs, outputs = graph_values(part)
    values = _golden_values(bundle, inputs, is_batched((*inputs, *outputs))) if settings.warm_up else {}
    role = {"mask": "explainer", "probabilities": "classifier", "parts": "parts"}[answer]
    files: dict[str, bytes | Path] = {"model.onnx": part}
    called: dict[str, tuple[str, ...]] = {}
    if plans:
        files = {}
        for file, plan in plans.items():
            own = "model.plan" if len(plans) == 1 else f"model.{'-'.join(plan.gpus)}.plan"
            files[own], called[own] = bundle.path / file, plan.gpus
    config = graph_config(name, role, inputs, outputs, settings, values, called)
    warm_up = {f"warmup/{key}": np.ascontiguousarray(value).tobytes() for key, value in values.items()}
    return ModelFiles(config, files, {LABELS: labels, **warm_up}, (inputs, outputs))


def _decoder(bundle: Bundle, name: str, inputs: list[GraphValue], settings: TritonSettings) -> ModelFiles:
    manifest = bundle.manifest
    batched = is_batched(inputs)
    defaults = _defaults(bundle)
    left_out = {
        value.name: {
            "dtype": value.dtype,
            "each_image": value.shape[:1] == ("batch",),
            "value": _default_of_one(value, defaults[value.name], batched).tolist(),
        }
        for value in inputs
        if value.name != "image"
    }
    wanted = {
        "image": dataclasses.asdict(manifest.image),
        "any_size": manifest.any_size,
        "max_pixels": settings.max_pixels,
        "classes": len(manifest.class_names),
        "left_out": left_out,
    }
    files: dict[str, bytes | Path] = {
        "model.py": inspect.getsource(decoder).encode(),
        "decoder.json": json.dumps(wanted, indent=2).encode(),
        "saccade_image/__init__.py": b"",
        "saccade_image/accel/__init__.py": b"",
        **{f"saccade_image/{path}": inspect.getsource(module).encode() for path, module in _VENDORED.items()},
    }
    return ModelFiles(decoder_config(name, inputs, settings), files)


def _golden_values(bundle: Bundle, inputs: list[GraphValue], batched: bool) -> dict[str, NDArray[Any]]:
    """What the first golden sample gives each input; without the batch's dimension where there are batches."""
    found = {**_defaults(bundle), "image": bundle.golden.images[0]}
    values = {}
    for value in inputs:
        one = np.asarray(found[value.name], dtype=value.dtype)
        if value.name == "target":
            one = one.reshape([1] * (len(value.shape) - 1))
        values[value.name] = one if batched or value.shape[:1] != ("batch",) else one[None]
    return values


def _defaults(bundle: Bundle) -> dict[str, Any]:
    """What engines take for inputs about which a request says nothing."""
    manifest = bundle.manifest
    rows, columns = MaskQuery().places(manifest.mask_size)
    return {"target": -1, "areas": manifest.areas, "rows": rows, "columns": columns}


def _default_of_one(value: GraphValue, default: Any, batched: bool) -> NDArray[Any]:
    """As the decoder gives it, for one image where an input is of images: one number is one column in batches."""
    found = np.asarray(default, dtype=value.dtype)
    if value.shape[:1] != ("batch",):
        return found
    return found.reshape([1] * max(len(value.shape) - 1, int(batched)))
