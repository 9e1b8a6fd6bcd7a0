"""Randomise the weights of an exported graph, for the sanity check by model randomisation (Adebayo et al. 2018)."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from ..errors import ModelError, require

__all__ = ["randomise_weights"]

_WEIGHT_INPUTS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1}  # which input holds the weights
_EITHER_INPUT = {"MatMul", "Gather"}  # of constants with two axes or more
_GEOMETRY = "upsample"  # modules of this name interpolate: their matrices were not learned


def randomise_weights(graph: bytes, seed: int = 0) -> bytes:
    """An ONNX graph whose learned weights are shuffled, each tensor within itself.

    Shuffling keeps every tensor's distribution, so that activations stay of the same order. Biases stay. Equal tensors,
    such as a head that the graph holds twice, are shuffled equally.

    Args:
        graph: a serialised ONNX model.
        seed: of the shuffles.

    Raises:
        ModelError: the graph has no weights.
        MissingDependencyError: the package onnx is not installed.
    """
    onnx = require("onnx", extra="train", purpose="randomising a graph's weights")
    model = onnx.load_from_string(graph)
    used = _weights(model.graph)
    shuffled = 0
    for tensor in model.graph.initializer:
        if tensor.name not in used or len(tensor.dims) < 2 or _GEOMETRY in tensor.name.split("."):
            continue
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype.kind != "f":
            continue
        data = np.ascontiguousarray(values)
        generator = np.random.default_rng([seed, zlib.crc32(data.tobytes())])
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(generator.permutation(data.reshape(-1)).reshape(data.shape), tensor.name)
        )
        shuffled += 1
    if not shuffled:
        raise ModelError("the graph has no weights to randomise")
    result: bytes = model.SerializeToString()
    return result


def _weights(graph: Any) -> set[str]:
    names: set[str] = set()
    for node in graph.node:
        if node.op_type in _WEIGHT_INPUTS:
            names.add(node.input[_WEIGHT_INPUTS[node.op_type]])
        elif node.op_type in _EITHER_INPUT:
            names.update(node.input)
    return names
