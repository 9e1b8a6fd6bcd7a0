"""Distributions of the tracked files, and clean virtual environments to install them in."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

__all__ = ["ROOT", "build", "checked", "lowest_versions", "make_environment", "tracked"]

ROOT = Path(__file__).parent.parent


def tracked(*patterns: str) -> list[str]:
    """Files under version control, or new and not ignored, by name."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    listed = checked(command, cwd=ROOT)
    return [name for name in listed.splitlines() if (ROOT / name).is_file()]


def build(kind: str, folder: Path) -> Path:
    """Build a distribution of the tracked files, from a copy: setuptools writes ``build/`` beside what it builds, and
    takes into a wheel whatever an earlier build left there.

    Args:
        kind: ``"wheel"`` or ``"sdist"``.
        folder: where it goes.
    """
    source = folder / "source"
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    out = folder / kind
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(out), str(source)]
    checked(command, cwd=source, env={**os.environ, "PYTHONWARNINGS": "default"})
    (made,) = out.iterdir()
    return made


def lowest_versions(extras: Sequence[str] = ()) -> dict[str, str]:
    """The lowest version that pyproject.toml allows of each package, by package."""
    with (ROOT / "pyproject.toml").open("rb") as stream:
        project = tomllib.load(stream)["project"]
    needed = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    found = {}
    for line in needed:
        parts = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?>=([\d.]+)(?:,[^;]*)?(?:;.*)?", line)
        if parts is None:
            raise ValueError(f"pyproject.toml names no lowest version in '{line}'")
        found[parts[1]] = parts[2]
    return found


def make_environment(
    folder: Path, what: str, *, python: Path | str = sys.executable, options: Sequence[str] = ()
) -> Path:
    """A virtual environment with one thing installed; the path of its Python.

    Args:
        folder: where it is made.
        what: as pip takes it, such as ``"saccade-0.1-py3-none-any.whl[serve]"``.
        python: that it is made with.
        options: for pip.
    """
    checked([str(python), "-m", "venv", str(folder)])
    inside = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    checked(
        [str(inside), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off", *options, what]
    )
    return inside


def checked(command: Sequence[str], cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """What a program printed; it finds no package but those installed where it runs.

    Raises:
        RuntimeError: it failed; with everything that it said.
    """
    environment = {name: value for name, value in (env or os.environ).items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout
