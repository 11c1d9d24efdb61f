"""What an endpoint is: one declaration that routes, checks and documents it.

Law: a handler gets plain values that were checked against its declaration and gives a value; HTTP is dealt with here.
What is not declared (a query parameter, a field of a body) is refused, not ignored.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from skate.admin.answers import Failure, failure_of, failure_response, json_response
from skate.admin.body import read_json

_TRUTH = {"true": True, "1": True, "false": False, "0": False}


class FileBody(msgspec.Struct, frozen=True):
    """Stands for the content of a file (see ``skate schema``)."""


class ApplicationBody(msgspec.Struct, frozen=True):
    """Stands for one application as a file has it; its name may be left out."""


PLAIN_BODIES = (FileBody, ApplicationBody)  # read by their handlers, with the checks of files


@dataclass(frozen=True, slots=True)
class Parameter:
    """One query parameter. ``schema``: integer (with minimum, maximum), boolean, enum, or string."""

    name: str
    about: str
    schema: Mapping[str, Any]
    default: Any = None

    def read(self, text: str) -> Any:
        """Raises Failure."""
        kind = self.schema.get("type")
        if kind == "boolean" and text.lower() in _TRUTH:
            return _TRUTH[text.lower()]
        if kind == "integer" and text.isascii() and text.isdigit() and len(text) <= 15:
            low, high = self.schema.get("minimum", 0), self.schema.get("maximum")
            if low <= int(text) and (high is None or int(text) <= high):
                return int(text)
        if kind == "string" and text in self.schema.get("enum", (text,)):
            return text
        raise Failure(400, "BadParameter", f"{self.name}={text[:80]!r}: takes {_words(kind, self.schema)}")


def _words(kind: str | None, schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return " or ".join(map(repr, schema["enum"]))
    if kind == "integer":
        low, high = schema.get("minimum", 0), schema.get("maximum")
        return f"a whole number from {low}" + (f" to {high}" if high is not None else " on")
    return "true or false" if kind == "boolean" else "text"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that fits its endpoint. ``by``: who asks, in words."""

    path: Mapping[str, str]
    query: Mapping[str, Any]
    body: Any
    by: str


Handler = Callable[[Any, Asked], Awaitable[Any]]  # the first argument is the Api


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of one path. ``answer``: the type of what the handler gives, or Response if that is a text.

    ``body``: the type of what is sent, one of PLAIN_BODIES, or None. ``failures``: statuses beside those of all.
    """

    method: str
    path: str
    handler: Handler
    about: str
    answer: Any
    body: type[msgspec.Struct] | None = None
    optional: bool = False  # the body may be left out
    query: tuple[Parameter, ...] = ()
    failures: tuple[int, ...] = field(default=())


async def respond(endpoint: Endpoint, api: Any, request: Request) -> Response:
    """The answer to a request."""
    try:
        value = await endpoint.handler(api, await _asked(endpoint, request))
    except Exception as error:
        return failure_response(failure_of(error))
    return value if isinstance(value, Response) else json_response(value)


async def _asked(endpoint: Endpoint, request: Request) -> Asked:
    query = {one.name: one.default for one in endpoint.query}
    known = {one.name: one for one in endpoint.query}
    for name, text in request.query_params.multi_items():
        if name not in known:
            takes = ", ".join(known) or "none"
            raise Failure(400, "BadParameter", f"there is no query parameter {name[:80]!r} here; there are: {takes}")
        query[name] = known[name].read(text)
    client = "somebody" if request.client is None else request.client.host
    return Asked(request.path_params, query, await _body(endpoint, request), f"REST from {client}")


async def _body(endpoint: Endpoint, request: Request) -> Any:
    read = await read_json(request)
    if endpoint.body is None:
        if read is not None:
            raise Failure(400, "MalformedBody", f"{endpoint.method} takes no body here")
        return None
    if read is None:
        if endpoint.optional:
            return endpoint.body()
        raise Failure(400, "MalformedBody", f"a body is missing: {endpoint.about}")
    if endpoint.body in PLAIN_BODIES:
        return read
    try:
        return msgspec.convert(read, endpoint.body)
    except msgspec.ValidationError as error:
        raise Failure(400, "MalformedBody", f"the body does not fit: {error}") from None
