"""WebSockets: one connection is one call whose chunks, both ways, are ASGI messages in msgpack.

Law: the handshake is answered by the application, or with the HTTP status of what prevented that; after it the
connection ends with a close code that says why. The ``websocket.connect`` message is not sent: the call itself says it.
A client that leaves is told to the application as ``websocket.disconnect``; an application that then does not end
within ``LEAVE_GRACE_S`` is cancelled. A request timeout does not apply: a connection may live long.

The frames are those of ``websockets``' protocol without I/O; it answers pings and echoes closes. No extension is
offered: compression costs more CPU and memory than a loopback or a data centre's network gives back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import msgspec
from websockets.exceptions import InvalidHeaderFormat
from websockets.frames import Close, Frame, Opcode
from websockets.headers import parse_subprotocol
from websockets.http11 import Request as Handshake
from websockets.protocol import State
from websockets.server import ServerProtocol

from skate.core.errors import BackPressureError, DeploymentUnavailableError, ReplicaStoppedError, SkateError
from skate.dataplane.call import Call
from skate.dataplane.proxy.answers import Answer, cause_of, of_error, unusable
from skate.dataplane.proxy.request import Headers, Request
from skate.dataplane.proxy.response import BadAnswerError, header_lines, status_line
from skate.dataplane.transport.failure import UserFailure
from skate.dataplane.wire.head import CallHead

if TYPE_CHECKING:
    from skate.dataplane.proxy.connection import Connection

logger = logging.getLogger("skate.proxy")
_quiet = logging.getLogger("skate.proxy.frames")  # tells of every connection
_quiet.setLevel(logging.ERROR)

LEAVE_GRACE_S = 10.0
MESSAGE_MAX = 16 * 1024 * 1024  # bytes of one message of a client
REJECTION_MAX = 1024 * 1024  # bytes of the body of an application's refusal
STEP = 16 * 1024  # bytes read at a time, so that what they hold (messages of a few bytes) stays little
REASON_MAX = 123  # bytes of a close reason, RFC 6455
GONE = "the client disconnected"

NORMAL, ABNORMAL, BAD_DATA, SERVER_ERROR, RESTART, LATER = 1000, 1006, 1007, 1011, 1012, 1013

_HANDSHAKE = (
    b"connection",
    b"host",
    b"upgrade",
    b"sec-websocket-key",
    b"sec-websocket-protocol",
    b"sec-websocket-version",
)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(dict[str, Any]).decode
_RESPONSE = "websocket.http.response"


class HandshakeError(SkateError):
    """The client's handshake is none."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.text)
        self.answer = answer


def shake_hands(request: Request) -> tuple[ServerProtocol, bytes]:
    """The protocol of this connection, open, and the value of ``sec-websocket-accept``. Raises HandshakeError."""
    protocol = ServerProtocol(max_size=MESSAGE_MAX, logger=_quiet)
    lines = [b"%b / HTTP/%b" % (request.method.encode(), request.version.encode())]
    lines += [b"%b: %b" % pair for pair in request.headers if pair[0] in _HANDSHAKE]
    protocol.receive_data(b"\r\n".join(lines) + b"\r\n\r\n")
    events = protocol.events_received()
    if request.length or len(events) != 1 or not isinstance(events[0], Handshake):
        _end(protocol)
        raise HandshakeError(Answer(400, "This is no WebSocket handshake."))
    response = protocol.accept(events[0])
    if response.status_code != 101:
        _end(protocol)
        headers: Headers = [(b"sec-websocket-version", b"13"), (b"allow", b"GET")]
        text = bytes(response.body or b"").decode("utf-8", "replace").strip()
        raise HandshakeError(Answer(response.status_code, text, headers))
    protocol.send_response(response)
    protocol.data_to_send()  # written by ourselves, when the application has accepted
    return protocol, response.headers["Sec-WebSocket-Accept"].encode()


def offered(request: Request) -> list[str]:
    """The subprotocols that the client offers."""
    found: list[str] = []
    for name, value in request.headers:
        if name == b"sec-websocket-protocol":
            try:
                found += parse_subprotocol(value.decode("latin-1"))
            except InvalidHeaderFormat:
                raise HandshakeError(Answer(400, "The header Sec-WebSocket-Protocol is malformed.")) from None
    return found


