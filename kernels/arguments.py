"""What the operators say about their arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UsageError

__all__ = ["about", "require_device", "require_floating"]


def about(value: Tensor) -> str:
    """A tensor in a message: its dtype and shape."""
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def require_floating(dtype: torch.dtype | None) -> None:
    """Refuse a dtype for results that are no whole numbers."""
    if dtype is not None and not dtype.is_floating_point:
        raise UsageError(f"dtype is one of floating point, not {str(dtype).removeprefix('torch.')}")


def require_device(first: Tensor, name: str, **others: Tensor) -> None:
    """Refuse tensors on another device than the first one, by their names."""
    for other, value in others.items():
        if value.device != first.device:
            raise UsageError(f"{other} is on {value.device}, {name} on {first.device}; move one of them")
