"""The peers' rows: each package called as its documentation says, from pixels to the prediction and its mask."""

from __future__ import annotations

import copy
import importlib
import logging
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from subjects import Subject, Work, enlarged
from torch import Tensor, nn

from saccade.contracts import Floats, Uint8
from saccade.methods.inr.extremal import ExtremalConfig, extremal_masks
from saccade.methods.spatial import TokensAsMaps

__all__ = [
    "captum_grad_cam",
    "captum_integrated_gradients",
    "captum_saliency",
    "extremal",
    "grad_cam",
    "reciprocam",
    "torchcam_grad_cam",
]

POINTS = 50  # of integrated gradients: Captum's default
EXTREMAL = ExtremalConfig()
FONG = "Fong et al. 2019"  # whose method it is; the implementation is Saccade's


class _Top(nn.Module):
    """A classifier whose output is the predicted class's logit, (N,): Captum then needs no forward of its own to know
    the class. What the classifier said is kept.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.logits = torch.empty(0)

    def forward(self, images: Tensor) -> Tensor:
        self.logits = self.model(images)
        return self.logits.amax(1)

    @property
    def probabilities(self) -> Floats:
        found: Floats = self.logits.detach().softmax(1).numpy()
        return found


def captum_grad_cam(subject: Subject) -> Work:
    """Captum's LayerGradCam."""
    from captum.attr import LayerGradCam

    top = _Top(copy.deepcopy(subject.explainee.model))
    layer = top.model.get_submodule(subject.layer)
    if subject.grid is not None:
        parent, _, name = subject.layer.rpartition(".")
        wrapped = TokensAsMaps(layer, subject.grid, 1)
        setattr(top.model.get_submodule(parent), name, wrapped)
        layer = wrapped.maps
    cam = LayerGradCam(top, layer)

    def explain(images: Uint8) -> tuple[Floats, Floats]:
        maps = cam.attribute(subject.tensors(images), relu_attributions=True)
        return top.probabilities, enlarged(maps[:, 0], images.shape[1:3])

    return Work(explain)


def captum_saliency(subject: Subject) -> Work:
    """Captum's Saliency: the gradient's absolute value, its largest of the three colours."""
    from captum.attr import Saliency

    top = _Top(subject.explainee.model)
    saliency = Saliency(top)

    def explain(images: Uint8) -> tuple[Floats, Floats]:
        found = saliency.attribute(subject.tensors(images).requires_grad_())
        return top.probabilities, enlarged(found.amax(1), images.shape[1:3])

    return Work(explain, weights_mib=subject.weights_mib)


