"""The model.py of a decoder, which runs inside Triton: encoded images become what the explainer takes.

Beside it lie ``decoder.json`` and, as the package ``saccade_image``, those modules of Saccade that read images, as they
are: what they need is NumPy and Pillow. Errors are the request's, and the server goes on.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


class TritonPythonModel:
    """What Triton's Python backend calls."""

    def initialize(self, arguments: dict[str, str]) -> None:
        """Read what the bundle wants."""
        from PIL import Image

        folder = Path(__file__).resolve().parent
        sys.path.insert(0, str(folder))
        self._image = importlib.import_module("saccade_image.accel.image")
        self._errors = importlib.import_module("saccade_image.errors")
        wanted = json.loads((folder / "decoder.json").read_text(encoding="utf-8"))
        spec = {key: tuple(value) if isinstance(value, list) else value for key, value in wanted["image"].items()}
        self._spec = importlib.import_module("saccade_image.contracts").ImageSpec(**spec)
        self._any_size: bool = wanted["any_size"]
        self._max_pixels: int = wanted["max_pixels"]
        self._classes: int = wanted["classes"]
        self._left_out: dict[str, dict[str, Any]] = wanted["left_out"]
        self._backend = importlib.import_module("triton_python_backend_utils")
        Image.MAX_IMAGE_PIXELS = None  # the limit is ours, and is checked before an image is decoded

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request by itself."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        backend = self._backend
        try:
            encoded = backend.get_input_tensor_by_name(request, "encoded").as_numpy().reshape(-1)
            images = self._read(list(encoded))
            given = {name: backend.get_input_tensor_by_name(request, name) for name in self._left_out}
            values = {
                name: self._fill(default, len(images)) if given[name] is None else given[name].as_numpy()
                for name, default in self._left_out.items()
            }
            self._check(values)
        except (self._errors.SaccadeError, ValueError) as error:
            return backend.InferenceResponse(error=backend.TritonError(str(error), backend.TritonError.INVALID_ARG))
        tensors = [backend.Tensor(name, value) for name, value in {"image": images, **values}.items()]
        return backend.InferenceResponse(tensors)

    def _check(self, values: dict[str, Any]) -> None:
        """Refuse what graphs do not: they take a class that is not there for another, and any area."""
        target, areas = values["target"], values.get("areas")
        if target.size and (target.min() < -1 or target.max() >= self._classes):
            raise ValueError(
                f"target classes go from 0 to {self._classes - 1}, or -1 for the predicted class; "
                f"not {target.reshape(-1).tolist()}"
            )
        if areas is not None and not (areas.size and ((areas > 0) & (areas < 1)).all()):
            raise ValueError(f"areas are fractions of the image inside (0, 1), not {areas.reshape(-1).tolist()}")

    def _read(self, encoded: list[bytes]) -> Any:
        images: list[Any] = []
        pixels, most = 0, self._image.REQUEST_PIXELS * self._max_pixels
        for place, content in enumerate(encoded):
            try:
                image, (height, width) = self._read_one(bytes(content))
            except self._errors.ImageError as error:
                where = "" if len(encoded) == 1 else f"image {place + 1} of {len(encoded)}: "
                raise ValueError(f"{where}{error}") from None
            pixels += max(height * width, image.shape[0] * image.shape[1])  # small files may become large images
            if images and pixels > most:
                raise ValueError(
                    f"the images have more than {most / 1e6:g} megapixels together; send fewer at once, or smaller ones"
                )
            images.append(image)
        if len({image.shape for image in images}) > 1:
            sizes = ", ".join(f"{image.shape[1]}×{image.shape[0]}" for image in images)
            raise ValueError(f"images of one request have one size, not {sizes}; send them one by one")
        return np.ascontiguousarray(np.stack(images))

    def _read_one(self, content: bytes) -> tuple[Any, tuple[int, int]]:
        """An image as the explainer takes it, and its own height and width."""
        options = {"max_pixels": self._max_pixels, "formats": self._image.FORMATS}
        if self._any_size:
            image = self._image.load_image(content, **options)
            return image, image.shape[:2]
        return self._image.load_resized(content, self._spec, **options)  # type: ignore[no-any-return]

    def _fill(self, default: dict[str, Any], count: int) -> Any:
        """What is taken where a request leaves an input out."""
        value = np.array(default["value"], dtype=default["dtype"])
        return np.repeat(value[None], count, axis=0) if default["each_image"] else value
