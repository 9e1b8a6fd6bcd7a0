"""The page on which people try the models: its files, and the headers they are sent with."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ..colormap import colour_table

__all__ = ["PAGE_PREFIX", "page_routes"]

PAGE_PREFIX: Final = "/playground/"
_KINDS = {
    "index.html": "text/html",
    "style.css": "text/css",
    "icon.svg": "image/svg+xml",
    **dict.fromkeys(
        ("main.js", "controls.js", "classes.js", "panel.js", "drawing.js", "protocol.js", "latest.js", "download.js"),
        "text/javascript",
    ),
}
_HEADERS = {
    # the page takes nothing from elsewhere, runs nothing that is not in its files, and asks this server only
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def page_routes() -> list[BaseRoute]:
    """Where the page and its files are; none of them needs a key, since they tell nothing about the models."""
    colours = _sent(colour_table().tobytes(), "application/octet-stream")
    return [
        Route("/", _file("index.html"), methods=["GET"]),
        *(Route(PAGE_PREFIX + name, _file(name), methods=["GET"]) for name in _KINDS if name != "index.html"),
        Route(PAGE_PREFIX + "colours", colours, methods=["GET"]),
    ]


def _file(name: str) -> Response:
    return _sent(files(__package__).joinpath("playground", name).read_bytes(), _KINDS[name])


def _sent(content: bytes, kind: str) -> Response:
    """An answer that is always the same."""
    return Response(content, media_type=kind, headers=_HEADERS)
