"""Planted scenes: real images whose evidence is known, to hold explanations against the truth.

A handwritten digit lies somewhere on a crop of a photograph, among distractor patches; the class is the digit and the
ground truth is the digit's own pixels. In the *context* variant a second, separate patch carries a texture that goes
with the class, so that two regions are each sufficient evidence, and each has its ground-truth mask. In the *pair*
variant there are two digits of different classes.

A scene is a pure function of (config, split, index): nothing is stored, any scene can be made again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UsageError, require
from .scene_material import SPLITS, Material, Split, load_material

__all__ = ["CLASS_NAMES", "Scene", "SceneBatch", "SceneConfig", "SceneSource", "scene_dataset"]

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)  # Rec. 709, linear enough for a contrast rule

Variant = Literal["digit", "context", "pair"]
_VARIANTS = get_args(Variant)
Box = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom exclusive


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """How scenes are made.

    Attributes:
        size: height and width of a scene, pixels; digits are 24–48 px at 96 and scale with the size.
        variant: ``"digit"``, ``"context"`` for the second patch whose texture goes with the class, or ``"pair"`` for a
            second digit of another class.
        distractors: most distractor patches in one scene (at least one is drawn when this is not 0).
        contrast: smallest difference of luminance between digit and background, of 1; below 0.2 people misread digits.
        clutter: 1 shows photograph and distractors fully, 0 fades both to a plain colour (for a training curriculum).
        seed: another seed is another, equally distributed, set of scenes.
    """

    size: int = 96
    variant: Variant = "digit"
    distractors: int = 3
    contrast: float = 0.25
    clutter: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 32:
            raise UsageError(f"scenes are at least 32 pixels wide, not {self.size}; a digit would be unreadable")
        if self.variant not in _VARIANTS:
            raise UsageError(f"unknown scene variant '{self.variant}'; there are: {', '.join(_VARIANTS)}")
        if not 0 <= self.clutter <= 1 or not 0 <= self.contrast <= 0.5:
            raise UsageError("clutter lies in [0, 1] and contrast in [0, 0.5]")


@dataclass(frozen=True)
class Scene:
    """One scene.

    Attributes:
        image: uint8 (H, W, 3).
        label: the digit, which is the class index.
        evidence: bool (H, W), the digit's pixels.
        box: the digit's bounding box, pixels.
        context: bool (H, W), the texture patch's pixels, or those of the second digit; empty in the digit variant.
        second: the second digit of a pair; -1 where there is none.
    """

    image: NDArray[np.uint8]
    label: int
    evidence: NDArray[np.bool_]
    box: Box
    context: NDArray[np.bool_]
    second: int = -1


@dataclass(frozen=True)
class SceneBatch:
    """Scenes stacked: images uint8 (N, H, W, 3), labels and seconds int64 (N,), evidence and context bool (N, H, W),
    boxes int64 (N, 4).
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    evidence: NDArray[np.bool_]
    context: NDArray[np.bool_]
    boxes: NDArray[np.int64]
    seconds: NDArray[np.int64]


@dataclass(frozen=True)
class SceneSource:
    """Scenes of one split, by index. Indices are unbounded: train on as many as you like, each is new.

    Example:
        >>> scene = SceneSource("test").scene(0)
        >>> scene.image.shape, scene.label == SceneSource("test").scene(0).label
        ((96, 96, 3), True)
    """

    split: Split = "train"
    config: SceneConfig = field(default_factory=SceneConfig)

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise UsageError(f"unknown split '{self.split}'; there are: {', '.join(SPLITS)}")

    def scene(self, index: int) -> Scene:
        """Make the scene with this index (0 or more)."""
        rng = np.random.default_rng([self.config.seed, SPLITS.index(self.split), index])
        return _compose(rng, load_material(self.split), self.config)

    def batch(self, indices: Iterable[int]) -> SceneBatch:
        """Make several scenes and stack them."""
        scenes = [self.scene(index) for index in indices]
        return SceneBatch(
            images=np.stack([scene.image for scene in scenes]),
            labels=np.array([scene.label for scene in scenes], dtype=np.int64),
            evidence=np.stack([scene.evidence for scene in scenes]),
            context=np.stack([scene.context for scene in scenes]),
            boxes=np.array([scene.box for scene in scenes], dtype=np.int64),
            seconds=np.array([scene.second for scene in scenes], dtype=np.int64),
        )


def scene_dataset(source: SceneSource, count: int, start: int = 0) -> Any:
    """The scenes ``start … start + count`` as a ``torch.utils.data.Dataset``.

    An item is (image uint8 tensor (3, H, W), label int, evidence bool tensor (H, W)).
    """
    torch = require("torch", extra="train", purpose="a torch Dataset of scenes")
    data = require("torch.utils.data", extra="train", purpose="a torch Dataset of scenes")

    class SceneDataset(data.Dataset):  # type: ignore[misc,name-defined]
        def __len__(self) -> int:
            return count

        def __getitem__(self, item: int) -> tuple[Any, int, Any]:
            if not 0 <= item < count:
                raise IndexError(f"item {item} of a dataset of {count} scenes")
            scene = source.scene(start + item)
            image = torch.from_numpy(np.ascontiguousarray(scene.image.transpose(2, 0, 1)))
            return image, scene.label, torch.from_numpy(scene.evidence)

    return SceneDataset()


def _compose(rng: np.random.Generator, material: Material, config: SceneConfig) -> Scene:
    size = config.size
    canvas = _background(rng, material.photographs, size)
    pick = int(rng.integers(len(material.labels)))
    label = int(material.labels[pick])

    shape = _digit_alpha(rng, material.digits[pick], round(rng.uniform(24, 48) * size / 96))
    digit_box = _place(rng, shape.shape, size, [])
    taken = [digit_box]

    context = np.zeros((size, size), dtype=np.bool_)
    texture = None
    if config.variant == "context":
        side = round(rng.uniform(26, 34) * size / 96)
        box = _place(rng, (side, side), size, taken)
        taken.append(box)
        texture = (box, _class_texture(rng, label, side))
    second, other = -1, None
    if config.variant == "pair":
        choices = np.flatnonzero(material.labels != label)
        found = int(choices[rng.integers(len(choices))])
        second = int(material.labels[found])
        alpha = _digit_alpha(rng, material.digits[found], round(rng.uniform(24, 48) * size / 96))
        other = (_place(rng, alpha.shape, size, taken), alpha)
        taken.append(other[0])

    for _ in range(int(rng.integers(1, config.distractors + 1)) if config.distractors else 0):
        side = round(rng.uniform(14, 30) * size / 96)
        patch, alpha = _distractor(rng, material, side)
        box = _place(rng, alpha.shape[:2], size, taken)
        _paste(canvas, box, patch, alpha)
        taken.append(box)

    if config.clutter < 1:
        plain = rng.uniform(0.1, 0.9, 3).astype(np.float32)
        canvas = config.clutter * canvas + (1 - config.clutter) * plain
    if texture is not None:
        box, (stripes, disc) = texture
        _paste(canvas, box, stripes, disc)
        context[_slices(box)] = disc[..., 0] > 0.5

    if other is not None:
        context |= _paint_digit(rng, canvas, *other, config)
    evidence = _paint_digit(rng, canvas, digit_box, shape, config)
    image = (canvas.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return Scene(image=image, label=label, evidence=evidence, box=_bounds(evidence), context=context, second=second)


def _paint_digit(
    rng: np.random.Generator, canvas: NDArray[np.float32], box: Box, shape: NDArray[np.float32], config: SceneConfig
) -> NDArray[np.bool_]:
    """Draw a digit in a colour that stands out; its pixels, bool (H, W)."""
    colour = _contrasting_colour(rng, canvas[_slices(box)], config.contrast)
    _paste(canvas, box, colour * _shading(rng, shape.shape), shape[..., None])
    pixels = np.zeros(canvas.shape[:2], dtype=np.bool_)
    pixels[_slices(box)] = shape > 0.5
    return pixels


def _background(rng: np.random.Generator, photographs: Sequence[NDArray[np.uint8]], size: int) -> NDArray[np.float32]:
    """A crop of a photograph at a random scale, mirrored or not, with a slight change of exposure and tint."""
    photograph = photographs[int(rng.integers(len(photographs)))]
    height, width = photograph.shape[:2]
    side = int(min(height, width, size * rng.uniform(1.0, 3.0)))
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    crop = Image.fromarray(photograph[top : top + side, left : left + side])
    canvas = np.asarray(crop.resize((size, size), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    if rng.random() < 0.5:
        canvas = canvas[:, ::-1]
    exposure = rng.uniform(0.7, 1.25) * rng.uniform(0.9, 1.1, 3).astype(np.float32)
    return np.clip(canvas * exposure.astype(np.float32), 0, 1)


def _digit_alpha(rng: np.random.Generator, digit: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """The digit's coverage in [0, 1]: up-sampled smoothly to ``side`` pixels, turned by up to 12 degrees, edges
    sharpened.
    """
    padded = Image.fromarray(np.pad(digit, 2))
    turned = padded.resize((side * 12 // 8,) * 2, Image.Resampling.BICUBIC).rotate(
        float(rng.uniform(-12, 12)), Image.Resampling.BICUBIC
    )
    ramp = np.clip((np.asarray(turned, dtype=np.float32) - 0.32) / 0.3, 0, 1)
    alpha: NDArray[np.float32] = ramp * ramp * (3 - 2 * ramp)
    return alpha[_slices(_bounds(alpha > 0.02))]


def _contrasting_colour(rng: np.random.Generator, under: NDArray[np.float32], contrast: float) -> NDArray[np.float32]:
    """The first of 24 random colours whose luminance stands out from 85 % of what lies under the digit, else the
    best.
    """
    luminance = (under @ _LUMINANCE).reshape(-1)
    colours = rng.uniform(0, 1, (24, 3)).astype(np.float32)
    colours[-2:] = [[0.02] * 3, [0.98] * 3]
    visible: NDArray[np.float64] = (np.abs((colours @ _LUMINANCE)[:, None] - luminance) >= contrast).mean(1)
    fits = np.flatnonzero(visible >= 0.85)
    return np.asarray(colours[fits[0] if fits.size else int(visible.argmax())])


def _shading(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A slight linear change of brightness across the digit, as light would make it."""
    y, x = np.mgrid[-0.5 : 0.5 : shape[0] * 1j, -0.5 : 0.5 : shape[1] * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    shade: NDArray[np.float32] = (1 + 0.16 * (np.cos(angle) * x + np.sin(angle) * y)).astype(np.float32)
    return shade[..., None]


def _distractor(
    rng: np.random.Generator, material: Material, side: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A patch without evidence: a piece of another photograph, or strokes made of a digit's shuffled pixels."""
    if rng.random() < 0.5:
        patch = _background(rng, material.photographs, side)
        return patch, np.ones((side, side, 1), dtype=np.float32)
    pixels = material.digits[int(rng.integers(len(material.digits)))].reshape(-1)
    strokes = _digit_alpha(rng, rng.permutation(pixels).reshape(8, 8), side)[:side, :side, None]
    colour = rng.uniform(0, 1, 3).astype(np.float32)
    return np.broadcast_to(colour, (*strokes.shape[:2], 3)), strokes


def _class_texture(rng: np.random.Generator, label: int, side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A disc of stripes: the class sets direction (five of them) and width (two of them); phase and colours are
    free.
    """
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) - (side - 1) / 2
    angle = np.pi * (label % 5) / 5
    period = side / (3.0 if label < 5 else 6.0)
    wave = 0.5 + 0.5 * np.sin(2 * np.pi * (np.cos(angle) * x + np.sin(angle) * y) / period + rng.uniform(0, 2 * np.pi))
    dark, light = rng.uniform(0, 0.35, 3), rng.uniform(0.65, 1, 3)
    patch = wave[..., None] * light + (1 - wave[..., None]) * dark
    disc = np.clip(side / 2 - np.hypot(x, y), 0, 1)
    return patch.astype(np.float32), disc[..., None].astype(np.float32)


def _place(rng: np.random.Generator, shape: tuple[int, ...], size: int, taken: list[Box]) -> Box:
    """A random place for a patch that covers the taken boxes as little as 40 tries allow."""
    height, width = shape
    best, least = (0, 0, width, height), np.inf
    for _ in range(40):
        top, left = int(rng.integers(size - height + 1)), int(rng.integers(size - width + 1))
        box = (left, top, left + width, top + height)
        covered = sum(_overlap(box, other) for other in taken)
        if covered < least:
            best, least = box, covered
        if covered == 0:
            break
    return best


def _overlap(a: Box, b: Box) -> int:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def _slices(box: Box) -> tuple[slice, slice]:
    return slice(box[1], box[3]), slice(box[0], box[2])


def _paste(canvas: NDArray[np.float32], box: Box, patch: NDArray[Any], alpha: NDArray[np.float32]) -> None:
    region = canvas[_slices(box)]
    canvas[_slices(box)] = alpha * patch + (1 - alpha) * region


def _bounds(mask: NDArray[np.bool_]) -> Box:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
