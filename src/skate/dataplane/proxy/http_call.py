"""One HTTP request as a call, and its answer on its way to the client. Law: callbacks write; nothing waits.

An answer that is whole when it comes (one frame, or all of it within one turn of the loop) leaves as one write with its
length. Everything else is a stream: chunked, or up to the end of the connection for HTTP/1.0, each piece as it comes.
While the client takes nothing (the transport is full), no credit is given, so the replica stops, and what is
held here stays below one window of the wire.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from skate.dataplane.call import Call
from skate.dataplane.proxy.answers import cause_of, of_error, unusable
from skate.dataplane.proxy.request import Request, RequestError
from skate.dataplane.proxy.response import (
    CHUNKED,
    LAST_CHUNK,
    BadAnswerError,
    chunk,
    declared_length,
    header_lines,
    length_line,
    status_line,
    without_body,
)
from skate.dataplane.wire.head import CallHead, ReplyHead

if TYPE_CHECKING:
    from skate.dataplane.proxy.connection import Connection

logger = logging.getLogger("skate.proxy")

COPY_MAX = 64 * 1024  # bytes of a body that is copied behind its head; longer ones are written beside it

# How a stream's end is told to the client.
BY_CHUNKS, BY_LENGTH, BY_CLOSING, NO_BODY = range(4)


class HttpCall(Call):
    """A request of one connection; ``connection`` is None once nobody waits for the answer."""

    __slots__ = ("begun", "connection", "framing", "last", "left", "override", "owed", "pieces", "reply", "request")

    def __init__(
        self, deployment_key: str, head: CallHead, deadline: float | None, connection: Connection, request: Request
    ) -> None:
        super().__init__(deployment_key, head, deadline)
        self.connection: Connection | None = connection
        self.request = request
        self.reply: ReplyHead | None = None
        self.pieces: list[bytes] = []  # what came before the head was written, within one turn of the loop
        self.begun = False  # the head was written
        self.last = False  # the frame in hand is the last one
        self.framing = BY_CHUNKS
        self.left = 0  # bytes that a declared length still allows
        self.owed: list[int] = []  # sizes of pieces that the client has not taken yet
        self.override: BaseException | None = None  # what the client is told instead of the call's own error

    def wire_chunk(self, body: bytes, headed: bool, last: bool) -> None:
        self.last = last  # known before the callbacks, so that an answer of one frame is written at once
        super().wire_chunk(body, headed, last)

    def on_reply_head(self, head: ReplyHead) -> None:
        self.reply = head
        if not self.last and self.connection is not None:
            self.connection.loop.call_soon(self._begin)

    def on_chunk(self, data: bytes) -> None:
        if not self.begun:
            self.pieces.append(data)
            return
        try:
            self._pass_on(data)
        except Exception:
            self._broken()

    def on_end(self, error: BaseException | None) -> None:
        connection = self.connection
        if connection is None:
            return
        try:
            error = self.override or error
            if self.begun:
                if error is None:
                    self._end_stream(connection)
                else:
                    self.connection = None
                    connection.cut(self.framing == BY_CLOSING)
            elif error is None:
                self._whole(connection)
            else:
                front = connection.front
                self.connection = None
                connection.say(of_error(error, self.request_id, front.options.show_traceback), self.request)
        except Exception:
            self._broken()

    def on_writable(self) -> None:
        connection = self.connection
        if connection is None:
            return
        try:
            connection.pump()
        except Exception:
            self._broken()

    def fail(self, error: BaseException) -> None:
        """Ends the call; the client is told this error."""
        if self.outcome is None:
            self.override = error
            left = isinstance(error, RequestError) and self.connection is not None and self.connection.eof
            self.cancel(str(error), "client_disconnected" if left else cause_of(error))

    @property
    def can_be_probed(self) -> bool:
        """Whether there are bytes that may be sent now and mean nothing."""
        return self.framing == BY_CHUNKS if self.begun else self.request.version == "1.1"

    def resume(self) -> None:
        """The client takes data again: gives the credit that was kept back."""
        owed, self.owed = self.owed, []
        for size in owed:
            self.consumed(size)

    # -- the answer -----------------------------------------------------------------------------

    def _whole(self, connection: Connection) -> None:
        """Writes the answer, all of which is here."""
        reply, request = self.reply, self.request
        pieces = self.pieces
        body = b"" if not pieces else pieces[0] if len(pieces) == 1 else b"".join(pieces)
        try:
            if reply is None:
                raise BadAnswerError("no status")
            status = reply.status
            begin = status_line(status) + header_lines(reply.headers)
        except BadAnswerError as error:
            self.connection = None
            connection.say(unusable(str(error), self.request_id, self.deployment_key), request)
            return
        size = len(body)
        if without_body(status, request.is_head):
            if status == 205:
                size = 0
            elif size == 0 and request.is_head:
                size = declared_length(reply.headers) or 0
            body = b""
        self.connection = None
        head = connection.head(begin + length_line(status, size), self.head.request_id, self.ended_at)
        if len(body) <= COPY_MAX:
            connection.write(head + body)
        else:
            connection.transport.writelines((head, body))
        connection.answered()

    def _begin(self) -> None:
        """Writes the head of an answer that has not ended within the turn of the loop in which it began."""
        connection, reply = self.connection, self.reply
        if connection is None or reply is None or self.begun:
            return
        try:
            self._begin_stream(connection, reply)
        except BadAnswerError as error:
            self.connection = None
            connection.say(unusable(str(error), self.request_id, self.deployment_key), self.request)
            self.cancel("the answer cannot be sent")
        except Exception:
            self._broken()

    def _begin_stream(self, connection: Connection, reply: ReplyHead) -> None:
        request = self.request
        begin = status_line(reply.status) + header_lines(reply.headers)
        declared = declared_length(reply.headers)
        if reply.status == 204 or reply.status == 304:
            declared = None
        if declared is not None:
            begin += length_line(reply.status, declared)
        if without_body(reply.status, request.is_head):
            self.framing = NO_BODY
        elif declared is not None:
            self.framing = BY_LENGTH
            self.left = declared
        elif request.version == "1.0":
            self.framing = BY_CLOSING
            connection.keep = False
        else:
            begin += CHUNKED
        self.begun = True
        connection.write(connection.head(begin, self.request_id, connection.front.clock.now()))
        pieces, self.pieces = self.pieces, []
        for piece in pieces:
            self._pass_on(piece)

    def _pass_on(self, data: bytes) -> None:
        connection = self.connection
        size = len(data)
        if connection is None:
            self.consumed(size)
            return
        if self.framing == BY_LENGTH:
            if size > self.left:
                data = data[: self.left]  # what is beyond the length would be taken for the next answer
            self.left -= len(data)
        if data and self.framing != NO_BODY:
            if self.framing != BY_CHUNKS:
                connection.write(data)
            elif size <= COPY_MAX:
                if self.last:
                    self.framing = NO_BODY  # the end goes with the piece
                connection.write(chunk(data) + LAST_CHUNK if self.last else chunk(data))
            else:
                connection.transport.writelines((b"%x\r\n" % size, data, b"\r\n"))
        if connection.stuck:
            self.owed.append(size)
        else:
            self.consumed(size)

    def _end_stream(self, connection: Connection) -> None:
        self.connection = None
        if self.framing == BY_CHUNKS:
            connection.write(LAST_CHUNK)
        if self.framing == BY_LENGTH and self.left:
            connection.cut(False)
        else:
            connection.answered()

    def _broken(self) -> None:
        """A fault of ours: ends this request with its connection and touches no other."""
        connection, self.connection = self.connection, None
        logger.exception("answering request %s failed", self.request_id)
        if connection is not None:
            connection.fault(self.request, self.begun)
        if self.outcome is None:
            self.cancel("the proxy failed")
