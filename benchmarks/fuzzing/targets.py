"""The targets, by name."""

from __future__ import annotations

from .bundles import BUNDLES, GRAPHS, MANIFESTS
from .commands import COMMAND_LINES
from .images import IMAGES
from .sources import LEDGERS, PARQUETS, TARS
from .target import Target

__all__ = ["TARGETS"]

TARGETS: dict[str, Target] = {
    target.name: target for target in (IMAGES, MANIFESTS, BUNDLES, GRAPHS, TARS, PARQUETS, LEDGERS, COMMAND_LINES)
}