class SocketCall(Call):
    """A WebSocket as a call. ``connection`` is None once nothing more may be said to the client."""

    __slots__ = (
        "_accept",
        "_accepted",
        "_answering",
        "_binary",
        "_blocked",
        "_closing",
        "_owed",
        "_parts",
        "_rejection",
        "_told",
        "_waiting",
        "connection",
        "front",
        "grace",
        "override",
        "protocol",
        "request",
    )

    def __init__(
        self,
        deployment_key: str,
        head: CallHead,
        connection: Connection,
        request: Request,
        shaken: tuple[ServerProtocol, bytes],
    ) -> None:
        super().__init__(deployment_key, head)
        self.connection: Connection | None = connection
        self.front = connection.front
        self.request = request
        self.protocol, self._accept = shaken
        self.grace: asyncio.TimerHandle | None = None
        self.override: BaseException | None = None  # what the client is told instead of the call's own error
        self._accepted = False
        self._answering: bytes | None = None  # the application refuses with an answer of its own: status and headers
        self._rejection = bytearray()  # and its body
        self._closing = False  # a close was sent, the client's is awaited
        self._told = False  # the application knows that the client has left
        self._parts: list[bytes] = []  # of a message in fragments
        self._binary = False
        self._waiting: deque[tuple[bytes, bool]] = deque()  # messages that the application does not take yet
        self._blocked = False
        self._owed: list[int] = []

    @property
    def closing(self) -> bool:
        return self._closing

    # -- what the client sends ------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Bytes of the connection. Those that the application does not take are left with the connection."""
        for start in range(0, len(data), STEP):
            connection = self.connection
            if connection is None:
                return
            if self._blocked or not self._accepted:
                connection.hold(data[start:])
                return
            self.protocol.receive_data(data[start : start + STEP])
            for event in self.protocol.events_received():
                if isinstance(event, Frame):
                    self._frame(event)
            if self.protocol.state is not State.OPEN and not self._told:
                self._client_left()
            self._flush()

    def eof(self) -> None:
        """The client sends nothing more: without a close, that is its end."""
        self._leave(ABNORMAL, "")

    def lost(self) -> None:
        """The connection is gone."""
        self._let_go()
        self._leave(ABNORMAL, "")

    def _frame(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._binary = frame.opcode is Opcode.BINARY
        elif frame.opcode is not Opcode.CONT:
            return
        self._parts.append(bytes(frame.data))
        if not frame.fin:
            return
        parts, self._parts = self._parts, []
        data = b"".join(parts)
        if self._closing or self._told:
            return
        if self._binary:
            self._up({"type": "websocket.receive", "bytes": data}, False)
            return
        try:
            text = data.decode()
        except UnicodeDecodeError:
            self.protocol.fail(BAD_DATA, "a text message is not valid UTF-8")
            return
        self._up({"type": "websocket.receive", "text": text}, False)

    def _client_left(self) -> None:
        """A close was received, or the protocol has failed the connection."""
        close: Close | None = self.protocol.close_rcvd
        if close is None and not self._closing:
            close = self.protocol.close_sent
        if close is not None:
            self._leave(close.code, close.reason)

    def _leave(self, code: int, reason: str) -> None:
        if self._told or self.outcome is not None:
            return
        self._told = True
        if self.link is None:  # no replica has it
            self.cancel(GONE, "client_disconnected")
            return
        self._up({"type": "websocket.disconnect", "code": code, "reason": reason}, True)
        self.grace = asyncio.get_running_loop().call_later(LEAVE_GRACE_S, self.cancel, GONE, "client_disconnected")

    def _up(self, message: dict[str, Any], last: bool) -> None:
        data = _encode(message)
        if self._waiting or not self.try_send(data, last):
            self._waiting.append((data, last))
            self._blocked = True

    def on_writable(self) -> None:
        try:
            while self._waiting:
                if not self.try_send(*self._waiting[0]):
                    return
                self._waiting.popleft()
            if self._blocked:
                self._blocked = False
                self._feed_held()
        except Exception:
            self._broken()

    def _feed_held(self) -> None:
        connection = self.connection
        if connection is not None:
            connection.go_on_with_socket()

    # -- what the application says --------------------------------------------------------------

    def on_chunk(self, data: bytes) -> None:
        try:
            connection = self.connection
            if connection is not None:
                self._say(connection, _decode(data))
            if connection is not None and connection.stuck:
                self._owed.append(len(data))
            else:
                self.consumed(len(data))
        except BadAnswerError as error:
            self._unusable(str(error))
        except Exception:
            self._broken()

    def resume(self) -> None:
        """The client takes data again: gives the credit that was kept back."""
        owed, self._owed = self._owed, []
        for size in owed:
            self.consumed(size)

    def on_end(self, error: BaseException | None) -> None:
        connection = self.connection
        self.front.sockets.discard(self)
        if self.grace is not None:
            self.grace.cancel()
            self.grace = None
        try:
            if connection is not None:
                self._finish(connection, self.override or error)
        except Exception:
            self._broken()

    def fail(self, error: BaseException) -> None:
        """Ends the call; the client is told this error."""
        if self.outcome is None:
            self.override = error
            self.cancel(str(error), cause_of(error))

    def _say(self, connection: Connection, message: dict[str, Any]) -> None:
        """One message of the application; what comes after the end, or out of turn, is dropped."""
        kind = message["type"]
        if kind == "websocket.accept" and not self._accepted and self._answering is None:
            self._accept_with(connection, message)
        elif kind == "websocket.send" and self._accepted and self.protocol.state is State.OPEN:
            text = message.get("text")
            if text is not None:
                self.protocol.send_text(text.encode("utf-8", "replace"))
            else:
                self.protocol.send_binary(message.get("bytes") or b"")
            self._flush()
        elif kind == "websocket.close" and self._answering is None:
            self._close(connection, message.get("code"), message.get("reason") or "")
        elif kind == f"{_RESPONSE}.start" and not self._accepted and self._answering is None:
            self._answering = status_line(message["status"]) + header_lines(_pairs(message))
        elif kind == f"{_RESPONSE}.body" and self._answering is not None:
            if len(self._rejection) <= REJECTION_MAX:
                self._rejection += message.get("body") or b""
            if not message.get("more_body", False):
                self._drop_connection().give(self._answering, 200, bytes(self._rejection), self.request)

    def _accept_with(self, connection: Connection, message: dict[str, Any]) -> None:
        own: Headers = [pair for pair in _pairs(message) if not pair[0].lower().startswith(b"sec-websocket-")]
        if subprotocol := message.get("subprotocol"):
            own.append((b"sec-websocket-protocol", subprotocol.encode()))
        lines = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade"
        lines += b"\r\nsec-websocket-accept: " + self._accept + header_lines(own)
        request_id = self.request_id.encode()
        date = self.front.date_line(self.front.clock.now())
        connection.write(b"%b\r\nx-request-id: %b%b\r\n\r\n" % (lines, request_id, date))
        self._accepted = True
        connection.loop.call_soon(self._feed_held)

    def _close(self, connection: Connection, code: Any, reason: str) -> None:
        if not self._accepted:
            self._drop_connection().say(Answer(403, "The application did not accept this WebSocket."), self.request)
        elif self.protocol.state is State.OPEN:
            self._closing = True
            connection.since = self.front.tick
            self.protocol.send_close(*sendable(code, reason))
            self._flush()

    def _finish(self, connection: Connection, error: BaseException | None) -> None:
        """The call has ended: if the connection has not, says how."""
        if self._accepted:
            code, reason = (NORMAL, "") if error is None else closing_of(error, self.request_id)
            self._close(connection, code, reason)
        elif self._answering is not None:
            self._drop_connection().give(self._answering, 200, bytes(self._rejection), self.request)
        elif error is None:
            self._close(connection, NORMAL, "")
        else:
            answer = of_error(error, self.request_id, self.front.options.show_traceback)
            self._drop_connection().say(answer, self.request)

    def _unusable(self, what: str) -> None:
        if self.connection is not None:
            if self._accepted:
                self._close(self.connection, SERVER_ERROR, f"unusable {what} in request {self.request_id}")
            else:
                self._drop_connection().say(unusable(what, self.request_id, self.deployment_key), self.request)
        self.cancel("the answer cannot be sent")

    def _drop_connection(self) -> Connection:
        """The connection, for the last thing that is said on it."""
        connection = self._let_go()
        assert connection is not None
        connection.socket = None
        return connection

    def _let_go(self) -> Connection | None:
        """The connection, to which nothing more is said from now on."""
        connection, self.connection = self.connection, None
        _end(self.protocol)
        return connection

    def _flush(self) -> None:
        connection = self.connection
        for data in self.protocol.data_to_send():
            if connection is None:
                return
            if data:
                connection.write(data)
            else:
                self._let_go()
                connection.end_socket()
                self._leave(ABNORMAL, "")

    def _broken(self) -> None:
        """A fault of ours: ends this connection and touches no other."""
        logger.exception("the WebSocket of request %s failed", self.request_id)
        connection = self._let_go()
        if connection is not None:
            connection.cut(False)
        self.cancel("the proxy failed")


def _end(protocol: ServerProtocol) -> None:
    """Opens the circles in a protocol that has ended: its parser and its errors hold it; collections are rare here."""
    parser: Generator[None] = protocol.parser
    parser.close()
    errors: list[BaseException | None] = [protocol.parser_exc, protocol.handshake_exc]
    for error in errors:
        while error is not None:
            error.__traceback__ = None
            error = error.__context__


def _pairs(message: dict[str, Any]) -> Headers:
    return [(bytes(name), bytes(value)) for name, value in message.get("headers") or []]


def closing_of(error: BaseException, request_id: str) -> tuple[int, str]:
    """Close code and reason for a call that ended with this error."""
    if isinstance(error, UserFailure):
        return SERVER_ERROR, f"{error.failure.name} in request {request_id}"
    if isinstance(error, BackPressureError):
        return LATER, str(error)
    if isinstance(error, DeploymentUnavailableError | ReplicaStoppedError):
        return RESTART, str(error)
    return SERVER_ERROR, str(error) if isinstance(error, SkateError) else f"request {request_id} failed"


def sendable(code: Any, reason: str) -> tuple[int, str]:
    """A close code that may be sent, and a reason that fits."""
    if not isinstance(code, int) or not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        code = NORMAL if code is None or code == 1005 else SERVER_ERROR
    return code, reason.encode("utf-8", "replace")[:REASON_MAX].decode("utf-8", "ignore")
