"""The models of a server: opened, exchanged while requests go on, taken out."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...errors import SaccadeError, UsageError
from ..bundle import file_sha256
from ..manifest import MANIFEST_FILE
from .errors import Unavailable, UnknownModel
from .model import VERSION, ServedModel

__all__ = ["ModelRegistry", "ModelState", "manifest_digest", "named_bundles"]

_LOG = logging.getLogger("saccade.serve")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def named_bundles(bundles: list[str]) -> dict[str, Path]:
    """Bundles by the names that clients call them, from ``NAME=DIR`` or ``DIR``, which is called by its last part.

    Raises:
        UsageError: two have one name, or a name has characters that no URL should.
    """
    found: dict[str, Path] = {}
    for given in bundles:
        name, separator, folder = given.partition("=")
        if not separator or "/" in name:
            folder = given
            name = Path(folder).resolve().name
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"'{name}' cannot be a model's name, which has letters, digits, '.', '_' and '-'; write NAME={folder}"
            )
        if name in found:
            raise UsageError(f"two bundles are called '{name}'; give one of them another name: NAME={folder}")
        found[name] = Path(folder)
    return found


def manifest_digest(folder: Path) -> str:
    """What a bundle's manifest is known by; empty where there is none, which opening it will say."""
    file = folder / MANIFEST_FILE
    return file_sha256(file) if file.is_file() else ""


@dataclass(frozen=True)
class ModelState:
    """A model as the repository lists it.

    Attributes:
        name: of the model.
        version: the one there is.
        state: ``"READY"`` or ``"UNAVAILABLE"``.
        reason: why it is not ready.
    """

    name: str
    state: str
    reason: str = ""
    version: str = VERSION


class ModelRegistry:
    """Models by name. A request keeps the model that it found, so an exchange disturbs none.

    Args:
        folders: of the bundles, by name.
        open_model: opens one.

    Attributes:
        after_load: is called when a model has been put in its place.
    """

    def __init__(self, folders: Mapping[str, Path], open_model: Callable[[str, Path], ServedModel]) -> None:
        self.after_load: Callable[[], None] = lambda: None
        self.folders = dict(folders)
        self._open = open_model
        self._models: dict[str, ServedModel] = {}
        self._reasons = dict.fromkeys(folders, "not loaded yet")
        self._refused: dict[str, str] = {}  # what could not be loaded, so that it is said once
        self._loading = threading.Lock()

    def __iter__(self) -> Iterator[ServedModel]:
        """The models that are ready."""
        return iter(list(self._models.values()))

    @property
    def ready(self) -> bool:
        """Whether every model is."""
        return all(name in self._models for name in self.folders)

    def states(self) -> list[ModelState]:
        """All models, ready or not."""
        return [
            ModelState(name, "READY") if name in self._models else ModelState(name, "UNAVAILABLE", self._reasons[name])
            for name in self.folders
        ]

    def get(self, name: str, version: str | None = None) -> ServedModel:
        """A model that is ready.

        Raises:
            UnknownModel: there is none of this name, or not in this version.
            Unavailable: it is not loaded.
        """
        model = self._models.get(name)
        if model is None:
            if name in self.folders:
                raise Unavailable(f"the model '{name}' is not ready: {self._reasons[name]}")
            raise UnknownModel(f"there is no model '{name}'; there are: {', '.join(self.folders)}")
        if version not in (None, "", VERSION):
            raise UnknownModel(f"the model '{name}' has no version '{version}'; it has version {VERSION}")
        return model

    def load(self, name: str) -> ServedModel:
        """Open a model's bundle again from disk, and put it in the place of what was there; if it cannot be opened,
        what was there goes on.

        Raises:
            UnknownModel: there is none of this name.
            SaccadeError: its bundle cannot be opened.
        """
        if name not in self.folders:
            raise UnknownModel(f"there is no model '{name}'; there are: {', '.join(self.folders)}")
        with self._loading:
            try:
                model = self._open(name, self.folders[name])
            except SaccadeError as error:
                if name not in self._models:
                    self._reasons[name] = str(error)
                raise
            self._models[name] = model
            self.after_load()
        fields = {"model": name, "method": model.manifest.method, "forwards": round(model.forwards, 2)}
        _LOG.info("model '%s' is ready", name, extra=fields)
        return model

    def unload(self, name: str) -> None:
        """Take a model out; requests that it has are answered.

        Raises:
            UnknownModel: there is none of this name.
        """
        if name not in self.folders:
            raise UnknownModel(f"there is no model '{name}'; there are: {', '.join(self.folders)}")
        self._reasons[name] = "it was unloaded; load it again"
        self._models.pop(name, None)

    def load_changed(self) -> list[str]:
        """Load again each model whose bundle on disk is another one than that which is served; their names.

        One that cannot be loaded, since it is damaged or just being exchanged, is tried again the next time.
        """
        loaded = []
        for model in self:
            digest = ""
            try:
                digest = manifest_digest(self.folders[model.name])
                if digest == model.digest:
                    continue
                self.load(model.name)
                loaded.append(model.name)
            except (OSError, SaccadeError) as error:
                if self._refused.get(model.name) != digest:
                    _LOG.warning("model '%s' has changed and cannot be loaded: %s", model.name, error)
                self._refused[model.name] = digest
        return loaded
