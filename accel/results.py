"""One image's explanation, and how it is written: overlay PNG, mask PNG or NPZ, a line of JSON."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..contracts import Floats, ImageSpec, Uint8
from ..errors import OutputError, UsageError
from .overlay import draw_overlay, draw_parts, enlarge, with_legend, with_names

__all__ = ["FORMATS", "Failure", "ImageExplanation", "ResultWriter", "together"]

FORMATS = ("overlay", "mask", "npz")
_LONGEST_STEM = 200  # bytes of a file name before its suffixes; file systems allow 255 in all


@dataclass(frozen=True)
class ImageExplanation:
    """The answer for one image.

    Attributes:
        source: where the image came from, as given.
        image: uint8 (H, W, 3), the whole image as loaded.
        probabilities: float32 (K,).
        target: index of the class that was asked for, or of the predicted class.
        class_names: one per class.
        mask: float32 (h, w) in [0, 1], at the model's size or the one that was asked for; 1 keeps the pixel.
        spec: which part of the image the model saw.
        class_specific: the mask is about `target`; if not, it is about the predicted class whatever was asked.
        milliseconds: the time for this image's batch, divided by the batch; None where it was not measured.
        diagnostics: what the method says about itself, see `Explanation`.
        parts: masks like `mask`, which is all of them together, each with its name; the overlay shows each in a colour
            of its own. Empty where `mask` is one.
        box: the part of what the model saw that `mask` covers, (left, top, right, bottom) as fractions of it.
        variant: which of several explanations of the same image this is, such as the class; its files' names end so.
    """

    source: str
    image: Uint8
    probabilities: Floats
    target: int
    class_names: tuple[str, ...]
    mask: Floats
    spec: ImageSpec
    class_specific: bool
    milliseconds: float | None
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    variant: str = ""
    parts: Mapping[str, Floats] = field(default_factory=dict)
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)

    @property
    def class_name(self) -> str:
        """Name of the target class."""
        return self.class_names[self.target]

    @property
    def probability(self) -> float:
        """Probability of the target class."""
        return float(self.probabilities[self.target])

    @property
    def predicted(self) -> int:
        """Index of the predicted class."""
        return int(self.probabilities.argmax())

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The most probable classes, best first."""
        best = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.class_names[i], float(self.probabilities[i])) for i in best]

    def mask_on_image(self) -> Floats:
        """The mask at the image's own size, float32 (H, W); 0 where the model did not look and outside the box."""
        return self._placed(self.mask)

    def _placed(self, mask: Floats) -> Floats:
        height, width = self.image.shape[:2]
        left, top, right, bottom = _within(self.spec.box(height, width), self.box)
        scaled = Image.fromarray(np.ascontiguousarray(mask)).resize(
            (right - left, bottom - top), Image.Resampling.BILINEAR
        )
        placed = np.zeros((height, width), dtype=np.float32)
        placed[top:bottom, left:right] = np.asarray(scaled)
        return placed

    def peak(self) -> tuple[int, int]:
        """The pixel (x, y) of the image where the mask is highest."""
        placed = self.mask_on_image()
        y, x = np.unravel_index(int(placed.argmax()), placed.shape)
        return int(x), int(y)

    def overlay(self, *, legend: bool = True) -> Image.Image:
        """The picture for people; small images are enlarged."""
        image, mask = enlarge(self.image, self.mask_on_image())
        shown = [enlarge(self.image, self._placed(part))[1] for part in self.parts.values()]
        picture = draw_parts(image, shown) if shown else draw_overlay(image, mask)
        if legend:
            about = (
                ""
                if self.class_specific or self.target == self.predicted
                else f"; evidence for {self.class_names[self.predicted]}"
            )
            kind = f"; {self.variant}" if self.variant not in ("", self.class_name) else ""
            title, note = f"{self.class_name}  {self.probability:.1%}", f"{Path(self.source).name}{kind}{about}"
            picture = with_names(picture, title, note, list(self.parts)) if shown else with_legend(picture, title, note)
        return Image.fromarray(picture)

    def record(self) -> dict[str, Any]:
        """What a line of JSON says about this image."""
        return {
            "image": self.source,
            **({"variant": self.variant} if self.variant else {}),
            "target": self.target,
            "class": self.class_name,
            "probability": round(self.probability, 6),
            "predicted": self.class_names[self.predicted],
            "top": [[name, round(probability, 6)] for name, probability in self.top()],
            "explains": self.class_name if self.class_specific else self.class_names[self.predicted],
            "area": round(float(self.mask.mean()), 4),
            "peak": list(self.peak()),
            **({} if self.milliseconds is None else {"milliseconds": round(self.milliseconds, 3)}),
            **{name: float(f"{value:.4g}") for name, value in self.diagnostics.items()},
        }


