"""Images to train an explainer on, and those that are left out of it to see what it has learned."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..accel.image import find_images, load_image, resize_image
from ..contracts import ImageSpec, Uint8
from ..errors import ImageError
from ..evaluate.scenes import SceneConfig, SceneSource
from .data import SCENES
from .evaluation_data import EvaluationData, FolderData, ScenesData, scene_size

__all__ = ["FolderStream", "SceneStream", "TrainingData", "open_training_data"]

MOST_HELD_OUT = 64
HELD_OUT_SHARE = 10  # one image in so many, up to `MOST_HELD_OUT`
_REPORTED_SCENES = 128
_CACHED_IMAGES = 4096
_FIRST_BYTES = 65536


class SceneStream:
    """Planted scenes of the training split: each step has new ones, always the same for the same step.

    Args:
        size: height and width, pixels.
        batch_size: images per step.
        seed: another seed is another set of scenes.
        pairs: every second scene has two digits of different classes.
    """

    def __init__(self, size: int, batch_size: int, seed: int, *, pairs: bool = False) -> None:
        self._source = SceneSource("train", SceneConfig(size=size, seed=seed + 1))
        self._pairs = SceneSource("train", SceneConfig(size=size, seed=seed + 1, variant="pair")) if pairs else None
        self._batch_size = batch_size
        self.digest = f"scenes {size} {batch_size} {seed} {pairs}"

    def __call__(self, step: int) -> Uint8:
        """Images of a step, uint8 (B, H, W, 3)."""
        return self.part(step, slice(None))

    def part(self, step: int, part: slice) -> Uint8:
        """Equal to ``self(step)[part]``."""
        sources = (self._source, self._pairs or self._source)
        return np.stack([sources[index % 2].scene(index).image for index in self._indices(step)[part]])

    def names(self, step: int) -> Sequence[str]:
        """The scenes' indices in words."""
        return [f"scene {index} of the training split" for index in self._indices(step)]

    def _indices(self, step: int) -> range:
        return range(step * self._batch_size, (step + 1) * self._batch_size)


class FolderStream:
    """Files in an order that is shuffled anew each epoch; half of the images are mirrored.

    One that cannot be read is replaced by the next. Always the same for the same step.

    Args:
        files: the images.
        spec: how they become the model's input.
        batch_size: images per step.
        seed: of order and mirroring.

    Raises:
        ImageError: none of the files can be read.
    """

    def __init__(self, files: Sequence[Path], spec: ImageSpec, batch_size: int, seed: int) -> None:
        self._files, self._spec, self._batch_size, self._seed = files, spec, batch_size, seed
        self._load = lru_cache(maxsize=_CACHED_IMAGES)(self._read)
        self._order_of = lru_cache(maxsize=2)(self._shuffled)
        self.digest = _digest(files)

    def __call__(self, step: int) -> Uint8:
        """Images of a step, uint8 (B, H, W, 3)."""
        return self.part(step, slice(None))

    def part(self, step: int, part: slice) -> Uint8:
        """Equal to ``self(step)[part]``."""
        images = []
        for epoch, place in self._places(step)[part]:
            _, image = self._load(int(self._order_of(epoch)[place]))
            mirrored = np.random.default_rng([self._seed, epoch, place]).random() < 0.5
            images.append(image[:, ::-1] if mirrored else image)
        return np.stack(images)

    def names(self, step: int) -> Sequence[str]:
        """The files that were really read."""
        return [str(self._load(int(self._order_of(epoch)[place]))[0]) for epoch, place in self._places(step)]

    def _places(self, step: int) -> list[tuple[int, int]]:
        """Epoch, and place in its order, of each image of a step."""
        first = step * self._batch_size
        return [divmod(position, len(self._files)) for position in range(first, first + self._batch_size)]

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self._files))

    def _read(self, index: int) -> tuple[Path, Uint8]:
        for other in range(len(self._files)):
            file = self._files[(index + other) % len(self._files)]
            try:
                return file, resize_image(load_image(file), self._spec)
            except ImageError:
                continue
        raise ImageError(f"none of the {len(self._files)} images to train on can be read")


