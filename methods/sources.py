"""Where classifiers come from: torchvision, timm and transformers, each with its own preprocessing and class names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..contracts import ImageSpec, Interpolation
from ..errors import ModelError, require, suggest

__all__ = ["SOURCES", "Built", "LogitsOnly"]


@dataclass(frozen=True)
class Built:
    """A model as its library builds it; class names may be empty."""

    model: nn.Module
    image_spec: ImageSpec
    class_names: tuple[str, ...]


def build_torchvision(name: str, *, pretrained: bool, classes: int | None) -> Built:
    """A classification model of torchvision, with the transforms and categories of its default weights."""
    models = require("torchvision.models", extra="models", purpose=f"the model torchvision:{name}")
    known = models.list_models(module=models)
    if name not in known:
        raise ModelError(f"torchvision has no classifier '{name}'; {suggest(name, known)}")
    default = models.get_model_weights(name).DEFAULT
    categories = tuple(default.meta["categories"])
    if pretrained:
        _refuse_new_head(f"torchvision:{name}", len(categories), classes)
    settings = default.transforms()
    resize, crop = settings.resize_size[0], settings.crop_size[0]
    image_spec = ImageSpec(
        size=(crop, crop),
        resize="crop",
        crop=min(1.0, crop / resize),
        interpolation=_interpolation(settings.interpolation.value),
        mean=_three(settings.mean),
        std=_three(settings.std),
    )
    options: dict[str, Any] = {"weights": default if pretrained else None}
    if classes is not None:
        options["num_classes"] = classes
    model = _download(lambda: models.get_model(name, **options), f"torchvision:{name}", pretrained)
    return Built(model, image_spec, categories if classes in (None, len(categories)) else ())


def build_timm(name: str, *, pretrained: bool, classes: int | None) -> Built:
    """A model of timm, with the preprocessing of its pretrained configuration."""
    timm = require("timm", extra="models", purpose=f"the model timm:{name}")
    if not timm.is_model(name):
        raise ModelError(f"timm has no model '{name}'; {suggest(name, timm.list_models())}")
    if pretrained:
        trained = timm.get_pretrained_cfg(name)
        _refuse_new_head(f"timm:{name}", trained.num_classes if trained else classes, classes)
    options = {} if classes is None else {"num_classes": classes}
    model = _download(lambda: timm.create_model(name, pretrained=pretrained, **options), f"timm:{name}", pretrained)
    config = timm.data.resolve_data_config({}, model=model)
    image_spec = ImageSpec(
        size=(int(config["input_size"][1]), int(config["input_size"][2])),
        resize="squash" if config.get("crop_mode") == "squash" else "crop",
        crop=float(config.get("crop_pct", 0.875)),
        interpolation=_interpolation(config["interpolation"]),
        mean=_three(config["mean"]),
        std=_three(config["std"]),
    )
    return Built(model, image_spec, ())


class LogitsOnly(nn.Module):
    """A transformers classifier as a plain function from pixels to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised images to logits."""
        logits: Tensor = self.model(pixel_values=pixels).logits
        return logits


def build_transformers(name: str, *, pretrained: bool, classes: int | None) -> Built:
    """An image classifier of transformers, from a folder or a hub name, with its preprocessor configuration."""
    transformers = require("transformers", extra="models", purpose=f"the model hf:{name}")
    auto = transformers.AutoModelForImageClassification
    try:
        config = transformers.AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ModelError(f"transformers finds no model '{name}': {str(error).splitlines()[0]}") from None
    if pretrained:
        _refuse_new_head(f"hf:{name}", config.num_labels, classes)
    if classes is not None:
        config.num_labels = classes
    model = (
        _download(lambda: auto.from_pretrained(name, config=config), f"hf:{name}", True)
        if pretrained
        else auto.from_config(config)
    )
    try:
        settings, _ = transformers.ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:
        settings = {}
    names = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    return Built(LogitsOnly(model), _transformers_image_spec(settings, config), names)


SOURCES: dict[str, Callable[..., Built]] = {
    "torchvision": build_torchvision,
    "timm": build_timm,
    "hf": build_transformers,
}


def _transformers_image_spec(settings: dict[str, Any], config: Any) -> ImageSpec:
    size = settings.get("size", {})
    whole = settings.get("crop_pct") is None  # with a fraction, as of ConvNeXt, a bare size is that of the shorter edge
    if isinstance(size, int):
        size = {"height": size, "width": size} if whole else {"shortest_edge": size}
    size = dict(size)
    crop = settings.get("crop_size", {})
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else dict(crop or {})
    fallback = getattr(config, "image_size", 224)
    fallback = int(fallback[0] if isinstance(fallback, (list, tuple)) else fallback)
    shape = crop if settings.get("do_center_crop") and crop else size
    height, width = int(shape.get("height", fallback)), int(shape.get("width", fallback))
    shortest = size.get("shortest_edge")
    if shortest and not crop:
        height = width = int(shortest)
    resize_to = int(shortest or size.get("height", height))
    squash = "height" in size and not settings.get("do_center_crop")
    if not whole and resize_to >= 384:  # ConvNeXt takes the whole image from here on
        squash = True
    pixels_scaled = settings.get("do_normalize", True)
    return ImageSpec(
        size=(height, width),
        resize="squash" if squash or not settings else "crop",
        crop=float(settings.get("crop_pct") or min(1.0, height / resize_to)),
        interpolation="bicubic" if settings.get("resample") == 3 else "bilinear",
        mean=_three(settings.get("image_mean", (0.5, 0.5, 0.5))) if pixels_scaled else (0.0, 0.0, 0.0),
        std=_three(settings.get("image_std", (0.5, 0.5, 0.5))) if pixels_scaled else (1.0, 1.0, 1.0),
    )


def _download(build: Callable[[], nn.Module], spec: str, pretrained: bool) -> nn.Module:
    try:
        return build()
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise ModelError(
            f"cannot get the pretrained weights of {spec}: {(str(error) or type(error).__name__).splitlines()[0]}; "
            "give them with --weights FILE, or --weights random to try it without"
        ) from None


def _refuse_new_head(spec: str, own: int | None, classes: int | None) -> None:
    if classes not in (None, own):
        raise ModelError(
            f"the pretrained weights of {spec} have {own} classes and {classes} class names were given; "
            "give weights that were trained for these classes with --weights FILE"
        )


def _interpolation(name: str) -> Interpolation:
    return "bicubic" if "bicubic" in str(name) else "bilinear"


def _three(values: Any) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third
