"""The HTTP request as user code sees it: a Starlette Request that is built lazily and can travel between processes.

Law: building one touches nothing but two attributes; scope, body and receive come into being when somebody looks.
``scope["path"]`` and ``request.url.path`` are the full path as the client sent it, for plain handlers as for ASGI
applications; ``scope["root_path"]`` is the part of it that belongs to the route prefix, so links and redirects come
out right with today's Starlette.
"""

from __future__ import annotations

import asyncio
import copyreg
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Protocol

import msgspec
import starlette.requests
from starlette.types import Message, Scope

from skate.core.errors import CodeError
from skate.dataplane.handle import resolve_with
from skate.dataplane.wire.head import HttpHead, decode_http

ASGI_VERSION = {"version": "3.0", "spec_version": "2.4"}  # 2.4: send raises OSError once the client is gone
TRAVELLING = (  # what of a scope goes along to another process; the rest are live objects of this one
    "type",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "root_path",
    "headers",
    "client",
    "server",
    "path_params",
)


class Incoming(Protocol):
    """The caller's side of a call, as far as a request needs it."""

    @property
    def body(self) -> bytes: ...  # what came with the call
    @property
    def whole(self) -> bool: ...  # that was all of it
    @property
    def cancel_reason(self) -> str | None: ...
    @property
    def complete(self) -> bool: ...  # the last chunk has arrived by now, taken or not
    async def receive(self) -> bytes | None: ...  # the next chunk, None at the end or when the caller is gone
    async def gone(self) -> None: ...  # until the call has ended, whichever way


class Json(Coroutine[Any, Any, Any]):
    """The body as JSON, to be: ``await r.json()``, ``await r.json()["name"]`` and ``gather(r.json())`` all work."""

    __slots__ = ("_path", "_request", "_running")

    def __init__(self, request: Request, path: tuple[Any, ...] = ()) -> None:
        self._request = request
        self._path = path
        self._running: Coroutine[Any, Any, Any] | None = None

    def __getitem__(self, key: Any) -> Json:
        return Json(self._request, (*self._path, key))

    def __await__(self) -> Generator[Any, None, Any]:
        return self._value().__await__()

    async def _value(self) -> Any:
        value = await self._request.parsed_json()
        for key in self._path:
            value = value[key]
        return value

    def send(self, value: Any) -> Any:
        if self._running is None:
            self._running = self._value()
        return self._running.send(value)

    def throw(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
    ) -> Any:
        if self._running is None:
            self._running = self._value()
        error = typ if isinstance(typ, BaseException) else val if isinstance(val, BaseException) else typ()
        return self._running.throw(error)

    def close(self) -> None:
        if self._running is not None:
            self._running.close()


class HttpInput:
    """The ASGI ``receive`` of a call: its body in messages, then a disconnect once the call has ended."""

    __slots__ = ("_first", "_incoming", "_more")

    def __init__(self, incoming: Incoming) -> None:
        self._incoming = incoming
        self._first = True
        self._more = not incoming.whole

    async def __call__(self) -> Message:
        incoming = self._incoming
        if self._first:
            self._first = False
            return {"type": "http.request", "body": incoming.body, "more_body": self._more}
        if self._more:
            chunk = await incoming.receive()
            if chunk is not None:
                return {"type": "http.request", "body": chunk, "more_body": True}
            self._more = False
            if incoming.cancel_reason is None:
                return {"type": "http.request", "body": b"", "more_body": False}
        await incoming.gone()
        return {"type": "http.disconnect"}


class Replay:
    """The ASGI ``receive`` of a request whose body came along with it."""

    __slots__ = ("_body",)

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body

    async def __call__(self) -> Message:
        body, self._body = self._body, None
        if body is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": body, "more_body": False}


