"""The Open Inference Protocol over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
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
from .errors import BadRequest, BodyTimeout, ClientGone, Overloaded, RequestError, TooLarge, Unavailable
from .http_protocol import LOST, TOGETHER
from .http_response import json_bytes, response_parts
from .metrics import CONTENT_TYPE
from .model import ServedModel
from .page import PAGE_PREFIX, page_routes
from .service import Service

__all__ = ["make_app"]

_LOG = logging.getLogger("saccade.serve")
_PIECE = 256 * 1024  # bytes of an answer that are sent at once
_SHORT = 1024  # bytes of a request that says hardly anything
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
        Route("/v2/models/stats", pages.all_stats),
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
        Route(model + "/infer", infer.page, methods=["POST"]),
        Route(model + "/versions/{version}/infer", infer.page, methods=["POST"]),
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
        path, headers = scope["path"], dict(scope["headers"])
        page = path in _OPEN or path.startswith(PAGE_PREFIX)
        if not page and not service.allowed(_shown_key(headers)):
            wants = {"www-authenticate": "Bearer"}
            said = "this server wants an API key: Authorization: Bearer KEY"
            await _json({"error": said}, 401, wants)(scope, receive, send)
        elif headers.get(b"sec-fetch-site") == b"cross-site" and path != "/":
            said = "pages of other sites may not use this server; put both behind one address"
            await _json({"error": said}, 403)(scope, receive, send)
        elif scope["method"] == "POST" and (named := _model_of(path)) is not None:
            await infer(named, headers, scope, receive, send)
        else:
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


def _shown_key(headers: dict[bytes, bytes]) -> str | None:
    bearer = headers.get(b"authorization", b"").decode("latin-1")
    if bearer[:7].lower() == "bearer ":
        return bearer[7:].strip()
    key = headers.get(b"x-api-key")
    return None if key is None else key.decode("latin-1")


class _Infer:
    """Requests for predictions and explanations; not through Starlette's classes, which would cost more than all the
    rest of it.
    """

    def __init__(self, service: Service) -> None:
        self.service = service

    async def __call__(
        self, named: tuple[str, str | None], headers: dict[bytes, bytes], scope: Scope, receive: Receive, send: Send
    ) -> None:
        began = time.perf_counter()
        bodies = self.service.bodies
        with contextlib.ExitStack() as held:
            try:
                with bodies.body(headers, receive) as body:
                    answer = await self.service.infer(*named, "http", began, body.request, scope.get(LOST))
                parts, length = await response_parts(*answer)
                size = sum(map(len, parts))
                held.enter_context(bodies.holding(size))
            except ClientGone:
                return
            except asyncio.CancelledError:
                if not self.service.draining:
                    raise
                stopped = Unavailable("the server stopped before the answer was there")
                await _error_response(stopped)(scope, receive, send)
                return
            except Exception as error:
                await _error_response(error)(scope, receive, send)
                return
            await _send(parts, size, length, send, scope.get(TOGETHER, contextlib.nullcontext))

    async def page(self, request: Request) -> Response:
        """Only here so that another method than POST is told apart from another address."""
        raise HTTPException(404)


async def _send(
    parts: list[bytes | memoryview],
    size: int,
    length: int | None,
    send: Send,
    together: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    """Send an answer: one that is not large together, a larger one in pieces, so that what is not taken of it waits
    here and not in the connection's buffer.
    """
    kind = b"application/json" if length is None else b"application/octet-stream"
    sent = [(b"content-type", kind), (b"content-length", str(size).encode())]
    if length is not None:
        sent.append((b"inference-header-content-length", str(length).encode()))
    start = {"type": "http.response.start", "status": 200, "headers": sent}
    if size <= _PIECE:
        with together():
            await send(start)
            for place, part in enumerate(parts, 1):
                await send({"type": "http.response.body", "body": part, "more_body": place < len(parts)})
        return
    await send(start)
    for part in parts:
        for first in range(0, len(part), _PIECE):
            await send({"type": "http.response.body", "body": bytes(part[first : first + _PIECE]), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


class _Pages:
    """Everything else there is to ask."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def _model(self, request: Request) -> ServedModel:
        return self.service.models.get(request.path_params["model"], request.path_params.get("version"))

    async def server(self, request: Request) -> Response:
        return _json(self.service.server_metadata())

    async def live(self, request: Request) -> Response:
        return Response(status_code=200)

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
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _SHORT:
                raise TooLarge(
                    f'the request has more than {_SHORT} bytes; it is a JSON object, such as {{"ready": true}}'
                )
        with contextlib.suppress(ValueError, AttributeError):
            ready = json.loads(body or b"{}").get("ready") is True
            return _json([vars(state) for state in self.service.models.states() if state.state == "READY" or not ready])
        raise BadRequest('the request is a JSON object, such as {"ready": true}')

    async def load(self, request: Request) -> Response:
        await self.service.load(request.path_params["model"])
        return Response(status_code=200)

    async def unload(self, request: Request) -> Response:
        self.service.unload(request.path_params["model"])
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
