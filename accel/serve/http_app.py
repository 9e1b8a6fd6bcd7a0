"""The Open Inference Protocol over HTTP."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ...errors import SaccadeError
from .errors import BodyTimeout, ClientGone, Overloaded, RequestError, TooLarge, Unavailable
from .http_body import Bodies
from .http_response import json_bytes, response_parts
from .metrics import CONTENT_TYPE
from .model import VERSION, ServedModel
from .page import PAGE_PREFIX, page_routes
from .service import Service

__all__ = ["make_app"]

_LOG = logging.getLogger("saccade.serve")
_OPEN = ("/v2/health/live", "/v2/health/ready", "/")  # answered without a key
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def make_app(service: Service) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """The ASGI application of a server's models."""
    infer = _Infer(service)
    pages = _Pages(service)
    model = "/v2/models/{model}"
    routes: list[BaseRoute] = [
        *page_routes(),
        Route("/v2", pages.server),
        Route("/v2/health/live", pages.live),
        Route("/v2/health/ready", pages.ready),
        *(
            Route(prefix + path, endpoint)
            for prefix in (model, model + "/versions/{version}")
            for path, endpoint in (
                ("", pages.metadata),
                ("/ready", pages.model_ready),
                ("/config", pages.config),
                ("/stats", pages.stats),
                ("/card", pages.card),
                ("/samples/{index:int}", pages.sample),
            )
        ),
        Route("/v2/models/stats", pages.all_stats),
        Route("/v2/repository/index", pages.index, methods=["POST"]),
        Route("/v2/repository/models/{model}/load", pages.load, methods=["POST"]),
        Route("/v2/repository/models/{model}/unload", pages.unload, methods=["POST"]),
        Route("/metrics", pages.metrics),
    ]
    starlette = Starlette(
        routes=routes,
        exception_handlers={HTTPException: _on_http_exception, SaccadeError: _on_error, Exception: _on_error},
    )

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await starlette(scope, receive, send)
            return
        path: str = scope["path"]
        if path not in _OPEN and not path.startswith(PAGE_PREFIX) and not service.allowed(_shown_key(scope)):
            await _json({"error": "this server wants an API key: Authorization: Bearer KEY"}, 401)(scope, receive, send)
            return
        if path.endswith("/infer") and scope["method"] == "POST" and (named := _model_of(path)) is not None:
            await infer(named, scope, receive, send)
            return
        await starlette(scope, receive, send)

    return app


def _model_of(path: str) -> tuple[str, str | None] | None:
    """Model and version of ``/v2/models/NAME[/versions/VERSION]/infer``."""
    match path.split("/"):
        case ["", "v2", "models", name, "infer"]:
            return name, None
        case ["", "v2", "models", name, "versions", version, "infer"]:
            return name, version
    return None


def _shown_key(scope: Scope) -> str | None:
    headers: dict[bytes, bytes] = dict(scope["headers"])
    bearer = headers.get(b"authorization", b"").decode("latin-1")
    if bearer[:7].lower() == "bearer ":
        return bearer[7:].strip()
    key: bytes | None = headers.get(b"x-api-key")
    return None if key is None else key.decode("latin-1")


class _Infer:
    """Requests for predictions and explanations; not through Starlette's classes, which would cost more than all the
    rest of it.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.bodies = Bodies(service.config.limits)

    async def __call__(self, named: tuple[str, str | None], scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        try:
            with self.bodies.body(dict(scope["headers"]), receive) as body:
                answer = await self.service.infer(*named, "http", began, body.request, lambda: _until_gone(receive))
            parts, length = response_parts(*answer)
        except ClientGone:
            return
        except Exception as error:
            await _error_response(error)(scope, receive, send)
            return
        kind = b"application/json" if length is None else b"application/octet-stream"
        sent = [(b"content-type", kind), (b"content-length", str(sum(map(len, parts))).encode())]
        if length is not None:
            sent.append((b"inference-header-content-length", str(length).encode()))
        await send({"type": "http.response.start", "status": 200, "headers": sent})
        await send({"type": "http.response.body", "body": b"".join(parts)})


async def _until_gone(receive: Receive) -> None:
    """Return when the client closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


class _Pages:
    """Everything else there is to ask."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def _model(self, request: Request) -> ServedModel:
        return self.service.models.get(request.path_params["model"], request.path_params.get("version"))

    async def server(self, request: Request) -> Response:
        return _json(self.service.server_metadata())

    async def live(self, request: Request) -> Response:
        return Response(status_code=200 if self.service.live else 503)

    async def ready(self, request: Request) -> Response:
        return Response(status_code=200 if self.service.ready else 503)

    async def model_ready(self, request: Request) -> Response:
        self._model(request)
        return Response(status_code=503 if self.service.draining else 200)

    async def metadata(self, request: Request) -> Response:
        return _json(self._model(request).metadata())

    async def config(self, request: Request) -> Response:
        return _json(self.service.model_config(self._model(request)))

    async def stats(self, request: Request) -> Response:
        return _json({"model_stats": [self.service.statistics(self._model(request))]})

    async def all_stats(self, request: Request) -> Response:
        return _json({"model_stats": [self.service.statistics(model) for model in self.service.models]})

    async def card(self, request: Request) -> Response:
        return _json(self._model(request).card())

    async def sample(self, request: Request) -> Response:
        model, index = self._model(request), request.path_params["index"]
        if index >= len(model.samples):
            raise HTTPException(404)
        return Response(model.sample_png(index), media_type="image/png")

    async def index(self, request: Request) -> Response:
        return _json(
            [
                {"name": state.name, "version": VERSION, "state": state.state, "reason": state.reason}
                for state in self.service.models.states()
            ]
        )

    async def load(self, request: Request) -> Response:
        await asyncio.to_thread(self.service.models.load, request.path_params["model"])
        return Response(status_code=200)

    async def unload(self, request: Request) -> Response:
        self.service.models.unload(request.path_params["model"])
        return Response(status_code=200)

    async def metrics(self, request: Request) -> Response:
        return Response(self.service.metrics.page(), media_type=CONTENT_TYPE)


def _json(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json_bytes(document), status, headers, "application/json")


def _error_response(error: Exception) -> Response:
    """What the client is told; of a bug no more than that it is one."""
    if isinstance(error, RequestError):
        headers = {"retry-after": "1"} if isinstance(error, (Overloaded, Unavailable)) else {}
        if isinstance(error, (TooLarge, BodyTimeout)):
            headers["connection"] = "close"  # the rest of the body is not waited for
        return _json({"error": str(error)}, error.http, headers)
    if isinstance(error, SaccadeError):
        _LOG.error("a request failed: %s", error)
        return _json({"error": str(error)}, 500)
    _LOG.error("a request failed: %s", error, exc_info=error)
    return _json({"error": "the server failed on this request; its log says how"}, 500)


async def _on_error(request: Request, error: Exception) -> Response:
    return _error_response(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    said = {404: f"there is nothing at '{request.url.path}'", 405: f"{request.method} is not for this address"}
    return _json({"error": said.get(status, str(error))}, status)
