"""A server of bundles: the Open Inference Protocol, version 2, over HTTP and gRPC, and a page to try them."""

from __future__ import annotations

__all__: list[str] = []
