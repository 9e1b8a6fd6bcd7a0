"""The explainee: a trained classifier, loaded from a spec that a user can type, and never changed by being
explained.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..contracts import ImageSpec
from ..errors import ModelError, require, suggest
from ..kernels.mask_blend import Branches
from .batch_norm import right_batch_norm_gradients
from .perturb import perturb
from .sources import SOURCES, Built, LogitsOnly

__all__ = ["Explainee", "guest", "load_explainee", "load_weights"]

PRETRAINED, RANDOM = "pretrained", "random"


@dataclass(frozen=True)
class Explainee:
    """A classifier and what it expects.

    Attributes:
        model: maps normalised images (N, 3, H, W) to logits (N, K); in eval mode.
        image_spec: how an image becomes its input.
        class_names: one per class, by index.
        spec: the spec it was loaded from, such as ``"torchvision:resnet50"``.
        weights: ``"pretrained"``, ``"random"``, or the weights file.
        fingerprint: SHA-256 over names and values of all weights, to recognise the same explainee later.
    """

    model: nn.Module
    image_spec: ImageSpec
    class_names: tuple[str, ...]
    spec: str
    weights: str
    fingerprint: str

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise images (N, 3, H, W) with values in [0, 1] by mean and std."""
        mean = images.new_tensor(self.image_spec.mean).view(1, 3, 1, 1)
        std = images.new_tensor(self.image_spec.std).view(1, 3, 1, 1)
        return (images - mean) / std

    def perturbed(
        self,
        images: Tensor,
        masks: Tensor,
        baseline: Tensor,
        branches: Branches = "keep",
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """What masks (N, A, H, W) keep or remove of images (N, 3, H, W), normalised, in the images' precision unless
        told otherwise; see `perturb`.
        """
        mean, std = self.image_spec.mean, self.image_spec.std
        return perturb(images, masks, baseline, branches, mean=mean, std=std, dtype=dtype or images.dtype)


def load_explainee(
    spec: str,
    weights: str | Path | None = None,
    *,
    class_names: Sequence[str] | None = None,
    image_size: tuple[int, int] | None = None,
) -> Explainee:
    """Build a classifier from a spec and load its weights.

    Args:
        spec: ``torchvision:NAME``, ``timm:NAME``, ``hf:FOLDER_OR_NAME`` (transformers) or ``python:MODULE:FUNCTION`` (a
            function without arguments that returns the module; its attributes ``image_spec`` and ``class_names`` are
            used where they exist).
        weights: a ``.safetensors`` file, or a ``.pth``/``.pt``/``.bin`` state dict (read with ``weights_only=True``:
            a pickle is never executed); ``"pretrained"`` for the library's own; ``"random"`` for none. Default:
            pretrained.
        class_names: replaces the model's names; their number is the number of classes that the model is built with.
        image_size: replaces the model's own (height, width).

    Raises:
        MissingDependencyError: the library of the spec is not installed.
        ModelError: no such model, or weights that do not fit, named key by key.
    """
    family, _, name = spec.partition(":")
    if family not in SOURCES or not name:
        raise ModelError(
            f"'{spec}' is not a model spec; write torchvision:resnet50, timm:resnet50, hf:./folder "
            "or python:my_package.models:build"
        )
    choice = PRETRAINED if weights is None else str(weights)
    file = None if choice in (PRETRAINED, RANDOM) else Path(choice)
    if file is not None and not file.is_file():
        raise ModelError(f"there is no weights file '{file}'; --weights takes a file, 'pretrained' or 'random'")
    build: Callable[..., Built] = SOURCES[family]
    built = build(name, pretrained=choice == PRETRAINED, classes=len(class_names) if class_names else None)
    model = built.model.eval()
    if file is not None:
        load_weights(model.model if isinstance(model, LogitsOnly) else model, file)
    _refuse_nan(model, spec)

    image_spec = replace(built.image_spec, size=image_size) if image_size else built.image_spec
    outputs = _count_classes(model, image_spec, spec)
    names = tuple(class_names or built.class_names or (f"class {index}" for index in range(outputs)))
    if len(names) != outputs:
        raise ModelError(f"{spec} has {outputs} outputs and {len(names)} class names were given; they must be as many")
    stored = str(file.resolve()) if file is not None else choice
    return Explainee(model, image_spec, names, spec, stored, fingerprint(model))


def load_weights(model: nn.Module, file: Path) -> None:
    """Load a state dict strictly.

    Raises:
        ModelError: the file is no state dict, or keys or shapes do not match; the message lists the first of them.
    """
    state = _read_state(file)
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    unknown = sorted(state.keys() - own.keys())
    shapes = [
        f"{key} is {tuple(state[key].shape)} in the file and {tuple(own[key].shape)} in the model"
        for key in sorted(own.keys() & state.keys())
        if own[key].shape != state[key].shape
    ]
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing ({_some(missing)})")
    if unknown:
        problems.append(f"{len(unknown)} that the model does not have ({_some(unknown)})")
    if shapes:
        problems.append(f"{len(shapes)} of another shape ({_some(shapes)}; is --classes missing?)")
    if problems:
        raise ModelError(f"the weights in '{file}' do not fit the model: {'; '.join(problems)}")
    model.load_state_dict(dict(state))


@contextmanager
def guest(model: nn.Module) -> Iterator[nn.Module]:
    """Use a model frozen and in eval mode, and leave `training` and `requires_grad` as they were found.

    Meanwhile its gradients are right for a batch of one too, see `right_batch_norm_gradients`.
    """
    modes = {name: module.training for name, module in model.named_modules()}
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        with right_batch_norm_gradients(model):
            yield model.eval().requires_grad_(False)
    finally:
        for name, module in model.named_modules():
            module.training = modes[name]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(wanted[name])


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, shapes, types and values of the state dict."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def build_python(name: str, *, pretrained: bool, classes: int | None) -> Built:
    """``python:MODULE:FUNCTION``, looked up from the working directory too."""
    module_name, _, function = name.partition(":")
    if not module_name or not function:
        raise ModelError(f"'python:{name}' does not name a function; write python:my_package.models:build")
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"cannot import '{module_name}' of 'python:{name}': {error}; run from its folder or install it"
        ) from None
    finally:
        if added:
            sys.path.remove(here)
    builder = getattr(module, function, None)
    if not callable(builder):
        offered = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ModelError(f"'{module_name}' has no function '{function}'; {suggest(function, sorted(offered))}")
    model = builder(pretrained=False) if not pretrained and _takes_pretrained(builder) else builder()
    if not isinstance(model, nn.Module):
        raise ModelError(f"'python:{name}' returned {type(model).__name__}, not a torch.nn.Module")
    return Built(model, getattr(model, "image_spec", ImageSpec()), tuple(getattr(model, "class_names", ())))


