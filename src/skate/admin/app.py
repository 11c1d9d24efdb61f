"""The ASGI application: the endpoints behind the guard. Law: every answer is JSON, but for those that are text."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from functools import cache, partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from skate.admin.answers import Failure, failure_of, failure_response
from skate.admin.api import ENDPOINTS, Api
from skate.admin.endpoints import Endpoint, respond
from skate.admin.guard import Guard
from skate.admin.openapi import document


def build(api: Api, token: str | None, version: str) -> Starlette:
    """The REST API over ``api``. ``token``: what each request must bear; None: it must come from this machine."""
    api.document = cache(partial(document, ENDPOINTS, version, token is not None, {"type": "object"}))
    return Starlette(
        routes=list(_routes(api)),
        middleware=[Middleware(Guard, token=token, clock=api.clock)],
        exception_handlers={HTTPException: _http_failure, Exception: _failure},
    )


def _routes(api: Api) -> Iterable[Route]:
    by_path: dict[str, dict[str, Endpoint]] = {}
    for one in ENDPOINTS:
        by_path.setdefault(one.path, {})[one.method] = one
    for path, methods in by_path.items():
        for spelled in {path, path.rstrip("/")}:  # both: a redirect would lose the body of a PUT
            yield Route(spelled, _endpoint(api, methods), methods=list(methods))


def _endpoint(api: Api, methods: dict[str, Endpoint]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await respond(methods["GET" if request.method == "HEAD" else request.method], api, request)

    return endpoint


async def _http_failure(request: Request, error: Exception) -> Response:
    """What the routing says: no such path, no such method."""
    assert isinstance(error, HTTPException)
    allowed = dict(error.headers or {})
    if error.status_code == 405:
        said = f"{request.method} is not possible here; possible: {allowed.get('Allow', '')}"
    else:
        said = f"there is nothing at {request.url.path[:200]!r}; /openapi.json lists what there is"
    return failure_response(Failure(error.status_code, "NotFoundError", said, headers=allowed))


async def _failure(request: Request, error: Exception) -> Response:
    return failure_response(failure_of(error))