def captum_integrated_gradients(subject: Subject) -> Work:
    """Captum's IntegratedGradients from the data's mean colour; the part is one of the chunks of points that its
    `internal_batch_size` makes.
    """
    from captum.attr import IntegratedGradients

    model = subject.explainee.model
    gradients = IntegratedGradients(model)

    def explain(images: Uint8) -> tuple[Floats, Floats]:
        inputs = subject.tensors(images)
        with torch.inference_mode():
            probabilities = model(inputs).softmax(1)
        target = probabilities.argmax(1).clone()
        found = gradients.attribute(inputs, target=target, n_steps=POINTS, internal_batch_size=max(32, len(images)))
        return probabilities.numpy(), enlarged(found.sum(1), images.shape[1:3])

    def part(images: Uint8) -> float:
        points = max(1, max(32, len(images)) // len(images))
        gradients.attribute(subject.tensors(images), target=0, n_steps=points)
        return POINTS / points

    return Work(explain, part, 1, subject.weights_mib)


def grad_cam(frozen: bool) -> Callable[[Subject], Work]:
    """GradCAM of pytorch-grad-cam, on a model as it comes, or on one that is frozen but for the layer's last weight: of
    a model that is frozen throughout it finds no gradient.
    """

    def make(subject: Subject) -> Work:
        from pytorch_grad_cam import GradCAM

        model = copy.deepcopy(subject.explainee.model)
        layer = model.get_submodule(subject.layer)
        if frozen:
            model.requires_grad_(False)
            list(layer.parameters())[-1].requires_grad_(True)
        cam = GradCAM(model, [layer], reshape_transform=subject.maps_of if subject.grid else None)

        def explain(images: Uint8) -> tuple[Floats, Floats]:
            masks = cam(subject.tensors(images), targets=None)  # of the predicted classes
            return cam.outputs.detach().softmax(1).numpy(), np.asarray(masks, dtype=np.float32)

        return Work(explain)

    return make


def torchcam_grad_cam(subject: Subject) -> Work:
    """TorchCAM's GradCAM, which takes the scores of its caller's forward."""
    from torchcam.methods import GradCAM

    model = copy.deepcopy(subject.explainee.model)
    cam = GradCAM(model, subject.layer, reshape_transform=subject.maps_of if subject.grid else None)

    def explain(images: Uint8) -> tuple[Floats, Floats]:
        scores = model(subject.tensors(images))
        (maps,) = cam(scores.argmax(1).tolist(), scores)
        return scores.detach().softmax(1).numpy(), enlarged(maps, images.shape[1:3])

    return Work(explain)


def reciprocam(subject: Subject) -> Work:
    """OpenVINO XAI's ReciproCAM, or ViTReciproCAM, inserted into the model and compiled in float32; its graph takes one
    image at a time and gives the maps of all classes.
    """
    openvino = _with_runtime()
    from openvino_xai import insert_xai
    from openvino_xai.common.parameters import Method, Task

    logging.getLogger("openvino_xai").setLevel(logging.WARNING)

    inputs = subject.tensors(subject.images[:1])
    method = Method.RECIPROCAM if subject.grid is None else Method.VITRECIPROCAM
    model = copy.deepcopy(subject.explainee.model)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):  # zeros, which no trained norm has, are folded away, and not found then
            nn.init.constant_(module.bias, 1e-6)
    # of a transformer it wants the batch's size open, of others closed
    closed = {} if subject.grid else {"input": list(inputs.shape)}
    converted = openvino.convert_model(model, example_input=inputs, **closed)
    with_maps = insert_xai(converted, task=Task.CLASSIFICATION, explain_method=method)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": subject.threads}
    compiled = openvino.Core().compile_model(with_maps, "CPU", settings)

    def explain(images: Uint8) -> tuple[Floats, Floats]:
        answers = [compiled(one[None]) for one in subject.tensors(images).numpy()]
        logits = torch.from_numpy(np.concatenate([answer[0] for answer in answers]))
        chosen = logits.argmax(1).tolist()
        maps = np.stack([answer[1][0, best] for answer, best in zip(answers, chosen, strict=True)])
        return logits.softmax(1).numpy(), enlarged(torch.from_numpy(maps), images.shape[1:3])

    return Work(explain)


def _with_runtime() -> Any:
    """OpenVINO with its old name `openvino.runtime`, which version 2026 dropped and OpenVINO XAI 1.1 imports."""
    openvino = importlib.import_module("openvino")
    if not hasattr(openvino, "runtime"):
        old = types.ModuleType("openvino.runtime")
        vars(old).update({name: value for name, value in vars(openvino).items() if not name.startswith("__")})
        openvino.runtime = sys.modules["openvino.runtime"] = old  # type: ignore[attr-defined]
        for name in ("opset10", "utils", "utils.data_helpers", "utils.data_helpers.wrappers"):
            module = importlib.import_module(f"openvino.{name}")
            sys.modules[f"openvino.runtime.{name}"] = module
            if "." not in name:
                setattr(old, name, module)
    return openvino


def extremal(subject: Subject) -> Work:
    """Extremal perturbations, Saccade's own implementation: masks of four areas, 800 updates, one of which is timed."""

    def explain(images: Uint8) -> tuple[Floats, Floats]:
        inputs = subject.tensors(images)
        with torch.inference_mode():
            probabilities = subject.explainee.model(inputs).softmax(1).numpy()
        return probabilities, extremal_masks(subject.explainee, _pixels(images), EXTREMAL).mean(1).numpy()

    def part(images: Uint8) -> float:
        extremal_masks(subject.explainee, _pixels(images), replace(EXTREMAL, steps=1))
        return float(EXTREMAL.steps)

    # every part begins with a forward, of which the whole work has one
    return Work(explain, part, 1 - EXTREMAL.steps, subject.weights_mib)


def _pixels(images: Uint8) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
