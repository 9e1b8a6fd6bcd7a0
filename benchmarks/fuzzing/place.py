"""A folder for every case, and whether something was written outside of it."""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["case_folder", "refuse_escapes", "tiny_bundle", "use_bundle"]

_INSIDE = "inside"
_kept: list[Path] = []


def use_bundle(bundle: Path) -> None:
    """Take this bundle for all cases of this process, whose folders are made beside it."""
    _kept[:] = [bundle]
    _content.cache_clear()


@contextlib.contextmanager
def case_folder() -> Iterator[Path]:
    """An empty folder in an empty folder, both gone afterwards."""
    outer = Path(tempfile.mkdtemp(prefix="case-", dir=_kept[0].parent))
    try:
        (outer / _INSIDE).mkdir()
        yield outer / _INSIDE
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def refuse_escapes(folder: Path) -> None:
    """Raise if something lies beside a case's folder, where a path with `..` leads."""
    found = sorted(path.name for path in folder.parent.iterdir())
    if found != [_INSIDE]:
        raise AssertionError(f"written outside of the case's folder: {found}")


def tiny_bundle(folder: Path) -> Path:
    """A copy of the tiny bundle."""
    bundle = folder / "bundle"
    bundle.mkdir()
    for name, content in _content():
        (bundle / name).write_bytes(content)
    return bundle


@functools.cache
def _content() -> tuple[tuple[str, bytes], ...]:
    return tuple((path.name, path.read_bytes()) for path in sorted(_kept[0].iterdir()))
