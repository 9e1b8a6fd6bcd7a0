"""What the operators say about their arguments."""

from __future__ import annotations

from torch import Tensor

from ..errors import UsageError

__all__ = ["about", "require_device"]


def about(value: Tensor) -> str:
    """A tensor in a message: its dtype and shape."""
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def require_device(first: Tensor, name: str, **others: Tensor) -> None:
    """Refuse tensors on another device than the first one, by their names."""
    for other, value in others.items():
        if value.device != first.device:
            raise UsageError(f"{other} is on {value.device}, {name} on {first.device}; move one of them")
