"""A load generator for servers of the Open Inference Protocol."""

from __future__ import annotations

__all__: list[str] = []