def _digest(files: Sequence[Path]) -> str:
    """Of the files' names below the folder that holds them all, their sizes and first bytes, in order; so a folder may
    move.
    """
    names = [str(file.resolve()) for file in files]
    top = os.path.commonpath(names) if len(names) > 1 else os.path.dirname(names[0])
    digest = hashlib.sha256()
    for name, file in zip(names, files, strict=True):
        digest.update(f"{os.path.relpath(name, top)} {file.stat().st_size}\n".encode(errors="surrogateescape"))
        with file.open("rb") as stream:
            digest.update(stream.read(_FIRST_BYTES))
    return digest.hexdigest()


@dataclass(frozen=True)
class TrainingData:
    """What a training looks at.

    Attributes:
        stream: the images to train on, by step.
        held_out: images to validate with, none of which is trained on; None where there are too few.
        reported: images of the report at the end; the training images where none are held out.
        about: all three in words.
        about_report: what `reported` is, in words.
    """

    stream: SceneStream | FolderStream
    held_out: EvaluationData | None
    reported: EvaluationData
    about: str
    about_report: str

    @property
    def validation_digest(self) -> str:
        """The same for the same images to validate with."""
        if self.held_out is None:
            return ""
        return _digest(self.held_out.files) if isinstance(self.held_out, FolderData) else self.held_out.title

    @property
    def reports_validation(self) -> bool:
        """The report's images are those that validate."""
        return self.reported is self.held_out

    def shown(self, count: int) -> Uint8:
        """The first images that are held out, or reported, uint8 (N ≤ count, H, W, 3).

        Raises:
            ImageError: none can be read.
        """
        images = [example.image for example in islice(self.held_out or self.reported, count)]
        if not images:
            raise ImageError(f"no image can be read; there should be: {self.about_report}")
        return np.stack(images)


def open_training_data(
    data: str, spec: ImageSpec, batch_size: int, seed: int, validation: Path | None = None, *, pairs: bool = False
) -> TrainingData:
    """The data that a user names.

    Args:
        data: ``"scenes"`` or a folder.
        spec: the classifier's input.
        batch_size: images per step.
        seed: of the training's images; which ones are held out does not depend on it.
        validation: folder of images to hold out, of which at most 64 are drawn; by default 64 scenes of the
            validation split, or one file in ten of the training's folder, at most 64.
        pairs: every second scene to train on has two digits; a folder has what it has.

    Raises:
        ImageError: a folder has no images.
        UsageError: scenes for a model that does not take squares.
    """
    own = None
    if validation is not None:
        files = find_images([validation])
        own = FolderData(validation, _drawn(files, MOST_HELD_OUT), spec)
    if data == SCENES:
        size = scene_size(spec)
        held_out: EvaluationData = own or ScenesData(size, MOST_HELD_OUT, split="val")
        reported: EvaluationData = own or ScenesData(size, _REPORTED_SCENES)
        about = f"new scenes in every step; validation: {held_out.title}"
        return TrainingData(SceneStream(size, batch_size, seed, pairs=pairs), held_out, reported, about, reported.title)

    folder, files = Path(data), find_images([data])
    drawn = own or FolderData(folder, _drawn(files, min(MOST_HELD_OUT, len(files) // HELD_OUT_SHARE)), spec)
    taken = {file.resolve() for file in drawn.files}
    rest = [file for file in files if file.resolve() not in taken]
    if not rest:
        raise ImageError(f"all images of '{data}' are held out for validation; none are left to train on")
    stream = FolderStream(rest, spec, batch_size, seed)
    if not drawn.files:
        reported = FolderData(folder, _drawn(files, MOST_HELD_OUT), spec)
        about = f"{len(rest)} images; none held out, since there are fewer than {HELD_OUT_SHARE} (see --validation)"
        return TrainingData(stream, None, reported, about, f"{reported.count} of the images that were trained on")
    where = f"in {validation}" if validation is not None else f"drawn from {folder} and left out of the training"
    about_report = f"{drawn.count} held-out images {where}"
    return TrainingData(stream, drawn, drawn, f"{len(rest)} images; validation: {about_report}", about_report)


def _drawn(files: Sequence[Path], count: int) -> tuple[Path, ...]:
    """So many files at random, always the same."""
    order = np.random.default_rng(0).permutation(len(files))
    return tuple(files[int(index)] for index in order[:count])
