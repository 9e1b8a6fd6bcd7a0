"""The errors that users of Saccade can cause or meet, and the one way to ask for an optional package.

SaccadeError                 every error of ours; the command line prints it as one sentence and exits with 1
├── UsageError               an argument whose value cannot work
├── ImageError               an image that cannot be read, or a folder without images
├── ModelError               a model spec, its weights or its layers
├── BundleError              a bundle that is missing, damaged, or from a newer version
├── EngineError              an engine or execution provider that cannot run what was asked
├── OutOfMemory              a batch that does not fit
├── ParityError              an export or engine whose explanations are not those of the original
├── OutputError              a file or folder that cannot be written
└── MissingDependencyError   an optional package that is not there or broken, with the line that installs it

Each message says what is wrong, what there is instead, and what to do.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import unicodedata
from collections.abc import Sequence
from types import ModuleType

__all__ = [
    "BundleError",
    "EngineError",
    "ImageError",
    "MissingDependencyError",
    "ModelError",
    "OutOfMemory",
    "OutputError",
    "ParityError",
    "SaccadeError",
    "UsageError",
    "printable",
    "require",
    "suggest",
]

_OBEYED = ("Cc", "Cs", "Zl", "Zp")  # control characters, half characters of undecodable names, line separators


class SaccadeError(Exception):
    """Base of every error that Saccade raises on purpose."""

    def __str__(self) -> str:
        """The message, on one line: what a terminal would obey, as in a file's name, is spelled out."""
        return printable(super().__str__())


class UsageError(SaccadeError):
    """An argument has a value that cannot work."""


class ImageError(SaccadeError):
    """An image cannot be read."""


class ModelError(SaccadeError):
    """A model spec cannot be built, or its weights or layers do not fit."""


class BundleError(SaccadeError):
    """A bundle is missing, damaged, or written by a newer version."""


class EngineError(SaccadeError):
    """An engine or execution provider cannot run what was asked."""


class OutOfMemory(SaccadeError):
    """A batch does not fit into memory."""


class ParityError(SaccadeError):
    """An exported graph or an engine does not explain what the original explains."""


class OutputError(SaccadeError):
    """A result cannot be written."""


class MissingDependencyError(SaccadeError):
    """An optional package is not installed, or cannot be imported."""


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional module, or say how to get it.

    Args:
        module: dotted name, for example ``"torch"``.
        extra: the extra of Saccade that installs it.
        purpose: what it is needed for, as it reads after "is needed for".

    Raises:
        MissingDependencyError: the package is not installed, or is but cannot be imported.
    """
    root = module.partition(".")[0]
    if importlib.util.find_spec(root) is None:
        raise MissingDependencyError(
            f"the package '{root}' is needed for {purpose} and is not installed; "
            f"install it with: pip install 'saccade[{extra}]'"
        )
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever a package raises that does not fit the others
        reason = (str(error) or "no message").splitlines()[0]
        raise MissingDependencyError(
            f"the package '{root}' is needed for {purpose} and cannot be imported ({type(error).__name__}: {reason}); "
            f"install it again, with the packages it needs: pip install --force-reinstall 'saccade[{extra}]'"
        ) from error


def printable(text: str) -> str:
    """Text on one line, with what a terminal would obey spelled out, as a line break in a file's name is."""
    return "".join(ascii(char)[1:-1] if unicodedata.category(char) in _OBEYED else char for char in text)


def suggest(name: str, known: Sequence[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known ones, or some that there are."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return (
        f"there are {len(known)}, for example {', '.join(known[:5])}"
        if len(known) > 5
        else f"there are: {', '.join(known)}"
    )