def _within(outer: tuple[int, int, int, int], part: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
    """A part of a box of pixels, in whole pixels, at least one each way."""
    edges = []
    for low, high, first, last in zip(outer[:2], outer[2:], part[:2], part[2:], strict=True):
        start = min(low + round(first * (high - low)), high - 1)
        edges.append((start, max(start + 1, low + round(last * (high - low)))))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def together(parts: Sequence[ImageExplanation], name: str = "", **numbers: float) -> ImageExplanation:
    """Masks of one image and class without a common pixel as one explanation.

    Args:
        parts: at least one.
        name: what the variant's name begins with.
        numbers: diagnostics of all masks together.
    """
    masks = {part.variant.removeprefix(f"{name}."): part.mask for part in parts}
    variant = f"{name}.together" if name else "together"
    union = np.max(list(masks.values()), axis=0)
    return replace(parts[0], mask=union, parts=masks, variant=variant, diagnostics=numbers)


@dataclass(frozen=True)
class Failure:
    """An image that could not be read, and why.

    Attributes:
        source: where it came from, as given.
        reason: a sentence.
    """

    source: str
    reason: str

    def record(self) -> dict[str, Any]:
        """What a line of JSON says about it."""
        return {"image": self.source, "error": self.reason}


class ResultWriter:
    """Writes results into a folder: pictures per image and one line of JSON each in ``results.jsonl``.

    Files get the image's name, and the class's where several are explained; a second image of the same name gets ``-2``
    and so on. A file is written under a temporary name and then renamed, so none is ever half-written; the name is this
    writer's own, so of two that write into one folder at once the later one's files stay. `results.jsonl` is put in
    place by `close`, or at the end of a ``with`` block that no error ends.

    Args:
        folder: made if it does not exist.
        formats: of ``"overlay"`` (PNG with legend), ``"mask"`` (8-bit PNG at the image's size), ``"npz"`` (mask as
            float32 at the model's size, probabilities, target).

    Raises:
        OutputError: the folder cannot be made or written.
    """

    def __init__(self, folder: str | os.PathLike[str], formats: tuple[str, ...] = ("overlay", "mask")) -> None:
        if unknown := set(formats) - set(FORMATS):
            raise UsageError(f"unknown result format {sorted(unknown)}; there are: {', '.join(FORMATS)}")
        self.folder = Path(folder)
        self.formats = formats
        self._used: dict[str, int] = {}
        self._unfinished = f"{secrets.token_hex(4)}.partial"
        self._lines = self.folder / f".results.jsonl.{self._unfinished}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # a name that is not UTF-8 becomes \udcXX, which JSON reads back as it was
            self._stream = self._lines.open("w", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise OutputError(
                f"cannot write into the folder '{self.folder}': {error.strerror or error}; choose another with --out"
            ) from None

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def write(self, result: ImageExplanation | Failure) -> dict[str, Any]:
        """Write one result; the record that went into ``results.jsonl``, with the names of the files."""
        record = result.record()
        try:
            if isinstance(result, ImageExplanation):
                stem = self._stem(result)
                record["files"] = {kind: self._write_one(kind, stem, result) for kind in self.formats}
            self._stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write into '{self.folder}': {error.strerror or error}") from None
        return record

    def close(self) -> None:
        """Put ``results.jsonl`` in place."""
        try:
            self._stream.close()
            os.replace(self._lines, self.folder / "results.jsonl")
        except OSError as error:
            raise OutputError(f"cannot write '{self.folder / 'results.jsonl'}': {error.strerror or error}") from None

    def discard(self) -> None:
        """Give up after an error: no ``results.jsonl``; the pictures of finished images stay."""
        self._stream.close()
        self._lines.unlink(missing_ok=True)

    def _write_one(self, kind: str, stem: str, result: ImageExplanation) -> str:
        name = f"{stem}.{kind}.png" if kind != "npz" else f"{stem}.npz"
        partial = self.folder / f".{name}.{self._unfinished}"
        try:
            with partial.open("wb") as stream:
                if kind == "overlay":
                    result.overlay().save(stream, "PNG", compress_level=1)
                elif kind == "mask":
                    Image.fromarray((result.mask_on_image() * 255 + 0.5).astype(np.uint8)).save(
                        stream, "PNG", compress_level=1
                    )
                else:
                    np.savez_compressed(
                        stream, mask=result.mask, probabilities=result.probabilities, target=np.int64(result.target)
                    )
            os.replace(partial, self.folder / name)
        finally:
            partial.unlink(missing_ok=True)
        return name

    def _stem(self, result: ImageExplanation) -> str:
        stem = Path(result.source.replace("\0", "_")).stem or "image"
        if result.variant:
            stem += "." + re.sub(r"[^\w-]+", "-", result.variant)
        while len(os.fsencode(stem)) > _LONGEST_STEM:
            stem = stem[:-1]
        name, count = stem, self._used.get(stem, 1)
        while name in self._used:
            count += 1
            name = f"{stem}-{count}"
        self._used[name] = 1
        self._used[stem] = count
        return name
