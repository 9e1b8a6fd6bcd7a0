"""An LTX checkpoint: a folder that can be exported, and resumed.

    checkpoint.json         config, explainee, data, steps done
    explainer.safetensors   weights of the explainer network
    samples.npz             images of the user's own kind, for the parity gate (not written for planted scenes)
    history.jsonl           one line per step: losses, area, learning rate
    training_state.pt       optimiser and step, to resume

Every file is written under a temporary name and renamed; `checkpoint.json` is the first and
`training_state.pt` needs no other than it, so an interruption between two files costs nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...contracts import ImageSpec, Uint8
from ...errors import ModelError, OutputError, UsageError, require
from ..explainee import Explainee, load_explainee, load_weights
from .config import LTXConfig
from .model import LTXExplainer, build_ltx

__all__ = ["CheckpointRecord", "load_checkpoint", "load_samples", "read_record", "save_checkpoint", "save_samples"]

RECORD_FILE, WEIGHTS_FILE, SAMPLES_FILE = "checkpoint.json", "explainer.safetensors", "samples.npz"
HISTORY_FILE, STATE_FILE = "history.jsonl", "training_state.pt"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """What `checkpoint.json` says."""

    config: LTXConfig
    layers: tuple[str, ...]
    explainee: str
    weights: str
    fingerprint: str
    class_names: tuple[str, ...]
    image_spec: ImageSpec
    data: str
    step: int
    format: int = FORMAT
    method: str = "ltx"

    @classmethod
    def of(cls, explainer: LTXExplainer, config: LTXConfig, data: str, step: int) -> CheckpointRecord:
        """Describe an explainer after so many steps."""
        explainee = explainer.explainee
        return cls(
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
    explainer: LTXExplainer,
    record: CheckpointRecord,
    state: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
) -> None:
    """Write a checkpoint.

    Raises:
        OutputError: the folder cannot be written; what was there stays as it was.
    """
    safetensors = require("safetensors.torch", extra="train", purpose="writing checkpoints")
    weights = {name: value.detach().cpu().contiguous() for name, value in explainer.network.state_dict().items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / RECORD_FILE, lambda path: path.write_text(json.dumps(asdict(record), indent=2) + "\n"))
        _replace(folder / STATE_FILE, lambda path: torch.save(dict(state), path))
        _replace(folder / WEIGHTS_FILE, lambda path: safetensors.save_file(weights, path))
        _replace(
            folder / HISTORY_FILE, lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in history))
        )
    except (OSError, RuntimeError) as error:
        raise OutputError(f"cannot write the checkpoint '{folder}': {str(error).splitlines()[0]}") from None


def save_samples(folder: Path, images: Uint8) -> None:
    """Keep images (N, H, W, 3) with the checkpoint, for the parity gate."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / SAMPLES_FILE, lambda path: _savez(path, images))
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
    path = folder / RECORD_FILE
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
        config = dict(stored["config"], layers=tuple(stored["config"]["layers"]))
        spec: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in stored["image_spec"].items()
        }
        return CheckpointRecord(
            **{
                **stored,
                "config": LTXConfig(**config),
                "image_spec": ImageSpec(**spec),
                "layers": tuple(stored["layers"]),
                "class_names": tuple(stored["class_names"]),
            }
        )
    except (ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
        raise ModelError(
            f"the checkpoint '{path}' is damaged: {(str(error) or type(error).__name__).splitlines()[0]}"
        ) from None


def load_checkpoint(
    folder: Path, *, spec: str | None = None, weights: str | None = None
) -> tuple[LTXExplainer, CheckpointRecord]:
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
    layers = () if record.config.backbone else record.layers
    explainer = build_ltx(explainee, replace(record.config, layers=layers), pretrained=False)
    load_weights(explainer.network, folder / WEIGHTS_FILE)
    return explainer.eval(), record


def load_training_state(folder: Path) -> dict[str, Any] | None:
    """Optimiser state and step of an interrupted training, or None."""
    path = folder / STATE_FILE
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def network_state(network: nn.Module) -> dict[str, Any]:
    """A copy of the network's state, safe to keep while training goes on."""
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


def _given_names(record: CheckpointRecord) -> tuple[str, ...] | None:
    """Names are passed on only where the library's model is built for another number of classes than its own."""
    return (
        record.class_names
        if record.weights not in ("pretrained",) and not record.explainee.startswith("python:")
        else None
    )


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _savez(path: Path, images: Uint8) -> None:
    with path.open("wb") as stream:
        np.savez_compressed(stream, images=images)
