"""Bundles that were changed on purpose, hashes and all: refused in one sentence, and nothing outside is read."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from saccade.accel.bundle import open_bundle
from saccade.accel.engines import open_engine
from saccade.accel.manifest import GOLDEN_FILE, GRAPH_FILE, MANIFEST_FILE
from saccade.errors import BundleError


def change(folder: Path, edit: Callable[[dict[str, Any]], object] = lambda stored: None) -> None:
    """Edit the manifest, and make it say what the files are now."""
    path = folder / MANIFEST_FILE
    stored = json.loads(path.read_bytes())
    for name, entry in stored["files"].items():
        if (folder / name).is_file():
            entry["sha256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    edit(stored)
    path.write_text(json.dumps(stored))


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch", 0),
        ("batch", -3),
        ("class_names", []),
        ("class_names", ["ant"]),
        ("class_names", list("abcdef")),
        ("mask_size", [0, 32]),
        ("mask_size", [16, 16]),
        ("areas", [0.1, 2.0]),
        ("areas", [0.1, 0.2]),
        ("parts", 0),
        ("tuning", {"x": {"threads": -1}}),
        ("tuning", {"x": {"threads": 10**9}}),
    ],
)
def test_a_manifest_that_does_not_fit_its_own_files_is_refused(tiny_bundle: Path, key: str, value: object) -> None:
    change(tiny_bundle, lambda stored: stored.update({key: value}))
    refused(tiny_bundle, "damaged", "export the bundle again")


def test_an_image_size_that_the_graph_does_not_have_is_refused_before_an_image_is_enlarged(tiny_bundle: Path) -> None:
    change(tiny_bundle, lambda stored: stored["image"].update(size=[100_000, 100_000]))
    refused(tiny_bundle, "'images' is uint8", "100000, 100000")


@pytest.mark.parametrize("name", ["../evil.plan", "evil.plan", "/etc/passwd"])
def test_a_plan_that_is_not_among_the_files_is_refused(tiny_bundle: Path, name: str) -> None:
    (tiny_bundle.parent / "evil.plan").write_bytes(b"a plan runs code")
    plan = {
        "flavour": "tensorrt",
        "version": "10.8",
        "gpus": ["sm89"],
        "answer": "mask",
        "precision": "fp32",
        "batches": [1, 8, 32],
    }
    change(tiny_bundle, lambda stored: stored.update(plans={name: plan}))
    refused(tiny_bundle, f"does not list {name}")


@pytest.mark.parametrize("name", ["../other", "/etc/hostname", "..", "", "a\0b"])
def test_a_file_outside_is_refused_and_not_read(tiny_bundle: Path, name: str) -> None:
    (tiny_bundle.parent / "other").write_bytes(b"a secret")
    digest = hashlib.sha256(b"a secret").hexdigest()
    change(tiny_bundle, lambda stored: stored["files"].update({name: {"sha256": digest, "bytes": 8}}))
    refused(tiny_bundle)


@pytest.mark.parametrize("name", [GRAPH_FILE, GOLDEN_FILE])
@pytest.mark.parametrize("where", ["elsewhere", "itself"])
def test_a_link_out_of_the_bundle_or_to_itself_is_refused(tiny_bundle: Path, name: str, where: str) -> None:
    elsewhere = tiny_bundle.parent / "elsewhere"
    shutil.move(tiny_bundle / name, elsewhere)
    (tiny_bundle / name).symlink_to(elsewhere if where == "elsewhere" else tiny_bundle / name)
    refused(tiny_bundle, name, "outside the bundle" if where == "elsewhere" else "cannot be read")


def test_a_manifest_nested_deeper_than_python_reads_is_refused(tiny_bundle: Path) -> None:
    (tiny_bundle / MANIFEST_FILE).write_text("[" * 100_000)
    refused(tiny_bundle, "damaged")


def test_a_name_that_no_file_can_have_is_no_bundle(tmp_path: Path) -> None:
    refused(tmp_path / ("x" * 300), "cannot be read")


@pytest.mark.parametrize("kind", ["empty", "no zip", "cut off", "one array less", "an object", "a bit of an array"])
def test_golden_samples_that_are_damaged_are_refused(tiny_bundle: Path, kind: str) -> None:
    file = tiny_bundle / GOLDEN_FILE
    content, arrays = file.read_bytes(), dict(np.load(file))
    if kind == "one array less":
        arrays.pop("mask")
    if kind == "an object":
        arrays["target"] = np.array([{"an": "object"}] * len(arrays["images"]), dtype=object)
    np.savez(file, **arrays)
    if kind == "a bit of an array":  # after its header
        plain = bytearray(file.read_bytes())
        plain[plain.index(b"images.npy") + 4000] ^= 1
        file.write_bytes(plain)
    elif kind in ("empty", "no zip", "cut off"):
        file.write_bytes({"empty": b"", "no zip": b"PK" * 99, "cut off": content[:-40]}[kind])
    change(tiny_bundle)
    with pytest.raises(BundleError, match=r"golden samples .* are damaged: .*; copy or export the bundle again"):
        _ = open_bundle(tiny_bundle).golden


def test_golden_targets_that_are_no_classes_are_refused(tiny_bundle: Path) -> None:
    arrays = dict(np.load(tiny_bundle / GOLDEN_FILE))
    arrays["target"][0] = 99
    np.savez(tiny_bundle / GOLDEN_FILE, **arrays)
    change(tiny_bundle)
    with pytest.raises(BundleError, match="a target is no class"):
        _ = open_bundle(tiny_bundle).golden


def test_golden_samples_are_checked_without_being_unpacked(tiny_bundle: Path) -> None:
    """A few kilobytes that would be gigabytes: only their header is read, which does not fit."""
    arrays = dict(np.load(tiny_bundle / GOLDEN_FILE))
    with zipfile.ZipFile(tiny_bundle / GOLDEN_FILE, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                if name == "images":
                    header = {"descr": "|u1", "fortran_order": False, "shape": (10**6, 32, 32, 3)}
                    np.lib.format.write_array_header_1_0(stream, header)
                    stream.write(bytes(10**6))
                else:
                    np.lib.format.write_array(stream, array)
    change(tiny_bundle)
    refused(tiny_bundle, "are damaged", "'target' is int64")


@pytest.mark.parametrize("output", ["mask", "probabilities", "target_class"])
def test_a_graph_without_an_output_is_refused_when_it_runs(tiny_bundle: Path, output: str) -> None:
    model = onnx.load(tiny_bundle / GRAPH_FILE)
    kept = [value for value in model.graph.output if value.name != output]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    onnx.save(model, tiny_bundle / GRAPH_FILE)
    change(tiny_bundle)
    engine = open_engine(open_bundle(tiny_bundle), check=False)
    with pytest.raises(BundleError, match=f"does not give '{output}', which the manifest has as"):
        engine.run(engine.bundle.golden.images)


def test_a_graph_of_fewer_classes_is_refused_when_it_runs(tiny_bundle: Path) -> None:
    model = onnx.load(tiny_bundle / GRAPH_FILE)
    model.graph.node.append(onnx.helper.make_node("Slice", ["whole", "from", "to", "axis"], ["probabilities"]))
    for name, value in (("from", 0), ("to", 3), ("axis", 1)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([value]), name))
    for node in model.graph.node[:-1]:
        for place, name in enumerate(node.output):
            node.output[place] = "whole" if name == "probabilities" else name
        for place, name in enumerate(node.input):
            node.input[place] = "whole" if name == "probabilities" else name
    (said,) = (value for value in model.graph.output if value.name == "probabilities")
    said.type.tensor_type.shape.dim[1].dim_value = 3
    onnx.save(model, tiny_bundle / GRAPH_FILE)
    change(tiny_bundle)
    engine = open_engine(open_bundle(tiny_bundle), check=False)
    with pytest.raises(BundleError, match=r"gives \(8, 3\) as 'probabilities', which the manifest has as \(8, 5\)"):
        engine.run(engine.bundle.golden.images)
    with pytest.raises(BundleError, match=r"gives \(8, 3\) as 'probabilities'"):
        engine.probabilities(engine.bundle.golden.images)
