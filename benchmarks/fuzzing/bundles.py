"""Manifests, and whole bundle folders: truncated, edited, missing, extra and linked files, and ONNX files that were
changed and whose hash was repaired.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from saccade.accel.bundle import Bundle, open_bundle
from saccade.accel.engines import open_engine
from saccade.accel.explainer import Explainer
from saccade.accel.onnx_prune import graph_values, output_names, prune_onnx
from saccade.accel.results import ResultWriter

from .drawn import anything, drawn, edited, edits, seeds
from .images import damaged
from .place import case_folder, refuse_escapes, tiny_bundle
from .target import Target

__all__ = ["BUNDLES", "GRAPHS", "MANIFESTS"]

FILES = ("explainer.onnx", "golden.npz", "manifest.json")

_manifest = st.fixed_dictionaries({"edits": edits})
_raw_manifest = st.fixed_dictionaries({"damage": seeds})
_plain = st.fixed_dictionaries({"whole": anything})
_folder_edit = st.fixed_dictionaries(
    {
        "file": st.sampled_from(FILES),
        "do": st.sampled_from(["damage", "damage", "damage", "truncate", "empty", "delete", "link", "folder", "extra"]),
        "seed": seeds,
    }
)
_folder = st.fixed_dictionaries(
    {"files": st.lists(_folder_edit, min_size=1, max_size=2), "repair": st.sampled_from([True, True, True, False])}
)


def _run_manifest(case: bytes) -> str:
    given = json.loads(case)
    with case_folder() as folder:
        bundle = tiny_bundle(folder)
        file = bundle / "manifest.json"
        if "edits" in given:
            file.write_text(json.dumps(edited(json.loads(file.read_bytes()), given["edits"])))
        elif "damage" in given:
            file.write_bytes(damaged(random.Random(given["damage"]), file.read_bytes()))
        else:
            file.write_text(json.dumps(given["whole"]))
        _use(open_bundle(bundle), folder)
        refuse_escapes(folder)
    return "answered"


def _run_folder(case: bytes) -> str:
    given = json.loads(case)
    with case_folder() as folder:
        bundle = tiny_bundle(folder)
        for change in given["files"]:
            _change(bundle, change)
        if given["repair"]:
            _repair(bundle)
        _use(open_bundle(bundle), folder)
        refuse_escapes(folder)
    return "answered"


def _change(bundle: Path, change: dict[str, Any]) -> None:
    path, draw = bundle / change["file"], random.Random(change["seed"])
    kind = change["do"]
    content = path.read_bytes() if path.is_file() else b""
    if kind == "extra":
        (bundle / draw.choice(("x", ".hidden", "explainer.fp16.onnx", "sub"))).write_bytes(content[:100])
    elif kind == "damage" and path.is_file():
        path.write_bytes(damaged(draw, content))
    elif kind == "truncate" and path.is_file():
        path.write_bytes(content[: draw.randrange(len(content) + 1)])
    elif kind == "empty" and path.is_file():
        path.write_bytes(b"")
    elif path.is_file() or path.is_symlink():
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "link":
            elsewhere = bundle.parent / "elsewhere"
            elsewhere.write_bytes(content)
            path.symlink_to(draw.choice((elsewhere, Path("/dev/zero"), Path("/nothing"), path, Path("golden.npz"))))


def _repair(bundle: Path) -> None:
    """Make the manifest say what the files are now, as one would who changed them on purpose."""
    try:
        file = bundle / "manifest.json"
        manifest = json.loads(file.read_bytes() if file.is_file() else b"")
        for name, entry in manifest["files"].items():
            path = bundle / name
            if path.is_file():
                content = path.read_bytes()
                entry |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        (bundle / "manifest.json").write_text(json.dumps(manifest))
    except (ValueError, OSError, KeyError, AttributeError, TypeError):
        pass  # the manifest itself is what was damaged


def _use(bundle: Bundle, folder: Path) -> None:
    """All that one does with a bundle."""
    golden = bundle.golden
    images = np.asarray(golden.images)[:2]
    engine = open_engine(bundle, check=False)
    try:
        engine.probabilities(images)
        Explainer(open_engine(bundle)).explain(list(images), target=0 if bundle.manifest.class_specific else None)
    finally:
        image = np.zeros((20, 30, 3), dtype=np.uint8)
        results = Explainer(engine).explain(image)
        writer = ResultWriter(folder / "out", ("overlay", "mask", "npz"))
        for result in results:
            writer.write(result)
        writer.close()


def _graph_cases(seed: int) -> Iterator[bytes]:
    draw = random.Random(seed)
    with case_folder() as folder:
        graph = (tiny_bundle(folder) / "explainer.onnx").read_bytes()
    small = _without_weights(graph)
    while True:
        yield damaged(draw, small if draw.random() < 0.9 else graph)


@functools.cache
def _without_weights(graph: bytes) -> bytes:
    """The structure alone, so that damage hits it and the case is small."""
    import onnx

    model = onnx.load_from_string(graph)
    for tensor in model.graph.initializer:
        del tensor.dims[1:]
        tensor.raw_data = tensor.raw_data[:8]
    return bytes(model.SerializeToString())


def _run_graph(case: bytes) -> str:
    output_names(case)
    graph_values(case)
    prune_onnx(case, ("probabilities",))
    prune_onnx(case, ("probabilities", "target_class", "mask"))
    return "answered"


_any_manifest = st.one_of(_manifest, _manifest, _manifest, _raw_manifest, _plain)
MANIFESTS = Target("manifests", lambda seed: drawn(_any_manifest, seed), _run_manifest, ".json")
BUNDLES = Target("bundles", lambda seed: drawn(_folder, seed), _run_folder, ".json")
GRAPHS = Target("graphs", _graph_cases, _run_graph, ".onnx")
