"""The table of explanations: its columns, and the rows of one batch."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from ...contracts import Floats, Uint8
from ..bundle import Bundle, file_sha256
from ..manifest import MANIFEST_FILE
from ..precision import graph_file
from ..results import ImageExplanation

__all__ = ["MASK_ENCODINGS", "MaskEncoding", "Row", "encode_mask", "png_bytes", "record_batch", "table_schema"]

MaskEncoding = Literal["png", "uint8", "float16", "none"]
MASK_ENCODINGS: tuple[MaskEncoding, ...] = get_args(MaskEncoding)
_BYTES = {"uint8": 1, "float16": 2}


@dataclass(frozen=True)
class Row:
    """One line of the table: an explanation of an image, or why there is none.

    Attributes:
        key: see `Item`.
        id: see `Item`.
        sha256: of the encoded bytes, hexadecimal; None where they could not be read.
        size: (height, width) of the image in pixels; None where it could not be decoded.
        result: the explanation, or None.
        mask: its mask, encoded; None where none was asked for.
        error: why there is no explanation.
    """

    key: str
    id: str | None
    sha256: str | None
    size: tuple[int, int] | None = None
    result: ImageExplanation | None = None
    mask: bytes | None = None
    error: str | None = None


def table_schema(
    bundle: Bundle, encoding: MaskEncoding, mask_size: tuple[int, int], *, precision: str = "fp32"
) -> pa.Schema:
    """The columns, and in the metadata what they were made with.

    Args:
        bundle: the bundle that explains.
        encoding: of the masks.
        mask_size: (height, width) of the masks.
        precision: of the bundle's graph.
    """
    from ... import __version__

    (height, width), manifest = mask_size, bundle.manifest
    mask = pa.binary(height * width * _BYTES[encoding]) if encoding in _BYTES else pa.binary()
    about = {
        "saccade.version": __version__,
        "saccade.bundle": manifest.name,
        "saccade.method": manifest.method,
        "saccade.precision": precision,
        "saccade.manifest_sha256": file_sha256(bundle.path / MANIFEST_FILE),
        "saccade.graph_sha256": manifest.files[graph_file(precision)].sha256,
        "saccade.mask_encoding": encoding,
        "saccade.image_spec": json.dumps(vars(manifest.image)),
    }
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("id", pa.string()),
            pa.field("sha256", pa.string()),
            pa.field("image_height", pa.int32()),
            pa.field("image_width", pa.int32()),
            pa.field("target", pa.int32()),
            pa.field("target_name", pa.string()),
            pa.field("probability", pa.float32()),
            pa.field("predicted", pa.int32()),
            pa.field("predicted_name", pa.string()),
            pa.field("top_classes", pa.list_(pa.int32())),
            pa.field("top_names", pa.list_(pa.string())),
            pa.field("top_probabilities", pa.list_(pa.float32())),
            pa.field("explains", pa.int32()),
            pa.field("mask", mask),
            pa.field("mask_height", pa.int32()),
            pa.field("mask_width", pa.int32()),
            pa.field("mask_area", pa.float32()),
            pa.field("asked_area", pa.float32()),
            pa.field("diagnostics", pa.map_(pa.string(), pa.float32())),
            pa.field("error", pa.string()),
        ],
        metadata=about,
    )


def record_batch(rows: Sequence[Row], schema: pa.Schema, top: int) -> pa.RecordBatch:
    """Rows as columns, with so many of the most probable classes each."""
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    best: dict[int, list[int]] = {}  # by the array that several rows of an image share
    for row in rows:
        values = _values(row, top, best)
        for name, column in columns.items():
            column.append(values.get(name))
    arrays = [pa.array(columns[field.name], field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _values(row: Row, top: int, best: dict[int, list[int]]) -> Mapping[str, Any]:
    height, width = row.size or (None, None)
    about = {
        "key": row.key,
        "id": row.id,
        "sha256": row.sha256,
        "image_height": height,
        "image_width": width,
        "error": row.error,
    }
    if (result := row.result) is None:
        return about
    names, probabilities = result.class_names, result.probabilities
    if (order := best.get(id(probabilities))) is None:
        order = best[id(probabilities)] = np.argsort(-probabilities, kind="stable")[:top].tolist()
    predicted = result.predicted
    explains = result.target if result.class_specific else predicted
    values = about | {
        "target": result.target,
        "target_name": names[result.target],
        "probability": result.probability,
        "predicted": predicted,
        "predicted_name": names[predicted],
        "top_classes": order,
        "top_names": [names[index] for index in order],
        "top_probabilities": probabilities[order],
    }
    if row.mask is None:
        return values
    diagnostics = dict(result.diagnostics)
    return values | {
        "explains": explains,
        "mask": row.mask,
        "mask_height": result.mask.shape[0],
        "mask_width": result.mask.shape[1],
        "mask_area": float(result.mask.mean()),
        "asked_area": diagnostics.pop("asked_area", None),
        "diagnostics": list(diagnostics.items()),
    }


def encode_mask(mask: Floats, encoding: MaskEncoding) -> bytes | None:
    """A mask (H, W) in [0, 1] as it is stored; 8-bit values are rounded to the nearest."""
    if encoding == "none":
        return None
    if encoding == "float16":
        return mask.astype("<f2").tobytes()
    grey = (mask * 255 + 0.5).astype(np.uint8)
    return grey.tobytes() if encoding == "uint8" else png_bytes(grey)


def png_bytes(grey: Uint8) -> bytes:
    """An 8-bit greyscale PNG of an image (H, W).

    Every row is stored as its difference from the one above, compressed as runs: for masks, which are smooth, this
    takes half the time of a general encoder at its fastest, and no more bytes.
    """
    height, width = grey.shape
    lines = np.empty((height, width + 1), np.uint8)
    lines[:, 0] = 2  # the filter "up"
    lines[0, 1:] = grey[0]
    np.subtract(grey[1:], grey[:-1], out=lines[1:, 1:])
    packer = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    data = packer.compress(lines.data) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
