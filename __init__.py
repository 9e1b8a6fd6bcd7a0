"""Saccade: an explanation with every prediction, at nearly the cost of the prediction.

    import saccade
    explainer = saccade.open("bundle")
    for result in explainer.explain(["cat.jpg", "dog.jpg"]):
        print(result.class_name, result.probability)
        result.overlay().save("overlay.png")

Names are loaded when they are first used: ``import saccade`` alone loads neither ONNX Runtime nor PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .accel.bundle import Bundle, open_bundle
    from .accel.engine import Engine
    from .accel.engines import open_engine
    from .accel.explainer import Explainer, open
    from .accel.image import load_image, resize_image
    from .accel.manifest import Manifest
    from .accel.pipeline import PipelineConfig, explain_images
    from .accel.results import Failure, ImageExplanation, ResultWriter
    from .contracts import Explanation, ImageSpec, MaskQuery
    from .errors import SaccadeError

__version__ = "0.1.0"

_HOMES = {
    "Bundle": "accel.bundle",
    "Engine": "accel.engine",
    "Explainer": "accel.explainer",
    "Explanation": "contracts",
    "Failure": "accel.results",
    "ImageExplanation": "accel.results",
    "ImageSpec": "contracts",
    "Manifest": "accel.manifest",
    "MaskQuery": "contracts",
    "PipelineConfig": "accel.pipeline",
    "ResultWriter": "accel.results",
    "SaccadeError": "errors",
    "explain_images": "accel.pipeline",
    "load_image": "accel.image",
    "open": "accel.explainer",
    "open_bundle": "accel.bundle",
    "open_engine": "accel.engines",
    "resize_image": "accel.image",
}

__all__ = [
    "Bundle",
    "Engine",
    "Explainer",
    "Explanation",
    "Failure",
    "ImageExplanation",
    "ImageSpec",
    "Manifest",
    "MaskQuery",
    "PipelineConfig",
    "ResultWriter",
    "SaccadeError",
    "__version__",
    "explain_images",
    "load_image",
    "open",
    "open_bundle",
    "open_engine",
    "resize_image",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'saccade' has no attribute '{name}'; it has: {', '.join(__all__)}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
