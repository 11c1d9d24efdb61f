"""The proxy as an ASGI application. Law: every request gets one answer, or its connection is cut.

The common request takes one way: headers scanned once, route by dictionary, one call record, one wait, two sends.
What is rarer (bodies in chunks, streams, errors, clients that go away) leaves that way and pays for itself: a task
reads a long body; clients are watched only when their answer takes longer than ``WATCH_AFTER_S``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from typing import Any

import msgspec

from skate.core.clock import Clock
from skate.core.errors import CallTimeoutError, DeploymentUnavailableError, PayloadTooLargeError, SkateError
from skate.core.specs import HttpOptions, Route
from skate.dataplane.proxy.answers import JSON_TYPE, TEXT_TYPE, Answer, not_found, not_ready, of_error
from skate.dataplane.proxy.headers import (
    LENGTH_UNKNOWN,
    REQUEST_ID,
    BadHeaderError,
    Headers,
    RequestLine,
    read_headers,
    stream_headers,
    whole_headers,
)
from skate.dataplane.proxy.http_call import GONE, HttpCall, Receive, Reception, Send
from skate.dataplane.proxy.websocket import serve_websocket
from skate.dataplane.router import Router
from skate.dataplane.routing.routes import Mount, RouteTable
from skate.dataplane.wire.head import HTTP, CallHead, HttpHead

logger = logging.getLogger("skate.proxy")

WATCH_AFTER_S = 0.05  # a client that goes away is noticed this much later; faster answers are never watched
GATHER_MAX = 64 * 1024  # bytes; a body of known length up to this is read whole before a replica is given the request

NOT_READY = "No application has been deployed yet."
BROKEN = "the body ended before it was complete, or its chunks are malformed"
DRAINING = "This proxy is being stopped."

_OWN = "/-/"


class BodyError(SkateError):
    """A request's body did not come as announced."""

    status, grpc, fault = 400, "INVALID_ARGUMENT", "caller"


