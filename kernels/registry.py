"""All operators, for the tests and benchmarks that go over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .attribution_reduce.spec import ATTRIBUTION_REDUCE
from .coordinate_mlp.spec import COORDINATE_MLP, COORDINATE_MLP_BACKWARD
from .explain_finish.spec import EXPLAIN_FINISH
from .integration_path.spec import INTEGRATION_PATH
from .mask_blend.spec import MASK_BLEND, MASK_BLEND_BACKWARD
from .spec import KernelSpec

__all__ = ["KERNELS", "decompositions"]

KERNELS: tuple[KernelSpec, ...] = (
    COORDINATE_MLP,
    COORDINATE_MLP_BACKWARD,
    MASK_BLEND,
    MASK_BLEND_BACKWARD,
    INTEGRATION_PATH,
    ATTRIBUTION_REDUCE,
    EXPLAIN_FINISH,
)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """What each operator is in plain PyTorch, for `torch.export` and `make_fx`."""
    return {getattr(torch.ops.saccade, spec.name).default: spec.reference for spec in KERNELS}
