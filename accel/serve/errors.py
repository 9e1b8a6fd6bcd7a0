"""Why a request is not answered, and how HTTP and gRPC say so."""

from __future__ import annotations

from ...errors import SaccadeError, UsageError

__all__ = [
    "BadRequest",
    "BodyTimeout",
    "ClientGone",
    "DeadlineExceeded",
    "Forbidden",
    "Overloaded",
    "RequestError",
    "TooLarge",
    "Unavailable",
    "UnknownModel",
]


class RequestError(SaccadeError):
    """A request that is not answered.

    Attributes:
        http: the status of the HTTP response.
        grpc: the name of the gRPC status code.
        outcome: how metrics call it.
    """

    http = 400
    grpc = "INVALID_ARGUMENT"
    outcome = "invalid"


class BadRequest(RequestError, UsageError):
    """The request does not follow the protocol, or does not fit the model."""


class TooLarge(RequestError):
    """The request or its answer is larger than the server allows."""

    http = 413
    grpc = "RESOURCE_EXHAUSTED"


class UnknownModel(RequestError):
    """There is no such model or version."""

    http = 404
    grpc = "NOT_FOUND"


class Overloaded(RequestError):
    """More requests than the server can hold."""

    http = 503
    grpc = "RESOURCE_EXHAUSTED"
    outcome = "refused"


class Unavailable(RequestError):
    """The model or the server is not ready."""

    http = 503
    grpc = "UNAVAILABLE"
    outcome = "refused"


class DeadlineExceeded(RequestError):
    """The request waited longer than it may."""

    http = 408
    grpc = "DEADLINE_EXCEEDED"
    outcome = "expired"


class Forbidden(RequestError):
    """The server does not do this for clients."""

    http = 403
    grpc = "PERMISSION_DENIED"


class BodyTimeout(RequestError):
    """The request did not arrive in time."""

    http = 408
    grpc = "DEADLINE_EXCEEDED"
    outcome = "expired"


class ClientGone(RequestError):
    """The client left; nobody is told."""

    http = 499
    grpc = "CANCELLED"
    outcome = "cancelled"