class Proxy:
    """Serves the applications behind one Router over HTTP and WebSocket."""

    def __init__(self, router: Router, options: HttpOptions, clock: Clock) -> None:
        self.router = router
        self.options = options
        self.clock = clock
        self.root_path = options.root_path.rstrip("/")
        self.table = RouteTable()
        self.ready = False  # an application was there once; stays true while the last one is replaced
        self.draining = False
        self.open: set[Reception] = set()  # requests under way
        self.sockets: dict[Reception, asyncio.Task[Any] | None] = {}  # WebSockets and who serves them
        self._unwatched: list[HttpCall] = []
        router.on_routes = self.set_routes
        self.set_routes(router.routes)

    def set_routes(self, routes: tuple[Route, ...]) -> None:
        """Takes the routes of a snapshot."""
        self.table = RouteTable(routes, self.root_path)
        self.ready = self.ready or bool(routes)

    def __call__(self, scope: Any, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """ASGI. No coroutine of its own: each one on the way costs every resumption."""
        if scope["type"] == "http":
            return self._serve(scope, receive, send)
        if scope["type"] == "websocket":
            return serve_websocket(self, scope, receive, send)
        raise ValueError(f"the proxy has no use for ASGI scope type {scope['type']!r}")

    # -- the way of a request -------------------------------------------------------------------

    async def _serve(self, scope: Any, receive: Receive, send: Send) -> None:
        path = self.local_path(scope["path"])
        try:
            line = read_headers(scope["headers"], self.options.request_timeout_s, scope["http_version"])
        except BadHeaderError as error:
            line = read_headers([pair for pair in scope["headers"] if pair[0] == REQUEST_ID], None, "1.1")
            await self._say(send, of_error(error, line.request_id), line.request_id)
            return
        mount = None if path.startswith(_OWN) else self.table.match(path)
        if mount is None:
            await self._say(send, self._own_answer(path), line.request_id)
            return
        if line.length > self.options.max_body_bytes:
            await self._say(send, of_error(self.too_large(line.length), line.request_id), line.request_id)
            return
        deadline = None if line.timeout_s is None else self.clock.now() + line.timeout_s
        body, complete = b"", True
        if line.length != 0:
            try:
                async with asyncio.timeout(line.timeout_s):
                    first = await self._first_body(receive, line.length)
            except TimeoutError:
                await self._say(send, of_error(_late_body(line), line.request_id), line.request_id)
                return
            if first is None:
                await self._say(send, of_error(BodyError(BROKEN), line.request_id), line.request_id)
                return
            body, complete = first
            if len(body) > self.options.max_body_bytes:
                await self._say(send, of_error(self.too_large(len(body)), line.request_id), line.request_id)
                return
        call = HttpCall(mount.deployment_key, self.call_head(scope, mount, path, line), deadline)
        self.open.add(call)
        try:
            self.router.submit(call, body, complete)
            if complete:
                call.receive = receive
                self.watch_later(call)
                await self._answer(call, send, scope["method"] == "HEAD")
            else:
                await self._answer_upload(call, len(body), receive, send)
        finally:
            self.open.discard(call)
            call.unwatch()
            if call.outcome is None:
                call.cancel(GONE)

    async def _first_body(self, receive: Receive, length: int) -> tuple[bytes, bool] | None:
        """The beginning of the body and whether that is all of it; None if the client left or sent nonsense."""
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body: bytes = message.get("body", b"")
        while message.get("more_body", False):
            # Granian marks the last piece of a body as not the last and sends an empty one behind it
            if len(body) == length:
                return body, True
            if length == LENGTH_UNKNOWN or length > GATHER_MAX:
                return body, False
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
        return body, True

    async def _answer_upload(self, call: HttpCall, size: int, receive: Receive, send: Send) -> None:
        """Answers while the body still comes in; a handler may answer before it has read all."""
        pump = asyncio.ensure_future(self._pump(call, size, receive))
        try:
            await self._answer(call, send, False)
        finally:
            pump.cancel()
            await asyncio.wait([pump])
            if not pump.cancelled() and (error := pump.exception()) is not None:
                logger.error("reading the body of request %s failed", call.request_id, exc_info=error)

    async def _pump(self, call: HttpCall, size: int, receive: Receive) -> None:
        """Hands the body on as the replica takes it, then listens for the client's leaving."""
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    call.override = BodyError(BROKEN)
                    call.cancel(GONE)
                    return
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > self.options.max_body_bytes:
                    call.fail(self.too_large(size))
                    return
                if not message.get("more_body", False):
                    await call.send(chunk, True)
                    break
                if chunk:
                    await call.send(chunk)
        except Exception as error:
            call.fail(error)
            raise
        call.receive = receive
        call.watch()

    # -- the way of an answer -------------------------------------------------------------------

    async def _answer(self, call: HttpCall, send: Send, is_head: bool) -> None:
        while call.reply is None and call.outcome is None:
            await call.news()
        reply, error = call.reply, call.override or call.error
        if error is not None:
            await self._say(send, of_error(error, call.request_id, self.options.show_traceback), call.request_id)
            return
        if reply is None or not 200 <= reply.status <= 999:  # Granian 2.8.7 aborts the process on other statuses
            call.cancel("the answer has no usable status")
            await self._say(send, _unusable(call, f"status {reply.status if reply else None}"), call.request_id)
            return
        request_id = call.head.request_id.encode("ascii")
        whole = call.outcome is not None
        body = _joined(call.take()) if whole else b""
        headers = (
            whole_headers(reply.headers, request_id, len(body), reply.status, is_head)
            if whole
            else stream_headers(reply.headers, request_id)
        )
        try:
            await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        except RuntimeError:  # how Granian refuses a header; it takes another start after that
            call.cancel("the answer has an unusable header")
            await self._say(send, _unusable(call, "a header"), call.request_id)
            return
        if whole:
            await send({"type": "http.response.body", "body": body})
        else:
            await self._stream(call, send)

    async def _stream(self, call: HttpCall, send: Send) -> None:
        """Sends pieces as they come, at the client's pace. Returning before the last piece cuts the connection."""
        call.watch()  # from here on at once: what is sent to a client that has left, Granian takes without a word
        while True:
            chunks = call.take()
            data = _joined(chunks)
            ended = call.outcome is not None
            if call.error is not None:
                return
            if ended:
                await call.write(send, {"type": "http.response.body", "body": data})
                return
            if data and not await call.write(send, {"type": "http.response.body", "body": data, "more_body": True}):
                return
            for chunk in chunks:
                call.consumed(len(chunk))
            if not call.chunks and call.outcome is None:
                await call.news()

    # -- clients that go away -------------------------------------------------------------------

    def watch_later(self, call: HttpCall) -> None:
        """Watches the call's client if it is still under way in a while. One timer serves all calls."""
        if not self._unwatched:
            self.router.loop.call_later(WATCH_AFTER_S, self._watch_waiting)
        self._unwatched.append(call)

    def _watch_waiting(self) -> None:
        waiting, self._unwatched = self._unwatched, []
        for call in waiting:
            call.watch()

    # -- what the proxy says itself -------------------------------------------------------------

    def _own_answer(self, path: str) -> Answer:
        if path not in ("/-/healthz", "/-/routes") or self.draining or not self.ready:
            return self.no_answer(path)
        if path == "/-/healthz":
            return Answer(200, "success")
        return Answer(200, msgspec.json.encode(self.table.table()).decode(), [JSON_TYPE])

    def no_answer(self, path: str) -> Answer:
        """Why nobody answers at this path."""
        if self.draining:
            return not_ready(DRAINING)
        return not_found(path, self.root_path) if self.ready else not_ready(NOT_READY)

    async def _say(self, send: Send, answer: Answer, request_id: str) -> None:
        body = answer.text.encode("utf-8", "replace")
        headers: Headers = [] if JSON_TYPE in answer.headers else [TEXT_TYPE]
        headers += answer.headers
        headers += [(b"content-length", b"%d" % len(body)), (REQUEST_ID, request_id.encode("ascii"))]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def too_large(self, size: int) -> PayloadTooLargeError:
        """The error of a body above the limit."""
        most = self.options.max_body_bytes
        return PayloadTooLargeError(
            f"the body has {'at least ' if size > most else ''}{size} bytes, this server takes at most {most}; "
            "send less, or raise max_body_bytes in its HTTP options"
        )

    # -- shared with WebSockets -----------------------------------------------------------------

    def local_path(self, path: str) -> str:
        """The path without the root path that a front proxy may have left in it."""
        root = self.root_path
        if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
            return path[len(root) :] or "/"
        return path

    def call_head(self, scope: Any, mount: Mount, path: str, line: RequestLine, kind: int = HTTP) -> CallHead:
        """The head of the call that this request becomes."""
        headers = scope["headers"]
        if not line.given:
            headers = [*headers, (REQUEST_ID, line.request_id.encode("ascii"))]
        raw_path = scope.get("raw_path") or b""
        if self.root_path:
            root, path = self.root_path.encode(), self.root_path + path
            raw_path = raw_path if raw_path.startswith(root) else root + raw_path
        version = scope["http_version"]
        http = HttpHead(
            scope.get("method", "GET"),
            scope["scheme"],
            path,
            raw_path,
            scope["query_string"],
            mount.root_path,
            headers,
            _address(scope.get("client")),
            _address(scope.get("server")),
            "1.0" if version == "1" else version,  # so Granian calls it
            scope.get("subprotocols", []) if kind != HTTP else [],
        )
        return CallHead(kind, "__call__", line.request_id, line.timeout_s, kind != HTTP, mount.app, mount.prefix, http)

    @staticmethod
    def end(calls: Iterable[Reception], reason: str) -> None:
        """Ends calls that may not go on; their clients are told that the service is not available."""
        for call in list(calls):
            call.fail(DeploymentUnavailableError(reason))


def _joined(chunks: list[bytes]) -> bytes:
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _address(pair: Any) -> tuple[str, int] | None:
    """Host and port; Granian gives the port as text."""
    return None if not pair or pair[1] is None else (pair[0], int(pair[1]))


def _late_body(line: RequestLine) -> CallTimeoutError:
    text = f"request {line.request_id} timed out: its body did not arrive within {line.timeout_s:.3g} s"
    return CallTimeoutError(text)


def _unusable(call: HttpCall, what: str) -> Answer:
    text = f"The application's answer to request {call.request_id} has {what} that HTTP does not allow."
    return Answer(500, f"{text} Correct it in the handler of {call.deployment_key!r}.")
