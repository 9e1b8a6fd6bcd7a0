"""Names of files, classes and bundles as they are, on a terminal that takes brackets for markup."""

from __future__ import annotations

from ..errors import printable

__all__ = ["plain"]


def plain(text: object) -> str:
    """Text for rich: as it is, also where it looks like markup; what a terminal would obey is spelled out."""
    from rich.markup import escape

    return escape(printable(str(text)))
