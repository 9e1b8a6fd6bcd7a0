"""A bundle that is served: what it tells about itself, and how it answers."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...contracts import Explanation, MaskQuery, Uint8
from ...errors import BundleError, ImageError
from ..bundle import file_sha256
from ..engine import Engine
from ..image import FORMATS, REQUEST_PIXELS, load_image, load_resized, resize_image
from ..manifest import MANIFEST_FILE
from ..results import ImageExplanation
from .config import Limits
from .errors import BadRequest, ClientGone, TooLarge
from .tensors import Tensor, datatype_of
from .work import ENCODED, MASKS, MODEL_IMAGE, Work, mask_size

__all__ = ["VERSION", "Answer", "ServedModel"]

VERSION = "1"
_PLATFORMS = {"onnx": "onnxruntime_onnx", "openvino": "openvino", "tensorrt": "tensorrt_plan"}
_SAMPLES = 8
_QUOTED = "'the file'"  # as errors call it
_PAIRS = 5  # of calls, that tell the cost in forwards

Outputs = dict[str, Tensor]


@dataclass(frozen=True)
class Answer:
    """What a request gets.

    Attributes:
        outputs: tensors by name, those that were asked for.
        explained: number of its images that got a mask.
    """

    outputs: Outputs
    explained: int


class ServedModel:
    """One model of the server. Several threads may call `answer` at the same time.

    Args:
        name: what clients call it.
        engine: opened.
        digest: of the manifest of its bundle, before it was opened.
        batch: images of different requests that go through the engine together.
        limits: of requests.

    Attributes:
        forwards: the cost of prediction and explanation in units of the prediction, measured as it was loaded.
        outputs: datatypes of what it can give, by name.
        samples: a few of the bundle's golden images, for people who have none at hand; uint8 (N, H, W, 3).
        digest: of the bundle's manifest, to notice another one.
        works: what requests mean to it, by what of them is not the image's pixels; without their images.
    """

    def __init__(self, name: str, engine: Engine, digest: str, *, batch: int, limits: Limits) -> None:
        self.name = name
        self.engine = engine
        self.digest = digest
        self.batch = batch
        self.limits = limits
        self.works: dict[bytes, Work] = {}
        self.manifest = engine.bundle.manifest
        self.lock: contextlib.AbstractContextManager[Any] = (
            contextlib.nullcontext() if engine.concurrent and batch == 1 else threading.Lock()
        )
        self.samples: Uint8 = engine.bundle.golden.images[:_SAMPLES].copy()
        first, self.forwards = self._warm_up()
        if file_sha256(engine.bundle.path / MANIFEST_FILE) != digest:
            raise BundleError(f"the bundle '{engine.bundle.path}' was exchanged while it was opened; load it again")
        self._shapes: dict[str, list[int]] = {
            "probabilities": [-1, len(self.manifest.class_names)],
            "target_class": [-1, -1] if self.manifest.several_targets else [-1],
            "mask": [-1, -1, -1, -1] if self.manifest.areas else [-1, *first.mask.shape[1:]],
            **{name: [-1, *values.shape[1:]] for name, values in first.diagnostics.items()},
            "mask_png": [-1, -1],
            "overlay_png": [-1, -1],
            "explained": [-1],
        }
        if not self.manifest.any_size:
            self._shapes[MODEL_IMAGE] = [-1, *self.manifest.image.size, 3]
        kinds = {"target_class": "INT64", "mask_png": "BYTES", "overlay_png": "BYTES", "explained": "BOOL"}
        kinds[MODEL_IMAGE] = "UINT8"
        self.outputs = {name: kinds.get(name, "FP32") for name in self._shapes}
        self.outputs |= {name: datatype_of(values) for name, values in first.diagnostics.items()}

    def _warm_up(self) -> tuple[Explanation, float]:
        """The first answers, which make what the engine makes when first needed, and the cost in forwards."""
        image = self.samples[:1]
        first, ratios = self.engine.run(image), []
        self.engine.probabilities(image)
        if self.manifest.parts > 1:  # its file may be another one later
            self.engine.run(image, query=MaskQuery(parts=self.manifest.parts))
        for _ in range(_PAIRS):
            began = time.perf_counter()
            self.engine.run(image)
            middle = time.perf_counter()
            self.engine.probabilities(image)
            ratios.append((middle - began) / (time.perf_counter() - middle))
        return first, float(np.median(ratios))

    @property
    def platform(self) -> str:
        """What runs it, in the words of the protocol."""
        return _PLATFORMS.get(self.engine.name, self.engine.name)

    def metadata(self) -> dict[str, Any]:
        """The protocol's description of its inputs and outputs."""
        height, width = (-1, -1) if self.manifest.any_size else self.manifest.image.size
        inputs = [("image", "UINT8", [-1, height, width, 3]), (ENCODED, "BYTES", [-1]), ("target", "INT64", [-1])]
        if self.manifest.several_targets:
            inputs[-1] = ("target", "INT64", [-1, -1])
        if self.manifest.areas:
            inputs += [("areas", "FP32", [-1]), ("rows", "FP32", [-1]), ("columns", "FP32", [-1])]
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": self.platform,
            "inputs": [{"name": name, "datatype": kind, "shape": shape} for name, kind, shape in inputs],
            "outputs": [
                {"name": name, "datatype": self.outputs[name], "shape": shape} for name, shape in self._shapes.items()
            ],
        }

    def card(self) -> dict[str, Any]:
        """What people, and the page, want to know of it."""
        manifest = self.manifest
        return {
            "name": self.name,
            "title": manifest.name,
            "method": manifest.method,
            "classes": list(manifest.class_names),
            "class_specific": manifest.class_specific,
            "several_targets": manifest.several_targets,
            "areas": list(manifest.areas),
            "parts": manifest.parts,
            "mask_size": list(manifest.mask_size),
            "image": {
                "size": list(manifest.image.size),
                "resize": manifest.image.resize,
                "crop": manifest.image.crop,
                "any_size": manifest.any_size,
            },
            "engine": self.engine.name,
            "precision": self.engine.precision,
            "forwards": round(self.forwards, 3),
            "samples": len(self.samples),
        }

    def sample_png(self, index: int) -> bytes:
        """A sample as a PNG file."""
        return _png(Image.fromarray(self.samples[index]))

    def decode(self, work: Work, wanted: Callable[[], bool] = lambda: True) -> list[Uint8]:
        """The images of a request as they came, uint8 (H, W, 3) each; resized to the model's size unless the request
        wants pictures of them.

        Args:
            work: the request.
            wanted: is asked before each image whether anyone still waits for them.

        Raises:
            BadRequest: one of them cannot be read.
            TooLarge: they have more pixels than the server allows.
            ClientGone: nobody waits.
        """
        if work.images is not None:
            return list(work.images)
        keep = work.wants_images or self.manifest.any_size
        found, pixels, most = [], 0, self.limits.pixels
        for index, file in enumerate(work.encoded):
            if not wanted():
                raise ClientGone("nobody waits for the request any more")
            image, size = self._decoded(file, index, keep=keep)
            pixels += size[0] * size[1]
            if pixels > REQUEST_PIXELS * most:
                raise TooLarge(
                    f"the images have more than {REQUEST_PIXELS * most / 1e6:.0f} megapixels together; send fewer at "
                    "once, or smaller ones"
                )
            found.append(image)
        return found

    def _decoded(self, file: bytes, index: int, *, keep: bool) -> tuple[Uint8, tuple[int, int]]:
        """One image, as it came or at the model's size, and its own size."""
        most = self.limits.pixels
        try:
            if keep:
                image = load_image(file, max_pixels=most, formats=FORMATS, name="the file")
                return image, image.shape[:2]
            return load_resized(file, self.manifest.image, max_pixels=most, formats=FORMATS, name="the file")
        except ImageError as error:
            raise BadRequest(f"image {index}: {str(error).replace(_QUOTED, _QUOTED[1:-1])}") from None

    def answer(self, works: Sequence[Work], decoded: Sequence[list[Uint8]]) -> list[Answer]:
        """Answer requests whose keys are equal and whose images, but those of any size, have one size.

        Args:
            works: the requests.
            decoded: the images of each, from `decode`.
        """
        groups = [self._sized(work, images) for work, images in zip(works, decoded, strict=True)]
        images = [image for group in groups for image in group]
        first = works[0]
        target = None if all(work.target is None for work in works) else np.concatenate([_target(w) for w in works])
        explained, found = self._run(images, target, first)
        answers, start, row = [], 0, 0
        for work, originals, sized in zip(works, decoded, groups, strict=True):
            stop = start + work.count
            rows = slice(row, row + int(np.count_nonzero(explained[start:stop])))
            outputs: Outputs = {"explained": explained[start:stop]}
            for name, values in found.items():
                outputs[name] = values[rows] if name not in ("probabilities", "target_class") else values[start:stop]
            self._add_pictures(work, originals, outputs)
            if any(output.name == MODEL_IMAGE for output in work.outputs):
                outputs[MODEL_IMAGE] = np.stack(sized)
            given = {output.name: outputs[output.name] for output in work.outputs}
            answers.append(Answer(given, rows.stop - rows.start))
            start, row = stop, rows.stop
        return answers

    def _sized(self, work: Work, images: list[Uint8]) -> list[Uint8]:
        """What the engine takes; what came as pixels, or was decoded for its mask alone, is that: not cropped again."""
        if self.manifest.any_size or work.images is not None or not work.wants_images:
            return images
        return [resize_image(image, self.manifest.image) for image in images]

    def _run(
        self, images: list[Uint8], target: NDArray[np.int64] | None, work: Work
    ) -> tuple[NDArray[np.bool_], Outputs]:
        """Which images were explained, and the engine's answers."""
        if len({image.shape for image in images}) > 1:  # of any size: one after the other
            each = [
                self._run([image], None if target is None else target[index : index + 1], work)
                for index, image in enumerate(images)
            ]
            names = dict.fromkeys(name for _, outputs in each for name in outputs)
            joined = {name: np.concatenate([out[name] for _, out in each if name in out]) for name in names}
            return np.concatenate([explained for explained, _ in each]), joined
        batch = np.stack(images) if len(images) > 1 else images[0][None]  # a copy less
        if not work.explain or work.explain_below is not None:
            probabilities = self.engine.probabilities(batch)
            explained = np.zeros(len(batch), dtype=np.bool_)
            if work.explain_below is not None:
                explained = probabilities.max(axis=1) < work.explain_below
            outputs: Outputs = {"probabilities": probabilities, "target_class": _chosen(probabilities, target)}
            if not work.explain:
                return explained, outputs
            if not explained.any():
                return explained, outputs | self._nothing(target, work)
            asked = None if target is None else target[explained]
            answer = self.engine.run(batch[explained], asked, work.query)
            return explained, outputs | {"mask": answer.mask, **answer.diagnostics}
        answer = self.engine.run(batch, target, work.query)
        outputs = {"probabilities": answer.probabilities, "target_class": answer.target, "mask": answer.mask}
        return np.ones(len(batch), dtype=np.bool_), outputs | dict(answer.diagnostics)

    def _nothing(self, target: NDArray[np.int64] | None, work: Work) -> Outputs:
        """Masks and diagnostics of no image."""
        query, several = work.query or MaskQuery(), target.shape[1:] if target is not None else ()
        height, width = mask_size(query, self.manifest)
        masks = query.parts or len(query.areas or self.manifest.areas) or 1
        shape = (0, *several, height, width) if several else (0, masks, height, width)
        empty: Outputs = {"mask": np.zeros(shape, dtype=np.float32)}
        usual = ("probabilities", "target_class", "explained", MODEL_IMAGE, *MASKS)
        return empty | {name: np.zeros((0, *several), np.float32) for name in self.outputs if name not in usual}

    def _add_pictures(self, work: Work, originals: list[Uint8], outputs: Outputs) -> None:
        """Masks, and images with them, as PNG files (N, M)."""
        wanted = {output.name for output in work.outputs}
        if "mask_png" in wanted:
            flat = outputs["mask"].reshape(-1, *outputs["mask"].shape[2:])
            files = [_png(Image.fromarray((mask * 255 + 0.5).astype(np.uint8))) for mask in flat]
            outputs["mask_png"] = _files(files, outputs["mask"].shape[:2])
        if "overlay_png" in wanted:
            explained = np.flatnonzero(outputs["explained"])
            files = [
                _png(self._picture(work, originals[index], outputs, int(index), masks[place], place))
                for index, masks in zip(explained, outputs["mask"], strict=True)
                for place in range(len(masks))
            ]
            outputs["overlay_png"] = _files(files, outputs["mask"].shape[:2])

    def _picture(self, work: Work, image: Uint8, outputs: Outputs, index: int, mask: Tensor, place: int) -> Image.Image:
        classes = np.atleast_1d(outputs["target_class"][index])
        spec = self.manifest.image
        if work.images is not None and not self.manifest.any_size:
            spec = replace(spec, resize="squash")  # the pixels are what the model sees, all of them
        result = ImageExplanation(
            source="",
            image=image,
            probabilities=outputs["probabilities"][index],
            target=int(classes[min(place, len(classes) - 1)]),
            class_names=self.manifest.class_names,
            mask=mask,
            spec=spec,
            class_specific=self.manifest.class_specific,
            milliseconds=None,
            box=(work.query or MaskQuery()).box,
        )
        return result.overlay(legend=False)


def _target(work: Work) -> NDArray[np.int64]:
    return np.full(work.count, -1, dtype=np.int64) if work.target is None else work.target


def _chosen(probabilities: Tensor, target: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """The classes asked for, where −1 is the predicted one."""
    predicted: NDArray[np.int64] = probabilities.argmax(axis=1).astype(np.int64)
    if target is None:
        return predicted
    chosen: NDArray[np.int64] = np.where(target < 0, predicted.reshape(-1, *[1] * (target.ndim - 1)), target)
    return chosen


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _files(files: list[bytes], shape: tuple[int, ...]) -> Tensor:
    array = np.empty(len(files), dtype=np.object_)
    array[:] = files
    return array.reshape(shape)
