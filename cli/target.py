"""Classes that a user asks about, by name or index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..accel.bundle import Bundle

__all__ = ["target_indices"]


def target_indices(bundle: Bundle, targets: Sequence[str]) -> tuple[int, ...]:
    """The indices of the classes that a user asks about, −1 for the predicted one where there is none; says on stderr
    what an explainer that is about the predicted class makes of it.

    Raises:
        UsageError: there is no such class, or several are asked of an explainer of the predicted one.
    """
    from ..errors import UsageError

    manifest = bundle.manifest
    indices = tuple(bundle.target_index(target) for target in targets) or (-1,)
    if max(indices) < 0 or manifest.class_specific:
        return indices
    if len(indices) > 1:
        raise UsageError(
            "this explainer explains the predicted class only; leave out --target, take another method, or train "
            "one with --class-conditional"
        )
    click.echo(
        "Note: this explainer explains the predicted class only; its masks show the evidence for the prediction; "
        f"the probability is that of '{manifest.class_names[indices[0]]}'.",
        err=True,
    )
    return indices
