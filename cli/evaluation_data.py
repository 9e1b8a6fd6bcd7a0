"""Images to evaluate on: planted scenes, a folder, or a folder per class; with ground truth where there is some."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..accel.image import find_images, load_image, resize_image
from ..contracts import ImageSpec, Uint8
from ..errors import ImageError, UsageError
from .data import SCENES

__all__ = ["EvaluationData", "Example", "FolderData", "ScenesData", "open_data"]


@dataclass(frozen=True)
class Example:
    """One image, as the classifier takes it, and what is known about it.

    Attributes:
        name: for messages.
        image: uint8 (H, W, 3).
        label: index of its class, or None.
        evidence: bool (H, W), the ground truth, or None.
    """

    name: str
    image: Uint8
    label: int | None = None
    evidence: NDArray[np.bool_] | None = None


class EvaluationData(ABC):
    """Images that can be gone through several times, always in the same order; none is kept."""

    title: str
    count: int
    has_labels: bool
    has_evidence: bool
    failures: dict[str, str]

    @abstractmethod
    def __iter__(self) -> Iterator[Example]:
        """The examples."""


@dataclass(frozen=True)
class ScenesData(EvaluationData):
    """Planted scenes that no model of ours was trained on.

    Attributes:
        size: height and width, pixels.
        count: number of scenes.
        first: index of the first one.
        context: with the second patch, whose pixels then are evidence as well.
        split: which digits and photographs.
    """

    size: int
    count: int
    first: int = 0
    context: bool = False
    failures: dict[str, str] = field(default_factory=dict)
    split: Literal["val", "test"] = "test"
    has_labels = True
    has_evidence = True

    @property
    def title(self) -> str:  # type: ignore[override]
        """What it is, for people."""
        return f"{self.count} planted scenes, {self.split} split, from index {self.first}"

    def __iter__(self) -> Iterator[Example]:
        from ..evaluate.scenes import SceneConfig, SceneSource

        source = SceneSource(self.split, SceneConfig(size=self.size, variant="context" if self.context else "digit"))
        for index in range(self.first, self.first + self.count):
            scene = source.scene(index)
            yield Example(f"scene {index}", scene.image, scene.label, scene.evidence | scene.context)


@dataclass(frozen=True)
class FolderData(EvaluationData):
    """A folder of images, with labels where it has one folder per class, and masks beside it.

    Attributes:
        folder: of the images.
        files: those to take.
        spec: how an image becomes the classifier's input; its mask goes the same way, without smoothing.
        labels: one per file, or None.
        truth: one mask file per image file, or None; evidence is what is brighter than half.
        failures: images that could not be read, with the reason; they are passed over.
    """

    folder: Path
    files: tuple[Path, ...]
    spec: ImageSpec
    labels: tuple[int, ...] | None = None
    truth: tuple[Path, ...] | None = None
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:  # type: ignore[override]
        """What it is, for people."""
        return f"{self.count} images in {self.folder}"

    @property
    def count(self) -> int:  # type: ignore[override]
        """Number of images."""
        return len(self.files)

    @property
    def has_labels(self) -> bool:  # type: ignore[override]
        """There is one folder per class."""
        return self.labels is not None

    @property
    def has_evidence(self) -> bool:  # type: ignore[override]
        """There are masks."""
        return self.truth is not None

    def __iter__(self) -> Iterator[Example]:
        for index, file in enumerate(self.files):
            try:
                image = load_image(file)
            except ImageError as error:
                self.failures[str(file)] = str(error)
                continue
            evidence = self._evidence(self.truth[index], image) if self.truth else None
            label = self.labels[index] if self.labels else None
            yield Example(str(file), resize_image(image, self.spec), label, evidence)

    def _evidence(self, file: Path, image: Uint8) -> NDArray[np.bool_]:
        truth = load_image(file)
        if truth.shape[:2] != image.shape[:2]:
            raise ImageError(
                f"the mask '{file}' has {truth.shape[1]}×{truth.shape[0]} pixels and its image "
                f"{image.shape[1]}×{image.shape[0]}; they must be equal"
            )
        left, top, right, bottom = self.spec.box(*image.shape[:2])
        height, width = self.spec.size
        cut = Image.fromarray(truth[top:bottom, left:right]).resize((width, height), Image.Resampling.NEAREST)
        evidence = np.asarray(cut).max(2) > 127
        if not evidence.any():
            raise ImageError(f"the mask '{file}' has no evidence (nothing brighter than 127) where the model looks")
        return np.asarray(evidence)


def open_data(
    data: str,
    spec: ImageSpec,
    class_names: Sequence[str],
    *,
    masks: Path | None = None,
    count: int | None = None,
    first: int = 0,
    context: bool = False,
) -> EvaluationData:
    """The data that a user names.

    Args:
        data: ``"scenes"``, or a folder of images; its sub-folders are classes if each is called like one, or if there
            are as many as classes, which then go by sorted name (torchvision's ImageFolder convention).
        spec: the classifier's input.
        class_names: of the classifier.
        masks: folder with one mask per image, under the same relative path with any image suffix.
        count: at most so many images; default 500 scenes, or all images of a folder.
        first: leave out so many before.
        context: scenes with the second patch.

    Raises:
        UsageError: masks for scenes, which have their own, or an offset past the last image.
        ImageError: no images, or one without its mask.
    """
    if data == SCENES:
        if masks is not None:
            raise UsageError("planted scenes bring their own ground truth; leave out --masks")
        return ScenesData(scene_size(spec), count or 500, first, context)
    folder = Path(data)
    files = find_images([folder])[first:]
    if not files:
        raise UsageError(f"--first {first} leaves no image of '{folder}'")
    files = files[:count]
    labels = _labels(folder, files, class_names)
    truth = _find_masks(folder, files, masks) if masks is not None else None
    return FolderData(folder, tuple(files), spec, labels, truth)


def _labels(folder: Path, files: Sequence[Path], class_names: Sequence[str]) -> tuple[int, ...] | None:
    if not folder.is_dir() or any(file.parent == folder for file in files):
        return None
    places = [file.relative_to(folder).parts[0] for file in files]
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if set(places) <= set(class_names):
        return tuple(class_names.index(place) for place in places)
    if len(classes) == len(class_names):
        return tuple(classes.index(place) for place in places)
    return None


def _find_masks(folder: Path, files: Sequence[Path], masks: Path) -> tuple[Path, ...]:
    by_stem = {file.relative_to(masks).with_suffix(""): file for file in find_images([masks])}
    found, missing = [], []
    for file in files:
        stem = (file.relative_to(folder) if folder.is_dir() else Path(file.name)).with_suffix("")
        if stem in by_stem:
            found.append(by_stem[stem])
        else:
            missing.append(stem)
    if missing:
        raise ImageError(
            f"{len(missing)} of {len(files)} images have no mask in '{masks}'; the first is '{missing[0]}'; "
            "a mask has its image's relative path, with any image suffix"
        )
    return tuple(found)


def scene_size(spec: ImageSpec) -> int:
    """Height and width of scenes for a model.

    Raises:
        UsageError: the model does not take squares.
    """
    height, width = spec.size
    if height != width:
        raise UsageError(f"planted scenes are square, and the model takes {height}×{width} pixels")
    return height
