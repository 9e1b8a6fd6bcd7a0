"""What a request means to a model: checked, and in the engine's terms."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...contracts import Floats, MaskQuery, Uint8
from ...errors import UsageError
from ..manifest import Manifest
from .config import Limits, ServeConfig
from .errors import BadRequest, TooLarge
from .request import InferenceRequest, OutputRequest
from .tensors import datatype_of

__all__ = ["ENCODED", "MASKS", "MODEL_IMAGE", "PICTURES", "Placed", "Work", "make_work", "mask_size"]

ENCODED = "encoded_image"
MODEL_IMAGE = "model_image"  # the image as the model sees it, so that asking about it again need not decode it again
PICTURES = ("mask_png", "overlay_png")
MASKS = ("mask", *PICTURES)  # outputs for which a mask has to be computed; so do diagnostics
_MOST_AREAS, _MOST_PLACES = 1024, 100_000
_PARAMETERS = frozenset({"explain", "explain_below", "timeout", "size", "box", "parts", "binary_data_output"})
# of Triton's and KServe's clients: about sequences, priorities and traces, which there are none of here
_IGNORED = frozenset({"priority", "sequence_id", "sequence_start", "sequence_end", "content_type", "headers"})


@dataclass(frozen=True, kw_only=True)
class Placed(MaskQuery):
    """A query whose masks are rendered at given places, as the graph takes them.

    Attributes:
        rows: y of each row, from −1 to 1 over the image.
        columns: x of each column.
    """

    rows: tuple[float, ...] = ()
    columns: tuple[float, ...] = ()

    def places(self, default: tuple[int, int]) -> tuple[Floats, Floats]:
        """The places, as they were given, or the default ones in a direction for which none were."""
        rows, columns = super().places(default)
        return (
            np.array(self.rows, dtype=np.float32) if self.rows else rows,
            np.array(self.columns, dtype=np.float32) if self.columns else columns,
        )


@dataclass(frozen=True, kw_only=True)
class Work:
    """A request that has been checked.

    Attributes:
        id: of the request.
        images: uint8 (N, H, W, 3); None where they are still encoded.
        encoded: JPEG, PNG … files; empty where `images` are given.
        target: int64 (N,) or (N, T); None for the predicted class.
        query: which masks, of a bundle that holds them as functions.
        outputs: what is given, by name.
        explain: masks are computed.
        explain_below: only of images whose predicted class is less probable; None for all.
        timeout: seconds that the request may wait.
        binary: see `InferenceRequest`.
    """

    id: str
    images: Uint8 | None
    encoded: tuple[bytes, ...]
    target: NDArray[np.int64] | None
    query: MaskQuery | None
    outputs: tuple[OutputRequest, ...]
    explain: bool
    explain_below: float | None
    timeout: float
    binary: bool

    @property
    def count(self) -> int:
        """Images in the request."""
        return len(self.encoded) if self.images is None else len(self.images)

    @property
    def wants_images(self) -> bool:
        """Whether a picture of the image as it came is among the outputs."""
        return any(output.name == "overlay_png" for output in self.outputs)

    def within(self, seconds: float) -> Work:
        """The same, with less time."""
        return replace(self, timeout=min(self.timeout, seconds))

    def key(self) -> Hashable:
        """Requests with the same key can go through the engine together, if their images have one size."""
        classes = self.target.shape[1:] if self.target is not None else ()
        return self.explain, self.explain_below, self.query, classes


def mask_size(query: MaskQuery | None, manifest: Manifest) -> tuple[int, int]:
    """(height, width) of the masks that a query asks for."""
    height, width = (query.size if query else None) or manifest.mask_size
    if isinstance(query, Placed):
        return len(query.rows) or height, len(query.columns) or width
    return height, width


def make_work(request: InferenceRequest, manifest: Manifest, names: Mapping[str, str], config: ServeConfig) -> Work:
    """Check a request against a model.

    Args:
        request: what came.
        manifest: of the model.
        names: of the outputs that the model can give, with their datatypes.
        config: of the server.

    Raises:
        BadRequest: it does not fit the model.
        TooLarge: it asks for more than the server allows.
    """
    limits = config.limits
    _check_inputs(request, manifest)
    images, encoded = _images(request, manifest, limits)
    count = len(encoded) if images is None else len(images)
    parameters = _checked_parameters(request)
    target = _target(request, manifest, count)
    query = _query(request, parameters, manifest)
    explain = parameters.get("explain", config.explain)
    below = parameters.get("explain_below", config.explain_below)
    asked = _outputs(request, manifest, names, explain=explain, below=below)
    wanted = any(output.name in MASKS or output.name not in _ALWAYS for output in asked)
    if wanted and parameters.get("explain") is False:
        raise BadRequest("the request asks for a mask and says 'explain': false; leave one of them out")
    values = 0
    if wanted:
        height, width = mask_size(query, manifest)
        each = (query.parts or len(query.areas) if query else 0) or len(manifest.areas) or 1
        classes = 1 if target is None else math.prod(target.shape[1:])
        values = count * each * classes * height * width
    if values > limits.mask_values:
        raise TooLarge(
            f"the masks asked for have {values / 1e6:.0f} million values and the limit is "
            f"{limits.mask_values / 1e6:.0f}; ask for fewer images, classes or areas, or for a smaller size"
        )
    return Work(
        id=request.id,
        images=images,
        encoded=encoded,
        target=target,
        query=query,
        outputs=asked,
        explain=wanted,
        explain_below=below if wanted else None,
        timeout=min(config.timeout, parameters.get("timeout", math.inf)),
        binary=request.binary,
    )


_ALWAYS = ("probabilities", "target_class", "explained", MODEL_IMAGE)  # need no mask


def _check_inputs(request: InferenceRequest, manifest: Manifest) -> None:
    known = {"image": "UINT8", ENCODED: "BYTES", "target": "INT64"}
    if manifest.areas:
        known |= {"areas": "FP32", "rows": "FP32", "columns": "FP32"}
    for name, tensor in request.inputs.items():
        if name not in known:
            raise BadRequest(f"the model has no input '{name}'; it takes {', '.join(known)}")
        if (found := datatype_of(tensor)) != known[name]:
            raise BadRequest(f"input '{name}' is {known[name]}, not {found}")
    given = [name for name in ("image", ENCODED) if name in request.inputs]
    if not given:
        raise BadRequest(f"the request has no image; send 'image', or '{ENCODED}' with files")
    if len(given) > 1:
        raise BadRequest(f"the request has both 'image' and '{ENCODED}'; send one of them")


def _images(request: InferenceRequest, manifest: Manifest, limits: Limits) -> tuple[Uint8 | None, tuple[bytes, ...]]:
    if ENCODED in request.inputs:
        files = request.inputs[ENCODED]
        if files.ndim == 2 and files.shape[1] == 1:
            files = files[:, 0]
        if files.ndim != 1 or not len(files):
            raise BadRequest(f"'{ENCODED}' has the shape [N] with N ≥ 1, not {list(files.shape)}")
        count, images = len(files), None
    else:
        images = request.inputs["image"]
        sides = (None, None) if manifest.any_size else manifest.image.size
        fits = images.ndim == 4 and images.shape[3] == 3 and min(images.shape) > 0
        if not fits or any(side not in (None, found) for side, found in zip(sides, images.shape[1:3], strict=True)):
            height, width = (side or "height" if side else name for side, name in zip(sides, "HW", strict=True))
            raise BadRequest(
                f"'image' has the shape [N, {height}, {width}, 3] with N ≥ 1, not {list(images.shape)}; "
                f"images of any size are taken encoded, as '{ENCODED}'"
            )
        count, files = len(images), np.empty(0, dtype=np.object_)
        if images.shape[1] * images.shape[2] > limits.pixels:
            raise TooLarge(f"the images have more than {limits.pixels / 1e6:.0f} megapixels")
    if count > limits.images:
        raise TooLarge(f"the request has {count} images and the limit is {limits.images}; send several requests")
    return images, tuple(files.tolist())


def _target(request: InferenceRequest, manifest: Manifest, count: int) -> NDArray[np.int64] | None:
    target = request.inputs.get("target")
    if target is None:
        return np.full((count, 1), -1, dtype=np.int64) if manifest.several_targets else None
    if manifest.several_targets and target.shape == (count,):
        target = target[:, None]
    if not manifest.several_targets and target.ndim == 2 and target.shape[1] == 1:
        target = target[:, 0]
    if target.ndim not in (1, 2) or len(target) != count or 0 in target.shape:
        raise BadRequest(
            f"'target' has the shape [N], one class for each of the {count} images, or [N, T] for several, "
            f"not {list(target.shape)}"
        )
    classes = len(manifest.class_names)
    if target.min() < -1 or target.max() >= classes:
        raise BadRequest(f"target classes go from 0 to {classes - 1}, or -1 for the predicted class")
    if not manifest.class_specific and (target.ndim == 2 or target.max() >= 0):
        raise BadRequest(
            "this explainer is about the predicted class only; leave 'target' out"
            if target.ndim == 2
            else "this explainer is about the predicted class only; leave 'target' out, or send -1"
        )
    return target


def _query(request: InferenceRequest, parameters: Mapping[str, Any], manifest: Manifest) -> MaskQuery | None:
    tensors = {name: request.inputs[name] for name in ("areas", "rows", "columns") if name in request.inputs}
    given = {name: parameters[name] for name in ("size", "box", "parts") if name in parameters}
    if not tensors and not given:
        return None
    if not manifest.areas:
        raise BadRequest(f"this model's masks have one area and one size: it takes no {', '.join([*tensors, *given])}")
    for name, tensor in tensors.items():
        if len(tensor) > _MOST_AREAS if name == "areas" else len(tensor) > _MOST_PLACES:
            raise TooLarge(f"'{name}' has {len(tensor)} numbers, more than any mask needs")
        if tensor.ndim != 1 or not len(tensor) or not np.isfinite(tensor).all():
            raise BadRequest(f"'{name}' has the shape [A] with A ≥ 1 finite numbers, not {list(tensor.shape)}")
    if given and ("rows" in tensors or "columns" in tensors) and set(given) & {"size", "box"}:
        raise BadRequest("'rows' and 'columns' say where masks are rendered, and so do 'size' and 'box'; send one pair")
    parts = given.get("parts", 0)
    if parts > max(1, manifest.parts):
        raise BadRequest(f"this model gives at most {max(1, manifest.parts)} masks without a common pixel, not {parts}")
    flat = {name: tuple(tensor.tolist()) for name, tensor in tensors.items()}
    try:
        return Placed(
            areas=flat.get("areas", ()) or manifest.areas,
            rows=flat.get("rows", ()),
            columns=flat.get("columns", ()),
            size=given.get("size"),
            box=given.get("box", MaskQuery().box),
            parts=parts,
        )
    except UsageError as error:
        raise BadRequest(str(error)) from None


def _outputs(
    request: InferenceRequest, manifest: Manifest, names: Mapping[str, str], *, explain: bool, below: float | None
) -> tuple[OutputRequest, ...]:
    """What is asked for, or the usual outputs."""
    if not request.outputs:
        usual = [name for name in names if name not in (*PICTURES, "explained", MODEL_IMAGE)]
        if not explain:
            usual = [name for name in usual if name in _ALWAYS]
        elif below is not None:
            usual.append("explained")
        return tuple(OutputRequest(name=name, binary=request.binary) for name in usual)
    for output in request.outputs:
        if output.name not in names:
            raise BadRequest(f"the model has no output '{output.name}'; it gives {', '.join(names)}")
        if output.classification and output.name != "probabilities":
            raise BadRequest("'classification' is about the output 'probabilities'")
        if output.classification > len(manifest.class_names):
            raise BadRequest(
                f"'classification' asks for {output.classification} of {len(manifest.class_names)} classes"
            )
    if len({output.name for output in request.outputs}) < len(request.outputs):
        raise BadRequest("an output is asked for twice")
    return request.outputs


def _checked_parameters(request: InferenceRequest) -> dict[str, Any]:
    """Settings of the request, each of its type."""
    known: dict[str, Any] = {}
    for name, value in request.parameters.items():
        if name in _IGNORED or name == "binary_data_output" or name.startswith("triton_"):
            continue
        if name not in _PARAMETERS:
            raise BadRequest(f"there is no parameter '{name}'; there are: {', '.join(sorted(_PARAMETERS))}")
        known[name] = _READERS[name](value, name)
    return known


def _flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise BadRequest(f"'{name}' is true or false, not {value!r}")
    return value


def _number(value: Any, name: str, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        raise BadRequest(f"'{name}' is a number from 0 to {most:g}, not {value!r}")
    return float(value)


def _size(value: Any, name: str) -> tuple[int, int]:
    sides = str(value).split("x")
    if isinstance(value, bool) or len(sides) not in (1, 2) or not all(side.isdecimal() for side in sides):
        raise BadRequest(f"'{name}' is a size in pixels, not {value!r}; write 448, or \"480x640\" for height and width")
    if not all(0 < len(side) <= 5 and int(side) > 0 for side in sides):
        raise BadRequest(f"'{name}' is at least 1 and at most 99999 pixels, not {value!r}")
    return int(sides[0]), int(sides[-1])


def _box(value: Any, name: str) -> tuple[float, ...]:
    try:
        left, top, right, bottom = (float(side) for side in str(value).split(","))
    except ValueError:
        raise BadRequest(f"'{name}' is \"left,top,right,bottom\" in fractions of the image, not {value!r}") from None
    return left, top, right, bottom


def _parts(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadRequest(f"'{name}' is a number of masks, not {value!r}")
    return value


_READERS = {
    "explain": _flag,
    "explain_below": lambda value, name: _number(value, name, 1.0),
    "timeout": lambda value, name: _number(value, name, 1e12) * 1e-6 or math.inf,  # microseconds, 0 for none
    "size": _size,
    "box": _box,
    "parts": _parts,
}