SOURCES["python"] = build_python


def _takes_pretrained(builder: Callable[..., Any]) -> bool:
    import inspect

    return "pretrained" in inspect.signature(builder).parameters


def _read_state(file: Path) -> Mapping[str, Tensor]:
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise ModelError(f"cannot read the weights '{file}': {_first_line(error)}; is the file complete?") from None
    except Exception as error:  # pickle's own exceptions, and what it meets in a file of another kind
        raise ModelError(
            f"'{file}' is not a plain state dict ({type(error).__name__}); "
            "it may hold Python objects, which are never executed: "
            "save model.state_dict() with torch.save, or better as .safetensors"
        ) from None
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(map(_is_entry, state.items())):
        raise ModelError(f"'{file}' does not hold a state dict (names to tensors); save model.state_dict()")
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def _read_safetensors(file: Path) -> Mapping[str, Tensor]:
    safetensors = require("safetensors.torch", extra="train", purpose="reading .safetensors weights")
    try:
        return dict(safetensors.load_file(file))
    except Exception as error:  # OSError, and the library's own
        raise ModelError(f"cannot read the weights '{file}': {_first_line(error)}; is the file complete?") from None


def _is_entry(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _refuse_nan(model: nn.Module, spec: str) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ModelError(f"the weights of {spec} have NaN or infinite values in '{name}'; load other weights")


def _count_classes(model: nn.Module, image_spec: ImageSpec, spec: str) -> int:
    try:
        with torch.no_grad():
            logits = model(torch.zeros(1, 3, *image_spec.size))
    except Exception as error:  # anything a user's model may raise
        raise ModelError(
            f"{spec} fails on one image of {image_spec.size[0]}×{image_spec.size[1]} pixels: "
            f"{type(error).__name__}: {_first_line(error)}; is --image-size right?"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(f"{spec} must give logits of shape (N, K) with K ≥ 2, not {got}")
    return int(logits.shape[1])


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _some(items: Sequence[str], count: int = 3) -> str:
    return ", ".join(items[:count]) + (", …" if len(items) > count else "")
