"""A bundle on disk: opened only if it is whole, unchanged, and not newer than this version can read."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ..errors import BundleError, OutputError, UsageError, suggest
from .golden_file import Golden, check_golden, read_golden
from .manifest import GOLDEN_FILE, GRAPH_FILE, MANIFEST_FILE, SCHEMA_VERSION, Manifest
from .precision import graph_file

__all__ = [
    "Bundle",
    "Golden",
    "class_index",
    "file_sha256",
    "open_bundle",
    "sync_folder",
    "write_manifest",
    "write_whole",
]


@dataclass(frozen=True)
class Bundle:
    """A bundle: its folder and its manifest. `open_bundle` has checked the files' hashes; of an explainer that runs in
    PyTorch it is the manifest alone, and there are no files.

    Attributes:
        path: the folder.
        manifest: what is in it, how it was made, and the gate's report.
    """

    path: Path
    manifest: Manifest

    @property
    def graph(self) -> Path:
        """The ONNX file that predicts and explains."""
        return self.path / GRAPH_FILE

    @property
    def golden(self) -> Golden:
        """The golden samples, read from disk.

        Raises:
            BundleError: they are damaged, or not of the manifest's sizes and classes.
        """
        return read_golden(self.path / GOLDEN_FILE, self.manifest)

    def target_index(self, target: str | int | None) -> int:
        """The index of a class given by name or index; -1 for None, which means the predicted class.

        Raises:
            UsageError: there is no such class.
        """
        return -1 if target is None else class_index(target, self.manifest.class_names)


def class_index(target: str | int, names: Sequence[str]) -> int:
    """The index of a class given by name or index.

    Raises:
        UsageError: there is no such class.
    """
    if isinstance(target, str) and target in names:
        return names.index(target)
    try:
        index = int(target)
    except ValueError:
        near = suggest(str(target), names)
        raise UsageError(f"there is no class '{target}'; {near}; or give an index from 0 to {len(names) - 1}") from None
    if not 0 <= index < len(names):
        raise UsageError(f"there are {len(names)} classes, index 0 to {len(names) - 1}; {index} is not one of them")
    return index


def open_bundle(path: str | Path) -> Bundle:
    """Open a bundle and check every file's hash.

    Raises:
        BundleError: not a bundle, incomplete, damaged, or of a newer schema.
    """
    folder = Path(path)
    file = folder / MANIFEST_FILE
    try:
        if not file.is_file():
            raise BundleError(
                f"'{folder}' is not a bundle: it has no {MANIFEST_FILE}; "
                f"make one with: saccade export --checkpoint DIR --out {folder}"
            )
        content = file.read_bytes()
    except OSError as error:
        raise BundleError(f"the bundle '{folder}' cannot be read: {error.strerror or error}") from None
    try:
        stored = json.loads(content)
        if not isinstance(stored, dict) or "schema_version" not in stored:
            raise ValueError("it has no schema version")
        version = int(stored["schema_version"])
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise BundleError(f"the manifest '{file}' is damaged: {_first_line(error)}; export the bundle again") from None
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"the bundle '{folder}' has schema version {version} and this Saccade reads up to {SCHEMA_VERSION}; "
            "upgrade with: pip install -U saccade"
        )
    try:
        manifest = Manifest.model_validate(stored)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleError(
            f"the manifest '{file}' is damaged at '{where}': {first['msg']}; export the bundle again"
        ) from None
    except UsageError as error:
        raise BundleError(f"the manifest '{file}' is damaged at 'image': {error}; export the bundle again") from None
    for name, entry in manifest.files.items():
        _check(folder, name, entry.sha256)
    for name in (GRAPH_FILE, GOLDEN_FILE, *manifest.plans, *map(graph_file, manifest.precisions)):
        if name not in manifest.files:
            raise BundleError(f"the manifest '{file}' does not list {name}; export the bundle again")
    check_golden(folder / GOLDEN_FILE, manifest)
    return Bundle(folder, manifest)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Put a manifest into a bundle's folder, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        write_whole(folder / MANIFEST_FILE, (manifest.model_dump_json(indent=2) + "\n").encode())
    except OSError as error:
        raise OutputError(f"cannot write into the bundle '{folder}': {error.strerror or error}") from None


def write_whole(path: Path, content: bytes, *, sync: bool = False) -> None:
    """Write a file that is there whole or not at all, whatever happens; of a loss of power that holds with `sync`.

    Raises:
        OSError: it cannot be written.
    """
    handle, part = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            if sync:
                stream.flush()
                os.fsync(stream.fileno())
        os.chmod(part, 0o644)
        os.replace(part, path)
        if sync:
            sync_folder(path.parent)
    finally:
        Path(part).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """What was renamed into a folder, or removed from it, stays so when power fails.

    Raises:
        OSError: the disk says so.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _check(folder: Path, name: str, expected: str) -> None:
    path = folder / name
    try:
        inside = path.resolve().parent == folder.resolve()
        there = path.is_file()
        found = file_sha256(path) if inside and there else ""
    except (OSError, RuntimeError, ValueError) as error:  # a link to itself, a name that cannot be one
        raise BundleError(f"the bundle's file '{path}' cannot be read: {_first_line(error)}") from None
    if not inside:
        raise BundleError(
            f"the manifest names a file outside the bundle: '{path}'; copy the file, and not a link, into the bundle"
        )
    if not there:
        raise BundleError(f"the bundle is incomplete: '{path.name}' is missing; copy or export the bundle again")
    if found != expected:
        raise BundleError(
            f"the bundle is damaged: '{path.name}' has SHA-256 {found[:12]}… and the manifest says {expected[:12]}…; "
            "copy or export the bundle again"
        )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
