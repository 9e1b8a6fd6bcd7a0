"""The rows of the comparison with the peers: what is said of each, what makes it, and for which models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import peer_rows
from own_rows import by_onnx, by_openvino, by_torch
from peers_table import Entry
from subjects import Subject, Work

__all__ = ["CANDIDATES", "ENGINES", "ENTRIES", "PLAIN", "RANDOM", "Candidate"]

CNN, VIT = ("ResNet-50", "scenes ResNet"), ("ViT-B/16 (timm)",)
ALL = (*CNN, *VIT)
TRAINED = ("ltx_shared", "inr")


@dataclass(frozen=True)
class Candidate:
    """A row of the table, what makes it, and the models that it is for."""

    entry: Entry
    make: Callable[[Subject], Work]
    models: tuple[str, ...] = ALL


def _ours(name: str, method: str, models: tuple[str, ...] = ALL, family: str = "", short: str = "") -> Candidate:
    entry = Entry(name, "Saccade", "ONNX Runtime", "returned", family, short, trained=method in TRAINED)
    return Candidate(entry, by_onnx(method), models)


def _torch(name: str, method: str, models: tuple[str, ...] = ALL, compiled: bool = False) -> Candidate:
    engine = "PyTorch, compiled" if compiled else "PyTorch"
    return Candidate(
        Entry(name, "Saccade", engine, "returned", trained=method in TRAINED), by_torch(method, compiled), models
    )


LTX, AREAS, FAST = "LTX, shared trunk", "INR, masks of four areas", "fast preset"
INTEGRAL = "integrated gradients, 50 points"
CANDIDATES = (
    _ours(LTX, "ltx_shared", short="LTX"),
    Candidate(Entry(LTX, "Saccade", "OpenVINO", "returned", trained=True), by_openvino("ltx_shared")),
    _ours(AREAS, "inr", short="INR, four areas"),
    _ours("Grad-CAM", "gradcam", ALL, "Grad-CAM", "Grad-CAM"),
    _ours("class rollout", "class-rollout", VIT),
    _ours("gradient rollout", "gradient-rollout", VIT),
    _ours(f"DIX2, {FAST}", "dix2", short="DIX2"),
    _ours(f"IIA2, {FAST}", "iia2", short="IIA2"),
    _ours(INTEGRAL, "ig", ALL, "integrated gradients", "integrated gradients"),
    Candidate(Entry(INTEGRAL, "Saccade", "OpenVINO", "returned"), by_openvino("ig")),
    _torch(LTX, "ltx_shared"),
    _torch(AREAS, "inr"),
    _torch("Grad-CAM", "gradcam"),
    _torch("class rollout", "class-rollout", VIT),
    _torch("gradient rollout", "gradient-rollout", VIT),
    _torch(f"DIX2, {FAST}", "dix2"),
    _torch(LTX, "ltx_shared", compiled=True),
    _torch("Grad-CAM", "gradcam", compiled=True),
    Candidate(
        Entry("LayerGradCam", "Captum", "PyTorch", "kept by a wrapper of the model", "Grad-CAM", "Captum LayerGradCam"),
        peer_rows.captum_grad_cam,
    ),
    Candidate(
        Entry("GradCAM", "pytorch-grad-cam", "PyTorch", "`cam.outputs`", "Grad-CAM", "grad-cam GradCAM"),
        peer_rows.grad_cam(frozen=False),
    ),
    Candidate(
        Entry("GradCAM, all but one weight frozen", "pytorch-grad-cam", "PyTorch", "`cam.outputs`", "Grad-CAM"),
        peer_rows.grad_cam(frozen=True),
    ),
    Candidate(
        Entry("GradCAM", "TorchCAM", "PyTorch", "the caller's forward", "Grad-CAM", "TorchCAM GradCAM"),
        peer_rows.torchcam_grad_cam,
    ),
    Candidate(
        Entry("ReciproCAM", "OpenVINO XAI", "OpenVINO", "returned", "", "ReciproCAM"),
        peer_rows.reciprocam,
    ),
    Candidate(
        Entry("Saliency", "Captum", "PyTorch", "kept by a wrapper of the model", "", "Captum Saliency"),
        peer_rows.captum_saliency,
    ),
    Candidate(
        Entry(
            "IntegratedGradients, 50 points",
            "Captum",
            "PyTorch",
            "a forward of its own",
            "integrated gradients",
            "Captum IntegratedGradients",
            extrapolated=True,
        ),
        peer_rows.captum_integrated_gradients,
    ),
    Candidate(
        Entry(
            "extremal perturbations, four areas",
            peer_rows.FONG,
            "PyTorch",
            "a forward of its own",
            short="extremal perturbations",
            extrapolated=True,
        ),
        peer_rows.extremal,
    ),
)
ENGINES = ("ONNX Runtime", "OpenVINO", "PyTorch", "PyTorch, compiled")
PLAIN = {engine: Entry("the prediction alone", "", engine, "") for engine in ENGINES}
RANDOM = Entry("random", "–", "–", "")
ENTRIES = (*(one.entry for one in CANDIDATES), *PLAIN.values())