class Request(starlette.requests.Request):
    """A Starlette Request. Its body is kept, so it can be read again and again and sent on through handles.

    ``.json()`` can be subscripted before it is awaited. Pickling needs the body in hand (``needs_body`` is False);
    what travels is the plain part of the scope and the body, not ``request.state`` and other live objects.
    """

    _incoming: Incoming | None = None
    _http: msgspec.Raw | None = None
    _stream_consumed = False
    _is_disconnected = False
    _form = None
    _reading: asyncio.Lock | None = None
    _send = staticmethod(starlette.requests.empty_send)

    @classmethod
    def of(cls, http: msgspec.Raw, incoming: Incoming) -> Request:
        """The request that came with a call; its head is decoded when somebody looks."""
        request = cls.__new__(cls)
        request._http = http
        request._incoming = incoming
        return request

    @classmethod
    def rebuilt(cls, scope: Scope, body: bytes) -> Request:
        """The request as it was in another process."""
        request = cls.__new__(cls)
        request.scope = scope
        request._body = body
        request._receive = Replay(body)
        return request

    @classmethod
    def empty(cls) -> Request:
        """GET / without body: what a one-parameter target gets when it is called through a handle with nothing."""
        return cls.rebuilt(dict(_EMPTY_SCOPE, headers=[], asgi=dict(ASGI_VERSION)), b"")

    def __getattr__(self, name: str) -> Any:
        make = _LAZY.get(name)
        if make is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        value = self.__dict__[name] = make(self)
        return value

    @property
    def needs_body(self) -> bool:
        """Whether ``await request.body()`` is due before this request can be sent to another process."""
        return not hasattr(self, "_body")

    async def body(self) -> bytes:
        """The whole body; kept."""
        if hasattr(self, "_body"):
            return self._body
        if self._reading is None:
            self._reading = asyncio.Lock()
        async with self._reading:  # two readers at once would steal each other's chunks
            return await super().body()

    def json(self) -> Json:
        """The body parsed as JSON: awaitable, and subscriptable before or after the await."""
        return Json(self)

    async def parsed_json(self) -> Any:
        """What awaiting ``json()`` gives."""
        return await super().json()

    async def is_disconnected(self) -> bool:
        """Whether the client has gone (or the call was cancelled otherwise). Lets the loop run once, to hear of it."""
        incoming = self._incoming
        if incoming is None:
            return False if isinstance(self._receive, Replay) else await super().is_disconnected()
        await asyncio.sleep(0)
        return incoming.cancel_reason is not None

    def __reduce__(self) -> tuple[Any, ...]:
        return reduce_request(self)


def http_scope(http: HttpHead) -> Scope:
    """The ASGI scope of a plain HTTP request."""
    return {
        "type": "http",
        "asgi": dict(ASGI_VERSION),
        "http_version": http.http_version,
        "method": http.method,
        "scheme": http.scheme,
        "path": http.path,
        "raw_path": http.raw_path,
        "query_string": http.query,
        "root_path": http.root_path,
        "headers": http.headers,
        "client": http.client,
        "server": http.server,
    }


_EMPTY_SCOPE: Scope = http_scope(HttpHead("GET", "http", "/", b"/", b"", "", []))


def _lazy_scope(request: Request) -> Scope:
    if request._http is None:
        raise AttributeError("scope")
    return http_scope(decode_http(request._http))


def _lazy_receive(request: Request) -> HttpInput:
    if request._incoming is None:
        raise AttributeError("_receive")
    return HttpInput(request._incoming)


def _lazy_body(request: Request) -> bytes:
    incoming = request._incoming
    if incoming is None or not incoming.whole:
        raise AttributeError("_body")
    return incoming.body


_LAZY: dict[str, Callable[[Request], Any]] = {"scope": _lazy_scope, "_receive": _lazy_receive, "_body": _lazy_body}


# -- travelling ---------------------------------------------------------------------------------


def needs_body(value: object) -> bool:
    """Whether ``value`` is a request, ours or Starlette's, whose ``await value.body()`` is due before it is sent on."""
    return isinstance(value, starlette.requests.Request) and not hasattr(value, "_body")


def reduce_request(request: starlette.requests.Request) -> tuple[Any, ...]:
    """How a request pickles, ours and Starlette's alike. Raises CodeError while its body is not in hand."""
    if not hasattr(request, "_body"):
        how = "was read as a stream and is gone" if request._stream_consumed else "is not read yet"
        raise CodeError(
            f"The request {request.method} {request.url.path} cannot be sent to another process: its body {how}. "
            "Call `await request.body()` first (before stream() or form())."
        )
    scope = {key: request.scope[key] for key in TRAVELLING if key in request.scope}
    return _rebuild, (scope, request._body)


def _rebuild(scope: dict[str, Any], body: bytes) -> Request:
    return Request.rebuilt({**scope, "asgi": dict(ASGI_VERSION)}, body)


async def _with_body(request: Any) -> Any:
    await request.body()
    return request


for _kind in (Request, starlette.requests.Request):  # requests of FastAPI routes travel too
    copyreg.pickle(_kind, reduce_request)
    resolve_with(_kind, _with_body)
