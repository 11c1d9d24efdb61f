"""WebSockets: one connection is one call whose chunks, both ways, are ASGI messages in msgpack.

Law: the handshake is answered by the application, or with the HTTP status of what prevented that; after it the
connection ends with a close code that says why. The ``websocket.connect`` message is not sent: the call itself says it.
A client that leaves is told to the application as ``websocket.disconnect``; an application that then does not end
within ``LEAVE_GRACE_S`` is cancelled. A request timeout does not apply: a connection may live long.

What Granian 2.8.7 does (measured): it drops additional headers of an accept; an abnormal end shows as code 1005; it
answers a close before the accept with 403, and knows ``websocket.http.response``; send() on a closed connection is
silently ignored; send() of a close waits for ever while a receive() is under way; once the server was told to stop,
nothing is sent on a WebSocket any more, so the sockets must be closed before that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

import msgspec

from skate.core.errors import BackPressureError, DeploymentUnavailableError, SkateError
from skate.dataplane.proxy.answers import TEXT_TYPE, Answer, of_error
from skate.dataplane.proxy.headers import REQUEST_ID, answer_headers, read_headers
from skate.dataplane.proxy.http_call import GONE, Receive, Reception, Send
from skate.dataplane.transport.failure import UserFailure
from skate.dataplane.wire.head import WEBSOCKET

if TYPE_CHECKING:
    from skate.dataplane.proxy.app import Proxy

logger = logging.getLogger("skate.proxy")

LEAVE_GRACE_S = 10.0
REASON_MAX = 123  # bytes of a close reason, RFC 6455

NORMAL, SERVER_ERROR, RESTART, LATER = 1000, 1011, 1012, 1013

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode
_RESPONSE = "websocket.http.response"


async def serve_websocket(proxy: Proxy, scope: Any, receive: Receive, send: Send) -> None:
    """Relays one WebSocket connection."""
    await receive()  # websocket.connect
    path = proxy.local_path(scope["path"])
    headers = [pair for pair in scope["headers"] if pair[0] == REQUEST_ID]
    line = read_headers(headers, None, "1.1")
    socket = Socket(scope, send, line.request_id)
    mount = None if path.startswith("/-/") else proxy.table.match(path)
    if mount is None or proxy.draining:
        await socket.reject(proxy.no_answer(path))
        return
    call = Reception(mount.deployment_key, proxy.call_head(scope, mount, path, line, WEBSOCKET), None)
    proxy.sockets[call] = asyncio.current_task()
    proxy.router.submit(call, b"", False)
    socket.reader = asyncio.ensure_future(_up(call, receive))
    try:
        await _down(call, socket)
        await socket.finish(call, proxy.options.show_traceback)
    finally:
        proxy.sockets.pop(call, None)
        call.cancel(GONE)
        await socket.stop_reading()


async def _up(call: Reception, receive: Receive) -> None:
    """What the client sends, to the application, as fast as that takes it."""
    while (message := await receive())["type"] != "websocket.disconnect":
        await call.send(_encode(message))
    if call.link is not None:  # a replica has the call
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_GRACE_S):
                await call.send(_encode(message), True)
                await asyncio.Event().wait()
    call.cancel(GONE)


async def _down(call: Reception, socket: Socket) -> None:
    """What the application says, to the client, until the call ends."""
    while True:
        for data in call.take():
            if not await call.write(socket.say, _decode(data)):
                return
            call.consumed(len(data))
        if call.outcome is not None and not call.chunks:
            return
        if not call.chunks:
            await call.news()


class Socket:
    """The client's side of a connection: what was said to it, so that the end can be said right."""

    def __init__(self, scope: Any, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self._can_answer = _RESPONSE in (scope.get("extensions") or {})
        self._answering = False  # the application rejects with an HTTP answer of its own
        self._accepted = False
        self._over = False
        self.reader: asyncio.Future[None] | None = None

    async def stop_reading(self) -> None:
        """Ends the task that reads. Needed before a close: Granian's send() of one waits for a receive() under way."""
        reader, self.reader = self.reader, None
        if reader is not None:
            reader.cancel()
            await asyncio.wait([reader])
            if not reader.cancelled() and (error := reader.exception()) is not None:
                logger.error("reading from the WebSocket of request %s failed", self._request_id, exc_info=error)

    async def say(self, message: Any) -> None:
        """Passes on one message of the application; what comes after the end is dropped."""
        kind = message["type"]
        if self._over:
            return
        if kind == "websocket.accept":
            self._accepted = True
        elif kind == "websocket.close":
            self._over = True
            message = _close(message.get("code"), message.get("reason") or "")
        elif kind == f"{_RESPONSE}.start":
            self._answering = True
            if not self._can_answer:
                self._over = True
                message = _close(NORMAL, "")
            else:
                message["headers"] = answer_headers(_pairs(message), self._request_id.encode("ascii"))
        elif kind == f"{_RESPONSE}.body":
            self._over = not message.get("more_body", False)
        if self._over:
            await self.stop_reading()
        await self._send(message)

    async def finish(self, call: Reception, show_traceback: bool) -> None:
        """The call has ended: if the connection has not, says how."""
        error = call.override or call.error
        if self._over or self._answering:
            return
        await self.stop_reading()
        if self._accepted:
            self._over = True
            await self._send(_close(NORMAL, "") if error is None else _close_of(error, self._request_id))
        elif error is None:
            await self._send(_close(NORMAL, ""))  # neither accepted nor rejected: 403
        else:
            await self.reject(of_error(error, self._request_id, show_traceback))

    async def reject(self, answer: Answer) -> None:
        """Answers the handshake with an HTTP error."""
        self._over = True
        if not self._can_answer:
            await self._send(_close(NORMAL, answer.text))
            return
        headers = [TEXT_TYPE, *answer.headers, (REQUEST_ID, self._request_id.encode("ascii"))]
        await self._send({"type": f"{_RESPONSE}.start", "status": answer.status, "headers": headers})
        await self._send({"type": f"{_RESPONSE}.body", "body": answer.text.encode("utf-8", "replace")})


def _pairs(message: Any) -> list[tuple[bytes, bytes]]:
    return [(bytes(name), bytes(value)) for name, value in message.get("headers") or []]


def _close_of(error: BaseException, request_id: str) -> dict[str, Any]:
    if isinstance(error, UserFailure):
        return _close(SERVER_ERROR, f"{error.failure.name} in request {request_id}")
    if isinstance(error, BackPressureError):
        return _close(LATER, str(error))
    if isinstance(error, DeploymentUnavailableError):
        return _close(RESTART, str(error))
    return _close(SERVER_ERROR, str(error) if isinstance(error, SkateError) else f"request {request_id} failed")


def _close(code: Any, reason: str) -> dict[str, Any]:
    """A close message with a code that may be sent and a reason that fits."""
    if not isinstance(code, int) or not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        code = NORMAL if code is None or code == 1005 else SERVER_ERROR
    cut = reason.encode("utf-8", "replace")[:REASON_MAX].decode("utf-8", "ignore")
    return {"type": "websocket.close", "code": code, "reason": cut}
