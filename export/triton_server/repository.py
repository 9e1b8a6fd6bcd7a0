"""A model repository on disk: written beside it, then moved in, so that a server never sees half a model."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...accel.bundle import Bundle
from ...accel.remote_engine import model_name
from ...errors import OutputError, UsageError
from .companions import write_companions
from .model_config import ROLE, parse_config, write_config
from .models import ModelFiles, models_of
from .settings import TritonSettings, fitted

__all__ = ["WrittenModel", "deploy"]

_CONFIG = "config.pbtxt"


@dataclass(frozen=True)
class WrittenModel:
    """A model that was written.

    Attributes:
        name: of the model, and of its folder.
        role: ``"explainer"``, ``"classifier"``, ``"parts"``, ``"decoder"`` or ``"ensemble"``.
        bundle: from which.
        version: of it.
        max_batch_size: images per request at most; 0 where the server does not batch.
        instances: copies of it; 0 for what the server computes by other models.
        inputs: names and shapes, as a client sees them.
        outputs: names and shapes.
        bytes: of its files.
    """

    name: str
    role: str
    bundle: Path
    version: int
    max_batch_size: int
    instances: int
    inputs: dict[str, list[int]]
    outputs: dict[str, list[int]]
    bytes: int


def deploy(
    bundles: Sequence[Bundle],
    repository: Path,
    settings: TritonSettings,
    *,
    force: bool = False,
    new_version: bool = False,
    storage_uri: str | None = None,
) -> list[WrittenModel]:
    """Write the models of bundles into a model repository, with a client, a KServe manifest and a README.

    Args:
        bundles: opened bundles.
        repository: its folder; made if it is not there.
        settings: of all of them.
        force: replace models that are there, with all their versions.
        new_version: put the settings' version beside those of models that are there.
        storage_uri: where KServe will find the repository; None leaves a placeholder.

    Returns:
        What was written, those that others need first.

    Raises:
        UsageError: settings that do not go together or with a bundle, or two models of one name.
        EngineError: a bundle holds no such graph or plan.
        OutputError: a model is there already, or the repository cannot be written.
        MissingDependencyError: Triton's protobuf is not installed.
    """
    if settings.name is not None and len(bundles) > 1:
        raise UsageError("--name is one bundle's; deploy the bundles one after the other, or leave it out")
    made: list[tuple[Bundle, ModelFiles]] = []
    for bundle in bundles:
        name = settings.name or model_name(bundle.path)
        made += [(bundle, model) for model in models_of(bundle, name, fitted(settings, bundle))]
    names = [model.name for _, model in made]
    if double := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"two bundles would become the model '{double[0]}'; deploy them one by one with --name")
    for _, model in made:
        _check_room(repository, model, settings.version, force=force, new_version=new_version)
    try:
        with _beside(repository) as stage:
            written = [_write(stage, bundle, model, settings.version) for bundle, model in made]
            _move_in(stage, repository, names, settings.version, new_version=new_version)
        write_companions(repository, made[0][0], made[0][1].name, settings, storage_uri)
    except OSError as error:
        raise OutputError(
            f"cannot write the model repository '{repository}': {error.strerror or error}; choose another --repository"
        ) from None
    return written


def _check_room(repository: Path, model: ModelFiles, version: int, *, force: bool, new_version: bool) -> None:
    """Refuse what would overwrite something that nobody asked to overwrite.

    Raises:
        OutputError: the model, or this version of it, is there; or a version would not fit its configuration.
    """
    folder = repository / model.name
    if not folder.exists() or force:
        return
    if not new_version:
        versions = [int(one.name) for one in folder.iterdir() if one.name.isdigit()] if folder.is_dir() else []
        raise OutputError(
            f"the model '{folder}' is there already; put a version beside it with --version "
            f"{max(versions, default=0) + 1}, replace it with --force, or take another --name"
        )
    if (folder / str(version)).exists():
        raise OutputError(f"the model '{folder}' has a version {version} already; take a higher --version")
    try:
        there = parse_config((folder / _CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise OutputError(
            f"'{folder}' holds no configuration that can be read ({error}); replace it with --force"
        ) from None
    other = [key.name for key in there.DESCRIPTOR.fields if getattr(there, key.name) != getattr(model.config, key.name)]
    labels = {name: content for name, content in model.of_model.items() if "/" not in name}
    other += [name for name, text in labels.items() if not _holds(folder / name, text)]
    if other:
        raise OutputError(
            f"all versions of a model share its configuration, and version {version} of '{model.name}' would have "
            f"another {', '.join(other)}; deploy it with --name as a model of its own, or replace all with --force"
        )


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


@contextlib.contextmanager
def _beside(repository: Path) -> Iterator[Path]:
    """A temporary folder on the repository's file system; outside it, where it is not a file system of its own.

    It stays where an error leaves something in its folder ``old``.
    """
    repository.mkdir(parents=True, exist_ok=True)
    inside = repository.stat().st_dev != repository.resolve().parent.stat().st_dev
    where = repository if inside else repository.resolve().parent
    stage = Path(tempfile.mkdtemp(prefix=f".{repository.resolve().name}.", dir=where))
    try:
        yield stage
    except BaseException:
        if not os.path.isdir(stage / "old") or not os.listdir(stage / "old"):
            shutil.rmtree(stage, ignore_errors=True)
        raise
    shutil.rmtree(stage, ignore_errors=True)


def _write(stage: Path, bundle: Bundle, model: ModelFiles, version: int) -> WrittenModel:
    folder = stage / "new" / model.name
    contents: dict[str, bytes | Path] = {
        _CONFIG: write_config(model.config),
        **model.of_model,
        **{f"{version}/{name}": content for name, content in model.of_version.items()},
    }
    (folder / str(version)).mkdir(parents=True)
    for name, content in contents.items():
        path = _inside(folder, folder / name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            shutil.copyfile(_inside(bundle.path, content), path)
        else:
            path.write_bytes(content)
    config = parse_config((folder / _CONFIG).read_bytes())
    model.check(config)
    batch = [-1] if config.max_batch_size else []
    return WrittenModel(
        name=model.name,
        role=config.parameters[ROLE].string_value,
        bundle=bundle.path,
        version=version,
        max_batch_size=config.max_batch_size,
        instances=sum(group.count for group in config.instance_group),
        inputs={tensor.name: [*batch, *tensor.dims] for tensor in config.input},
        outputs={tensor.name: [*batch, *tensor.dims] for tensor in config.output},
        bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    )


def _inside(folder: Path, path: Path) -> Path:
    """The path, which a bundle may have had a say in.

    Raises:
        OutputError: it leads out of the folder.
    """
    if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder)):
        raise OutputError(f"the bundle names a file '{path}', which lies outside '{folder}'; export the bundle again")
    return path


def _move_in(stage: Path, repository: Path, names: Sequence[str], version: int, *, new_version: bool) -> None:
    """Move models, or their version, into the repository; all of them, or none, also where Ctrl-C ends it.

    Raises:
        OSError: they cannot be moved; the repository is as it was.
        OutputError: nor can what was there be moved back; it stays in the stage.
    """
    moved: list[tuple[Path, Path | None]] = []
    (stage / "old").mkdir()
    try:
        for name in names:  # what others need first, so that a server which polls finds it
            source, place = stage / "new" / name, repository / name
            if new_version and place.exists():
                source, place = source / str(version), place / str(version)
            old = stage / "old" / name if place.exists() else None
            moved.append((place, old))
            if old is not None:
                os.replace(place, old)
            os.replace(source, place)
    except BaseException:
        if left := [place for place, old in reversed(moved) if not _moved_back(place, old)]:
            raise OutputError(
                f"the model repository '{repository}' could not be written, nor be put back as it was: "
                f"{', '.join(map(str, left))}; what was there lies in '{stage / 'old'}', move it back from there"
            ) from None
        raise


def _moved_back(place: Path, old: Path | None) -> bool:
    """Whether what was at a place is there again, or still."""
    try:
        if old is None or os.path.lexists(old):
            shutil.rmtree(place, ignore_errors=True)
        if old is not None and os.path.lexists(old):
            os.replace(old, place)
    except BaseException:  # a second Ctrl-C too: the others are to be moved back
        return False
    return True
