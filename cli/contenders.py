"""Explainers by the name that a user types: a bundle, or one of the baselines."""

from __future__ import annotations

import copy
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..accel.bundle import Bundle
from ..accel.engine import Engine
from ..accel.engines import open_engine
from ..accel.manifest import MANIFEST_FILE, Manifest
from ..contracts import MaskQuery
from ..errors import UsageError, suggest
from ..evaluate.baselines import BASELINES, centre_gaussian, grad_cam, integrated_gradients, random_masks
from ..evaluate.metrics import Explain
from .evaluation import Contender

if TYPE_CHECKING:
    from ..methods.explainee import Explainee
    from ..methods.gradient.config import GradientConfig

__all__ = ["bundle_contender", "explainee_contender", "make_contender", "original_config", "original_explainee"]

_RANKS = 8  # areas of which one map is made


def bundle_contender(engine: Engine, stack: ExitStack) -> Contender:
    """A bundle's own explainer, called by the bundle's folder."""
    return Contender(engine.bundle.path.name, _explain(engine), lambda: _explain(_randomised(engine, stack)))


def make_contender(
    name: str, engine: Engine, stack: ExitStack, settings: dict[str, Any], weights: Path | None = None
) -> Contender:
    """A rival of a bundle's explainer.

    Args:
        name: a bundle's folder, or a baseline.
        engine: of the bundle that the rival is compared with.
        stack: keeps temporary folders until the evaluation is over.
        settings: of the rival's engine.
        weights: the classifier's weights file, where a baseline needs the classifier itself.

    Raises:
        UsageError: neither, or a bundle of another classifier.
        ModelError: Grad-CAM of a model with neither feature maps nor tokens.
        MissingDependencyError: Captum or PyTorch is not installed.
    """
    if name == "random":
        return Contender(name, random_masks(), random_masks)
    if name == "centre":
        return Contender(name, centre_gaussian(), centre_gaussian)
    if name in BASELINES:
        return explainee_contender(name, original_explainee(engine.bundle, weights))
    if not (Path(name) / MANIFEST_FILE).is_file():
        raise UsageError(
            f"'{name}' is neither a bundle nor a baseline; the baselines are {', '.join(BASELINES)}; "
            f"{suggest(name, BASELINES)}"
        )
    rival = open_engine(name, **settings)
    ours, theirs = engine.bundle.manifest, rival.bundle.manifest
    if ours.explainee["fingerprint"] != theirs.explainee["fingerprint"] or ours.image != theirs.image:
        raise UsageError(
            f"'{name}' explains another classifier ({theirs.explainee['spec']}) than '{engine.bundle.path}' "
            f"({ours.explainee['spec']}); only explanations of the same predictions can be compared"
        )
    contender = bundle_contender(rival, stack)
    same = rival.bundle.path.name == engine.bundle.path.name
    return replace(contender, name=str(rival.bundle.path)) if same else contender


def _explain(engine: Engine) -> Explain:
    """One map per image; of masks that are functions of the area their mean over the areas that were trained, so that a
    pixel ranks the higher the earlier it is kept.
    """
    manifest = engine.bundle.manifest
    if not manifest.areas:
        return lambda images, target: engine.run(images, target).mask[:, 0]
    trained = np.geomspace(manifest.parameters["smallest"], manifest.parameters["largest"], _RANKS)
    query = MaskQuery(areas=tuple(float(area) for area in trained))
    return lambda images, target: engine.run(images, target, query).mask.mean(1)


def _randomised(engine: Engine, stack: ExitStack) -> Engine:
    """An engine of the same bundle with shuffled weights."""
    from ..evaluate.randomise import randomise_weights

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / engine.bundle.path.name
    shutil.copytree(engine.bundle.path, folder)
    bundle = replace(engine.bundle, path=folder)
    bundle.graph.write_bytes(randomise_weights(bundle.graph.read_bytes()))
    return open_engine(bundle, check=False)


def explainee_contender(name: str, explainee: Explainee) -> Contender:
    """Grad-CAM or integrated gradients of a classifier.

    Raises:
        ModelError: Grad-CAM of a model with neither feature maps nor tokens.
        MissingDependencyError: Captum is not installed.
    """

    def build(randomised: bool) -> Explain:
        model = copy.deepcopy(explainee.model)
        if randomised:
            _shuffle(model)
        if name == "integrated-gradients":
            return integrated_gradients(model, explainee.normalise)
        from ..methods.spatial import layer_of_maps

        return grad_cam(model, layer_of_maps(model, explainee.image_spec), explainee.normalise)

    return Contender(name, build(randomised=False), lambda: build(randomised=True))


def original_config(manifest: Manifest) -> GradientConfig:
    """The settings of a bundle's gradient method."""
    from ..methods.gradient.config import GradientConfig

    parameters = {**manifest.parameters, "layers": tuple(manifest.parameters["layers"]), "batch": manifest.batch}
    return GradientConfig(**parameters)


def original_explainee(bundle: Bundle, weights: Path | None) -> Explainee:
    """The classifier that a bundle was made from, in PyTorch.

    Raises:
        ModelError: what is found is another one.
        MissingDependencyError: PyTorch is not installed.
    """
    from ..errors import ModelError, require

    require("torch", extra="train", purpose="the classifier of a bundle, in PyTorch")
    from ..methods.explainee import load_explainee

    manifest = bundle.manifest
    about = manifest.explainee
    builtin = weights is None and about["weights"] == "pretrained"
    names = None if builtin or about["spec"].startswith("python:") else manifest.class_names
    explainee = load_explainee(
        about["spec"], weights or about["weights"], class_names=names, image_size=manifest.image.size
    )
    if explainee.fingerprint != about["fingerprint"]:
        raise ModelError(
            f"'{about['spec']}' with these weights is not the classifier that '{bundle.path}' was exported "
            "from; give its weights file with --weights"
        )
    return replace(explainee, image_spec=manifest.image)


def _shuffle(model: Any) -> None:
    """Shuffle every weight with two axes or more within itself, as `randomise_weights` does with a graph."""
    import torch

    generator = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                flat = parameter.reshape(-1)
                parameter.copy_(flat[torch.from_numpy(generator.permutation(flat.numel()))].reshape(parameter.shape))
