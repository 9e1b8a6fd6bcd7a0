"""Explainers of classifiers with random weights, trained so briefly that their masks have a shape."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from cost import MODELS
from zoo import photographs

from saccade.accel.bundle import Bundle
from saccade.contracts import Uint8
from saccade.export.write_bundle import export_trained
from saccade.methods.checkpoint import CheckpointRecord
from saccade.methods.ltx.config import LTXConfig
from saccade.methods.train import train_explainer
from saccade.methods.training.explainer import TrainedExplainer

__all__ = ["briefly_trained", "bundle_of"]

STEPS, BATCH = 60, 8


def briefly_trained(title: str) -> TrainedExplainer:
    """LTX on the trunk of a model of `benchmarks/cost.py`; an untrained mask is nearly flat, and its order is noise."""
    explainee = MODELS[title]()
    images = photographs(explainee.image_spec)

    def stream(step: int) -> Uint8:
        chosen: Uint8 = images[np.random.default_rng(step).permutation(len(images))[:BATCH]]
        return chosen

    torch.manual_seed(0)
    config = LTXConfig(steps=STEPS, batch_size=BATCH)
    with tempfile.TemporaryDirectory() as folder:
        return train_explainer(explainee, stream, config, Path(folder) / "ltx", data="photographs")


def bundle_of(explainer: TrainedExplainer, out: Path, precisions: tuple[str, ...] = ()) -> Bundle:
    """Its bundle, with the gate on photographs."""
    record = CheckpointRecord.of(explainer, LTXConfig(steps=STEPS, batch_size=BATCH), "photographs", STEPS)
    return export_trained(explainer, record, photographs(explainer.explainee.image_spec), out, precisions=precisions)
