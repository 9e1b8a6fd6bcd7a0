"""The checkpoint of a trained explainer: a folder that can be exported, and resumed.

    checkpoint.json         config, explainee, data, steps done, the best validation
    explainer.safetensors   weights of the explainer network: the last ones, or the best where training may stop early
    history.jsonl           one line per step: losses, learning rate, validation
    training_state.pt       last and best weights, optimiser, history: all that a resumed training needs
    samples.npz             images of the user's own kind, for the parity gate (not written for planted scenes)

A save is all of the first four or none: each is written whole beside the old one, an empty file `.saved` says that the
new ones count, and only then they take the old ones' places. A reader that finds `.saved` takes the new ones, so
whenever a process is killed or the disk is full, the folder holds one step.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..contracts import ImageSpec, Uint8
from ..errors import ModelError, OutputError, UsageError, require
from .explainee import Explainee, load_explainee, load_weights
from .trained import METHODS, method_of
from .training.config import TrainingConfig
from .training.explainer import TrainedExplainer

__all__ = [
    "CheckpointRecord",
    "damaged_state",
    "has_checkpoint",
    "load_checkpoint",
    "load_networks",
    "load_samples",
    "load_training_state",
    "network_state",
    "read_history",
    "read_record",
    "save_checkpoint",
    "save_samples",
]

RECORD_FILE, WEIGHTS_FILE, SAMPLES_FILE = "checkpoint.json", "explainer.safetensors", "samples.npz"
HISTORY_FILE, STATE_FILE = "history.jsonl", "training_state.pt"
SAVED_MARK = ".saved"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """What `checkpoint.json` says; `best_step` and `best_score` are None where nothing was validated."""

    method: str
    config: TrainingConfig
    layers: tuple[str, ...]
    explainee: str
    weights: str
    fingerprint: str
    class_names: tuple[str, ...]
    image_spec: ImageSpec
    data: str
    step: int
    format: int = FORMAT
    best_step: int | None = None
    best_score: float | None = None

    @classmethod
    def of(cls, explainer: TrainedExplainer, config: TrainingConfig, data: str, step: int) -> CheckpointRecord:
        """Describe an explainer after so many steps."""
        explainee = explainer.explainee
        return cls(
            method=method_of(config).name,
            config=config,
            layers=explainer.layers,
            explainee=explainee.spec,
            weights=explainee.weights,
            fingerprint=explainee.fingerprint,
            class_names=explainee.class_names,
            image_spec=explainee.image_spec,
            data=data,
            step=step,
        )


def save_checkpoint(
    folder: Path,
    record: CheckpointRecord,
    weights: Mapping[str, Tensor],
    state: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
) -> None:
    """Write a checkpoint: all files of the new step, or none.

    Args:
        folder: made where it is missing.
        record: what the checkpoint is.
        weights: of the explainer network, for those who load or export it.
        state: for those who resume the training.
        history: one row per step.

    Raises:
        OutputError: the folder cannot be written; what was there stays as it was.
    """
    safetensors = require("safetensors.torch", extra="train", purpose="writing checkpoints")
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    writers: dict[str, Callable[[Path], object]] = {
        RECORD_FILE: lambda path: path.write_text(json.dumps(asdict(record), indent=2) + "\n"),
        STATE_FILE: lambda path: torch.save(dict(state), path),
        WEIGHTS_FILE: lambda path: path.write_bytes(safetensors.save(tensors)),
        HISTORY_FILE: lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in history)),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _finish_save(folder)
        for name, write in writers.items():
            _write_whole(_new(folder, name), write)
        (folder / SAVED_MARK).touch()
        _finish_save(folder)
    except (OSError, RuntimeError) as error:
        raise OutputError(f"cannot write the checkpoint '{folder}': {_first_line(error)}") from None
    finally:
        if not (folder / SAVED_MARK).exists():
            for name in writers:
                with contextlib.suppress(OSError):
                    _new(folder, name).unlink(missing_ok=True)


def save_samples(folder: Path, images: Uint8) -> None:
    """Keep images (N, H, W, 3) with the checkpoint, for the parity gate."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_whole(_new(folder, SAMPLES_FILE), lambda path: _savez(path, images))
        os.replace(_new(folder, SAMPLES_FILE), folder / SAMPLES_FILE)
    except OSError as error:
        raise OutputError(f"cannot write into '{folder}': {error.strerror or error}") from None


def load_samples(folder: Path) -> Uint8 | None:
    """The images kept with a checkpoint, or None."""
    path = folder / SAMPLES_FILE
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as stored:
        return np.asarray(stored["images"])


