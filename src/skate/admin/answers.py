"""Answers as JSON. Law: every failure has one shape (``Failure``), whoever finds it; tracebacks of ours stay here."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from starlette.responses import Response

from skate.core.errors import (
    CallTimeoutError,
    NotRunningError,
    OptionError,
    RequestCancelledError,
    SkateError,
    http_status,
)

logger = logging.getLogger("skate.admin")

LATER = {"retry-after": "1"}  # second; a controller that died is back within it
AWAY = "the controller of this instance is away; it is being started again. Ask again in a moment"
LOST = "the controller ended while this was asked; it is being started again. Look at the status before you ask again"
_encode = msgspec.json.Encoder(enc_hook=str).encode


class FailureBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a client reads of a failure. ``mistakes``: each of several on its own."""

    type: str
    message: str
    mistakes: tuple[str, ...] = ()


class Failure(Exception):
    """A request that is answered with this status."""

    def __init__(
        self,
        status: int,
        type: str,
        message: str,
        mistakes: tuple[str, ...] = (),
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = FailureBody(type, message, mistakes)
        self.headers = headers


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Any value of ours as JSON."""
    return Response(_encode(value), status, headers, "application/json")


def failure_response(failure: Failure) -> Response:
    """The answer that a failure is."""
    return json_response(failure.body, failure.status, failure.headers)


def failure_of(error: Exception) -> Failure:
    """What a request is answered that ended with this error; what is no error of the tree is logged, and not told."""
    name = type(error).__name__
    if isinstance(error, Failure):
        return error
    if isinstance(error, NotRunningError):
        return Failure(503, name, str(error) or AWAY, headers=LATER)
    if isinstance(error, RequestCancelledError):  # what a control call says whose connection was lost
        return Failure(503, NotRunningError.__name__, LOST, headers=LATER)
    if isinstance(error, CallTimeoutError):
        return Failure(504, name, str(error), headers=LATER)
    if isinstance(error, OptionError):
        return Failure(400, name, str(error), mistakes_of(error))
    if isinstance(error, SkateError):
        return Failure(http_status(error), name, str(error))
    logger.error("a request failed", exc_info=error)
    return Failure(500, "InternalError", f"Skate itself failed with {name}; its log says more")


def mistakes_of(error: OptionError) -> tuple[str, ...]:
    """The mistakes that one error tells of, each on its own."""
    lines = tuple(line.strip() for line in str(error).splitlines() if line.strip())
    return tuple(getattr(error, "mistakes", ())) or lines
