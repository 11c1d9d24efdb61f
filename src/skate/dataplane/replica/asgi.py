"""An ASGI application at the callee's end: scope from the head, receive and send over the exchange.

Law: an answer that is whole goes out as one reply. An answer that announces no length streams, head first. WebSocket
messages are ASGI messages in msgpack, one a chunk, in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec
from starlette.types import ASGIApp, Message, Scope
from starlette.websockets import WebSocketDisconnect

from skate.dataplane.replica.request import HttpInput, Incoming, http_scope
from skate.dataplane.wire.head import HttpHead, ReplyHead

WITHOUT_BODY = (204, 304)
LAST_MAX = 64 * 1024  # bytes that go along with the head or the end of a stream; more waits for credit, in pieces
GONE_CODE = 1006  # the WebSocket close code for "the connection ended without a word"
NORMAL_CODE = 1000


class Outgoing(Protocol):
    """Where an answer goes: the exchange, as far as it is needed here."""

    def reply_http(self, head: ReplyHead, data: bytes) -> None: ...
    async def start_http(self, head: ReplyHead, data: bytes = b"") -> None: ...
    async def send(self, data: bytes) -> None: ...
    async def send_body(self, data: bytes) -> None: ...
    def end(self, data: bytes = b"") -> None: ...


class HttpOutput:
    """The ASGI ``send`` of an HTTP call."""

    __slots__ = ("_held", "_incoming", "_outgoing", "_phase")

    def __init__(self, incoming: Incoming, outgoing: Outgoing) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._held: tuple[ReplyHead, bytes] | None = None
        self._phase = "start"  # -> head (held back) -> body (streaming) -> end

    @property
    def begun(self) -> bool:
        """Whether anything was sent that can't be taken back."""
        return self._phase == "body" or (self._phase == "end" and self._held is None)

    @property
    def complete(self) -> bool:
        return self._phase == "end"

    def release(self) -> None:
        """Sends the answer that was held back, if one was."""
        if self._phase == "end" and self._held is not None:
            held, self._held = self._held, None
            self._outgoing.reply_http(*held)

    async def __call__(self, message: Message) -> None:
        if self._incoming.cancel_reason is not None:
            raise OSError("the client is gone")
        kind = message["type"]
        if kind == "http.response.body" and self._phase in ("head", "body"):
            await self._body(message.get("body", b""), message.get("more_body", False))
        elif kind == "http.response.start" and self._phase == "start":
            headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
            await self._start(ReplyHead(message["status"], headers))
        else:
            raise RuntimeError(f"the ASGI application sent {kind!r} out of turn (in phase {self._phase!r})")

    async def _start(self, head: ReplyHead) -> None:
        if head.status in WITHOUT_BODY or any(name.lower() == b"content-length" for name, _ in head.headers):
            self._phase, self._held = "head", (head, b"")
        else:
            self._phase = "body"
            await self._outgoing.start_http(head)

    async def _body(self, body: Any, more: bool) -> None:
        data = body if type(body) is bytes else bytes(body)
        held, self._held = self._held, None
        if held is not None and more:
            self._phase = "body"
            if len(data) <= LAST_MAX:
                await self._outgoing.start_http(held[0], data)
            else:
                await self._outgoing.start_http(held[0])
                await self._outgoing.send_body(data)
        elif held is not None:
            self._phase = "end"
            self._whole(held[0], data)
        elif more:
            await self._outgoing.send_body(data)
        else:
            if len(data) > LAST_MAX:
                await self._outgoing.send_body(data)
                data = b""
            self._phase = "end"
            self._outgoing.end(data)

    def _whole(self, head: ReplyHead, data: bytes) -> None:
        if head.status == 500 and data == b"Internal Server Error":
            self._held = (head, data)  # Starlette says so and then raises: the error says more than this does
        else:
            self._outgoing.reply_http(head, data)


async def serve_http(
    app: ASGIApp, http: HttpHead, incoming: Incoming, outgoing: Outgoing, state: Mapping[str, Any] | None = None
) -> BaseException | None:
    """Lets the application answer an HTTP call. Raises what it raises while nothing was answered or the answer is
    incomplete; an error after a complete answer is returned, to be logged.
    """
    scope = http_scope(http)
    if state is not None:
        scope["state"] = dict(state)
    output = HttpOutput(incoming, outgoing)
    try:
        await app(scope, HttpInput(incoming), output)
    except Exception as error:
        if not (output.complete and output.begun):
            raise
        return error
    output.release()
    if not output.complete:
        raise RuntimeError(
            "the ASGI application returned " + ("in the middle of its answer" if output.begun else "without an answer")
        )
    return None


# -- WebSocket ----------------------------------------------------------------------------------

encode_message = msgspec.msgpack.Encoder().encode
decode_message = msgspec.msgpack.Decoder(dict[str, Any]).decode


def websocket_scope(http: HttpHead) -> Scope:
    """The ASGI scope of a WebSocket connection."""
    scope = http_scope(http)
    del scope["method"]
    scope["type"] = "websocket"
    scope["scheme"] = {"http": "ws", "https": "wss"}.get(http.scheme, http.scheme)
    scope["subprotocols"] = http.subprotocols
    return scope


class WebSocketBridge:
    """ASGI receive and send of one WebSocket connection."""

    __slots__ = ("_incoming", "_outgoing", "accepted", "closed", "connected", "gone")

    def __init__(self, incoming: Incoming, outgoing: Outgoing) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self.connected = False
        self.accepted = False
        self.closed = False  # we said the last word
        self.gone = False  # the client did

    async def receive(self) -> Message:
        if not self.connected:
            self.connected = True
            return {"type": "websocket.connect"}
        if self.gone:
            return {"type": "websocket.disconnect", "code": GONE_CODE, "reason": ""}
        chunk = await self._incoming.receive()
        if chunk is None:
            self.gone = True
            code = NORMAL_CODE if self.closed else GONE_CODE
            return {"type": "websocket.disconnect", "code": code, "reason": self._incoming.cancel_reason or ""}
        message = decode_message(chunk)
        self.gone = message["type"] == "websocket.disconnect"
        return message

    async def send(self, message: Message) -> None:
        if self.closed:
            raise RuntimeError(f"the ASGI application sent {message['type']!r} after it had closed the WebSocket")
        if self.gone or self._incoming.complete or self._incoming.cancel_reason is not None:
            raise OSError("the client is gone")  # also while its goodbye waits for a receive()
        self.accepted = self.accepted or message["type"] == "websocket.accept"
        await self._outgoing.send(encode_message(message))
        if message["type"] == "websocket.close":
            self.closed = True
            self._outgoing.end()


async def serve_websocket(
    app: ASGIApp, http: HttpHead, incoming: Incoming, outgoing: Outgoing, state: Mapping[str, Any] | None = None
) -> BaseException | None:
    """Lets the application talk to a WebSocket until it returns; closes it then, if nobody did.

    Errors come out as from ``serve_http``: raised while the connection is open, returned once it was closed.
    """
    scope = websocket_scope(http)
    if state is not None:
        scope["state"] = dict(state)
    bridge = WebSocketBridge(incoming, outgoing)
    try:
        await app(scope, bridge.receive, bridge.send)
    except Exception as error:
        if not bridge.closed and not bridge.gone:
            raise
        outgoing.end()
        return None if bridge.gone and isinstance(error, OSError | WebSocketDisconnect) else error
    if not bridge.closed and not bridge.gone:
        await bridge.send({"type": "websocket.close", "code": NORMAL_CODE, "reason": ""})
    outgoing.end()
    return None