def read_record(folder: Path) -> CheckpointRecord:
    """Read `checkpoint.json`.

    Raises:
        ModelError: no checkpoint, damaged, or of a newer format.
    """
    path = _current(folder, RECORD_FILE)
    if not path.is_file():
        raise ModelError(
            f"'{folder}' is not a checkpoint: it has no {RECORD_FILE}; make one with: saccade train ltx --out {folder}"
        )
    try:
        stored = json.loads(path.read_text())
        if stored["format"] > FORMAT:
            raise ModelError(
                f"the checkpoint '{folder}' has format {stored['format']} "
                f"and this Saccade reads up to {FORMAT}; upgrade it"
            )
        make_config: Any = METHODS[stored["method"]].config
        config = {name: tuple(value) if isinstance(value, list) else value for name, value in stored["config"].items()}
        spec: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in stored["image_spec"].items()
        }
        return CheckpointRecord(
            **{
                **stored,
                "config": make_config(**config),
                "image_spec": ImageSpec(**spec),
                "layers": tuple(stored["layers"]),
                "class_names": tuple(stored["class_names"]),
            }
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
        raise ModelError(f"the checkpoint '{folder / RECORD_FILE}' is damaged: {_first_line(error)}") from None


def load_checkpoint(
    folder: Path, *, spec: str | None = None, weights: str | None = None
) -> tuple[TrainedExplainer, CheckpointRecord]:
    """Load a checkpoint and its explainee.

    Args:
        folder: the checkpoint.
        spec: another model spec, where the recorded one is not to be found any more.
        weights: another place of the explainee's weights.

    Raises:
        ModelError: the explainee's weights are not those the explainer was trained for.
    """
    record = read_record(folder)
    explainee: Explainee = load_explainee(
        spec or record.explainee,
        weights or record.weights,
        class_names=_given_names(record),
        image_size=record.image_spec.size,
    )
    if explainee.fingerprint != record.fingerprint:
        raise ModelError(
            f"the explainee {explainee.spec} ({explainee.weights}) is not the one that '{folder}' was trained for: "
            f"its weights have fingerprint {explainee.fingerprint[:12]}…, "
            f"the checkpoint expects {record.fingerprint[:12]}…; "
            "give the right file with --weights"
        )
    explainee = replace(explainee, image_spec=record.image_spec, class_names=record.class_names)
    layers = () if getattr(record.config, "backbone", "") else record.layers
    method = METHODS[record.method]
    explainer = method.build(explainee, replace(record.config, layers=layers), pretrained=False)
    while True:
        load_weights(explainer.network, _current(folder, WEIGHTS_FILE))
        before, record = record, read_record(folder)
        if record.step == before.step:  # no training has saved another step meanwhile
            return explainer.eval(), record


def load_networks(folders: Sequence[Path], method: str, network: nn.Module) -> None:
    """Take the mean weights of checkpoints into a network that is built alike.

    Raises:
        ModelError: no checkpoint, one of another method, or of a network of other sizes.
    """
    total: dict[str, Tensor] = {}
    for folder in folders:
        record = read_record(folder)
        if record.method != method:
            raise ModelError(f"'{folder}' is a checkpoint of train {record.method}, not of train {method}")
        load_weights(network, _current(folder, WEIGHTS_FILE))
        for name, value in network.state_dict().items():
            total[name] = value.double() + total[name] if name in total else value.double()
    mean = {name: value / len(folders) for name, value in total.items()}
    network.load_state_dict({name: mean[name].to(value.dtype) for name, value in network.state_dict().items()})


def has_checkpoint(folder: Path) -> bool:
    """A training was saved here, or a checkpoint copied."""
    return _current(folder, RECORD_FILE).exists()


def read_history(folder: Path) -> list[dict[str, float]]:
    """The rows of all steps until the last save."""
    path = _current(folder, HISTORY_FILE)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def load_training_state(folder: Path) -> dict[str, Any] | None:
    """The state that `save_checkpoint` was given last, on the CPU, or None.

    Raises:
        ModelError: the file is damaged.
    """
    path = _current(folder, STATE_FILE)
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch meets in the bytes
        raise damaged_state(folder, error) from None
    return state


def damaged_state(folder: Path, error: Exception) -> ModelError:
    """The error for a training state that cannot be used."""
    return ModelError(
        f"the training state '{folder / STATE_FILE}' is damaged and cannot be resumed: {_first_line(error)}; "
        "start again with another --out"
    )


def network_state(network: nn.Module) -> dict[str, Any]:
    """A copy of the network's state, safe to keep while training goes on."""
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _given_names(record: CheckpointRecord) -> tuple[str, ...] | None:
    """Names are passed on only where the library's model is built for another number of classes than its own."""
    return (
        record.class_names
        if record.weights not in ("pretrained",) and not record.explainee.startswith("python:")
        else None
    )


def _new(folder: Path, name: str) -> Path:
    return folder / f".new-{name}"  # keeps its suffix, by which readers know the format


def _current(folder: Path, name: str) -> Path:
    """The file that counts: the new one, where a save was interrupted after its mark."""
    new = _new(folder, name)
    return new if (folder / SAVED_MARK).exists() and new.exists() else folder / name


def _finish_save(folder: Path) -> None:
    if not (folder / SAVED_MARK).exists():
        return
    for name in (RECORD_FILE, STATE_FILE, WEIGHTS_FILE, HISTORY_FILE):
        if _new(folder, name).exists():
            os.replace(_new(folder, name), folder / name)
    (folder / SAVED_MARK).unlink()


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file and have the disk keep it before anything says that it is there."""
    write(path)
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _savez(path: Path, images: Uint8) -> None:
    with path.open("wb") as stream:
        np.savez_compressed(stream, images=images)
