"""One client's connection: bytes in, at most one request under way, answers out in order. asyncio.Protocol over llhttp.

Law: the parser's callbacks only take notes; what follows from them is done when it has returned. It is fed pieces in
which at most one message can end (cut behind each blank line, and where a body of known length ends), so what
comes behind a request waits here, unparsed and bounded, until that one is answered. Plain requests make no task, no
future and no timer. ``PHASES`` below are all there is; whoever has closed its connection is heard at once.

A client that only shut its sending side still gets its answer, and looks exactly like one that has left. So after a
moment it is sent a needless ``100 Continue``, or a needless zero in front of the size of the next chunk: who has left
answers that with a reset.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import httptools

from skate.core.errors import CallTimeoutError, SkateError
from skate.dataplane.proxy.address import host_and_port
from skate.dataplane.proxy.answers import TEXT_TYPE, Answer, of_error
from skate.dataplane.proxy.http_call import HttpCall
from skate.dataplane.proxy.outlet import Outlet
from skate.dataplane.proxy.request import (
    HEAD_MAX,
    HEADERS_MAX,
    REQUEST_ID,
    TARGET_MAX,
    WATCHED,
    Headers,
    Request,
    RequestError,
    head_too_large,
    malformed,
    read_request,
)
from skate.dataplane.proxy.response import CLOSE, CONTINUE, KEEP, KEEP_OLD, header_lines, length_line, status_line
from skate.dataplane.proxy.websocket import HandshakeError, SocketCall

if TYPE_CHECKING:
    from skate.dataplane.proxy.front import Front

logger = logging.getLogger("skate.proxy")

GATHER_MAX = 64 * 1024  # bytes; a body of known length up to this goes with its call
HOLD_MAX = 64 * 1024  # bytes that may wait behind a request before we stop reading
HEAD_S = 30.0  # for a head, from its first byte on
STALL_S = 60.0  # without a byte of the body, or without a byte taken of the answer
LINGER_S = 5.0  # for a client to stop sending, and to take our last words, before its connection is cut
PROBE_AFTER_S = 0.1  # a client that shut its sending side is asked then whether it is there
HALF_CLOSED_S = 1.0  # for an answer to go on to one that cannot be asked
GONE = "the client disconnected"
BROKEN = "the body ended before it was complete"

# PHASES: between two requests; a head, a body is coming; the request is complete and its answer is not; nothing more
# is read or said; a WebSocket.
IDLE, HEAD, BODY, ANSWER, CLOSED, SOCKET = range(6)


class Connection(asyncio.Protocol):
    """See the module. Everything about one request stands in ``request`` and what is below it."""

    __slots__ = (
        "call",
        "client",
        "complete",
        "eof",
        "front",
        "gathering",
        "head_size",
        "headers",
        "keep",
        "loop",
        "outlet",
        "parser",
        "paused",
        "phase",
        "pieces",
        "request",
        "rest",
        "server",
        "since",
        "size",
        "socket",
        "stuck",
        "target",
        "timer",
        "transport",
        "unsent",
        "uploading",
        "watched",
        "write",
    )

    def __init__(self, front: Front) -> None:
        self.front = front
        self.loop = front.loop
        self.phase = IDLE
        self.since = 0.0  # of the last change of phase or progress in it, on the front's coarse time
        self.stuck = False  # the transport is full: the client reads slower than we write
        self.paused = False  # we do not read
        self.eof = False  # the client sends no more
        self.rest = bytearray()  # came behind the request under way
        self.unsent = 0  # bytes in the transport when it was last looked at
        self.socket: SocketCall | None = None
        self._renew()

    def _renew(self) -> None:
        """Ready for the next request."""
        self.request: Request | None = None
        self.call: HttpCall | None = None
        self.target = b""
        self.headers: Headers = []
        self.watched: Headers = []
        self.head_size = 0
        self.pieces: list[bytes] = []  # of the body, not handed on yet
        self.size = 0  # of the body so far
        self.complete = False
        self.uploading = False  # the call was sent before its body was complete
        self.gathering = False
        self.keep = True
        self.timer: asyncio.TimerHandle | None = None

    # -- asyncio.Protocol -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.outlet = Outlet(self.transport)
        self.write = self.outlet.write
        self.parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self.client = host_and_port(transport.get_extra_info("peername"))
        self.server = host_and_port(transport.get_extra_info("sockname"))
        if not self.front.enter(self):
            self.phase = CLOSED
            self.write(self.front.full_answer())
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        phase = self.phase
        try:
            if phase <= BODY and not self.rest:
                if phase != IDLE or self.stuck or not self._recall(data):
                    self._feed(data)
            elif phase == SOCKET and self.socket is not None and not self.rest:
                self.socket.feed(data)
            elif phase != CLOSED:
                self.hold(data)
        except Exception:
            logger.exception("a request on the connection from %s failed", self.client)
            self.fault(self.request, self.call is not None and self.call.begun)

    def eof_received(self) -> bool:
        self.eof = True
        if self.phase == SOCKET and self.socket is not None:
            self.socket.eof()
            return False
        if self.phase == BODY:
            self.refuse(RequestError(400, BROKEN))
            return self.call is not None or self.stuck
        if self.phase == ANSWER:
            self.loop.call_later(PROBE_AFTER_S, self._probe, self.call)
        return self.phase == ANSWER or bool(self.rest)

    def connection_lost(self, error: Exception | None) -> None:
        self.front.leave(self)
        self.phase = CLOSED
        self.outlet.close()
        self.parser = None
        self.rest.clear()
        self.pieces.clear()
        self._stop_timer()
        call, self.call = self.call, None
        if call is not None:
            call.connection = None
            call.cancel(GONE, "client_disconnected")
        if self.socket is not None:
            self.socket.lost()

    def pause_writing(self) -> None:
        self.stuck = True
        self.since = self.front.tick
        self.unsent = self.transport.get_write_buffer_size()

    def resume_writing(self) -> None:
        self.stuck = False
        if self.call is not None:
            self.call.resume()
        elif self.socket is not None:
            self.socket.resume()
        elif self.phase == IDLE and self.rest:
            self._go_on()

    # -- what the parser says -------------------------------------------------------------------

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        pair = (name, value.rstrip(b" \t"))
        self.headers.append(pair)
        if name in WATCHED:
            self.watched.append(pair)

    def on_headers_complete(self) -> None:
        parser = self.parser
        assert parser is not None
        if self.request is not None:  # HTTP/0.9 ends before the blank line; nothing else can, see ``_end_of_piece``
            self.request.error = self.request.error or RequestError(400, "one request begins inside another")
            return
        version = parser.get_http_version()
        timeout_s = self.front.options.request_timeout_s
        request = read_request(parser.get_method(), self.target, version, self.headers, self.watched, timeout_s)
        request.keep_alive = parser.should_keep_alive()
        if request.upgrade and not parser.should_upgrade():
            request.upgrade = b""  # not named by Connection
        self.headers = []  # trailers go here
        self.request = request

    def on_body(self, body: bytes) -> None:
        self.pieces.append(body)
        self.size += len(body)
        self.head_size = 0

    def on_message_complete(self) -> None:
        self.complete = True

    # -- reading --------------------------------------------------------------------------------

    def _recall(self, data: bytes) -> bool:
        """Takes up a whole request whose headers came before; False: the parser has to read it."""
        options = self.front.options
        known = self.front.heads.recall(data, options.request_timeout_s)
        if known is None or known[0].length > options.max_body_bytes:
            return False
        request, body = known
        self.request = request
        self.keep = request.keep_alive
        self.complete = True
        self.phase = ANSWER
        if body:
            self.pieces, self.size = [body], len(body)
        self._start(request, True)
        return True

    def _feed(self, data: bytes) -> None:
        start, size = 0, len(data)
        fresh = self.phase == IDLE
        while start < size and self.phase <= BODY and not (self.stuck and self.phase == IDLE):
            end = self._end_of_piece(data, start, size)
            piece = data if end - start == size else data[start:end]
            parser = self.parser
            assert parser is not None
            self.head_size += end - start
            start = end
            try:
                parser.feed_data(piece)
            except httptools.HttpParserUpgrade:
                pass  # the request says so itself
            except httptools.HttpParserCallbackError as error:
                raise error.__context__ or error from None
            except httptools.HttpParserError as error:
                self.refuse(malformed(error))
                return
            if self.complete and self.request is not None:
                if fresh and start == size:
                    self.front.heads.remember(data, self.request, self.watched)
                fresh = False  # what follows in these bytes is another message
            self._advance()
        if self.phase == BODY:
            self.since = self.front.tick
            if self.uploading:
                self.pump()
            elif not self.gathering and self.request is not None:
                self._start(self.request, False)
        elif self.uploading:
            self.pump()
        if start < size and self.phase != CLOSED:
            self.hold(data[start:])

    def _end_of_piece(self, data: bytes, start: int, size: int) -> int:
        """Where to cut, so that no two messages end in one piece."""
        request = self.request
        if request is not None and request.length > 0:
            return min(size, start + request.length - self.size)
        if start < 4 and data[start] in b"\r\n":  # may be the end of a blank line that came in two reads
            return start + 1
        found = data.find(b"\r\n\r\n", start)
        return size if found < 0 else found + 4

    def _advance(self) -> None:
        """Does what the piece just fed calls for."""
        request = self.request
        if request is None:
            if self.phase == IDLE:
                self.phase = HEAD
                self.since = self.front.tick
            if len(self.target) > TARGET_MAX:
                self.refuse(RequestError(414, f"the address has more than {TARGET_MAX} bytes"))
            elif self.head_size > HEAD_MAX:
                self.refuse(head_too_large())
            return
        if self.phase < BODY and not self._head_complete(request):
            return
        if request.error is not None:
            self.refuse(request.error)
        elif self.size > self.front.options.max_body_bytes:
            self.refuse(self.front.too_large(self.size))
        elif self.complete:
            self.phase = ANSWER
            if self.call is None:
                self._start(request, True)
        elif self.head_size > HEAD_MAX or len(self.headers) > HEADERS_MAX:  # of extensions, or of trailers
            self.refuse(head_too_large())

    def _head_complete(self, request: Request) -> bool:
        """Looks at a request whose head has come. False: it ends here, or is a WebSocket."""
        if self.head_size > HEAD_MAX and request.error is None:
            request.error = head_too_large()
        if request.error is None and request.length > self.front.options.max_body_bytes:
            request.error = self.front.too_large(request.length)
        if request.error is not None:
            self.refuse(request.error)
            return False
        if request.upgrade:
            if request.upgrade == b"websocket":
                self._open_socket(request)
            else:
                self._without_upgrade(request)
            return False
        self.phase = BODY
        self.keep = request.keep_alive
        if self.complete:
            return True
        if request.expects:
            if self.front.mount_of(request) is None:
                self._start(request, False)
                return False
            self.write(CONTINUE)
        self.gathering = 0 < request.length <= GATHER_MAX
        if self.gathering and request.timeout_s is not None:
            request.deadline = self.front.clock.now() + request.timeout_s
            self.timer = self.loop.call_later(request.timeout_s, self._late, request)
        return True

    def _without_upgrade(self, request: Request) -> None:
        """Reads the request again as one that asks for no other protocol; its body would be lost otherwise."""
        left_out = (b"connection", b"upgrade", b"http2-settings")
        lines = [b"%b %b HTTP/%b" % (request.method.encode(), request.target, request.version.encode())]
        lines += [b"%b: %b" % pair for pair in request.headers if pair[0] not in left_out]
        if not request.keep_alive:
            lines.append(b"connection: close")
        self._renew()
        self.parser = httptools.HttpRequestParser(self)
        self._feed(b"\r\n".join(lines) + b"\r\n\r\n")

    def _start(self, request: Request, complete: bool) -> None:
        """Makes the request a call."""
        if self.timer is not None:
            self._stop_timer()
        pieces, self.pieces = self.pieces, []
        body = b"" if not pieces else pieces[0] if len(pieces) == 1 else b"".join(pieces)
        call = self.front.call(request, self)
        if not isinstance(call, HttpCall):
            if call is not None:
                self.say(call, request)
            return
        self.call = call
        self.uploading = not complete
        self.front.router.submit(call, body, complete)

    def pump(self) -> None:
        """Sends the replica what it may have; reads no more while it takes no more."""
        call = self.call
        if call is None or not self.uploading or not (self.pieces or self.complete):
            return
        data = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
        if call.try_send(data, self.complete):
            self.pieces = []
            self.uploading = not self.complete
            self._read_on()
        else:
            self.pieces = [data]
            self._read_no_more()

    def hold(self, data: bytes) -> None:
        """Keeps bytes that cannot be taken up yet."""
        self.rest += data
        if len(self.rest) > HOLD_MAX:
            self._read_no_more()

    def _go_on(self) -> None:
        """Takes up what came behind the request that has been answered."""
        if self.phase == IDLE and self.rest and not self.stuck:
            data, self.rest = bytes(self.rest), bytearray()
            self._read_on()
            self.data_received(data)
        if self.eof and self.phase in (IDLE, HEAD) and not self.rest:
            self._end()
        elif self.eof and self.phase == BODY:
            self.refuse(RequestError(400, BROKEN))

    def _read_no_more(self) -> None:
        if not self.paused and not self.eof:
            self.paused = True
            self.transport.pause_reading()

    def _read_on(self) -> None:
        if self.paused:
            self.paused = False
            self.since = self.front.tick
            if not self.transport.is_closing():
                self.transport.resume_reading()

    # -- answering ------------------------------------------------------------------------------

    def head(self, begin: bytes, request_id: str, now: float) -> bytes:
        """The whole head of an answer: what the proxy says in each is put behind ``begin``."""
        if self.phase != ANSWER or self.front.draining:
            self.keep = False
        request = self.request
        how = CLOSE if not self.keep else KEEP if request is None or request.version == "1.1" else KEEP_OLD
        return b"%b\r\nx-request-id: %b%b%b\r\n\r\n" % (begin, request_id.encode(), self.front.date_line(now), how)

    def say(self, answer: Answer, request: Request | None) -> None:
        """Gives an answer of the proxy's own."""
        headers: Headers = [] if any(name == TEXT_TYPE[0] for name, _ in answer.headers) else [TEXT_TYPE]
        begin = status_line(answer.status) + header_lines(headers + answer.headers)
        self.give(begin, answer.status, answer.text.encode("utf-8", "replace"), request)

    def say_later(self, answer: Answer, request: Request) -> None:
        """Gives an answer that had to be asked for, if its client still waits for it."""
        if self.phase == ANSWER and self.request is request:
            self.say(answer, request)

    def give(self, begin: bytes, status: int, body: bytes, request: Request | None) -> None:
        """Gives a whole answer: its status line with headers, and a body."""
        request_id = "" if request is None else request.request_id
        begin += length_line(status, len(body))
        head = self.head(begin, request_id, self.front.clock.now())
        self.write(head if request is not None and request.is_head else head + body)
        self.answered()

    def answered(self) -> None:
        """The answer to the request under way is complete."""
        if self.phase != ANSWER or self.front.draining:
            self.keep = False
        if not self.keep:
            self._end()
            return
        self._renew()
        self.phase = IDLE
        self.since = self.front.tick
        if self.rest or self.eof:
            self.loop.call_soon(self._go_on)

    def refuse(self, error: SkateError) -> None:
        """Answers with an error and closes: what follows cannot be, or will not be, read."""
        call, request = self.call, self.request
        self.keep = False
        if call is not None:
            call.fail(error)
            return
        self._stop_timer()
        if request is None:
            watched = [pair for pair in self.watched if pair[0] == REQUEST_ID]
            request = read_request(b"", b"*", "1.1", [], watched, None)
        self.phase = BODY if self.phase < ANSWER else self.phase
        self.say(of_error(error, request.request_id), request)

    def fault(self, request: Request | None, begun: bool) -> None:
        """Ends the connection because of a fault of ours."""
        call, self.call = self.call, None
        if self.phase in (CLOSED, SOCKET) or begun:
            self.cut(False)
        else:
            self.phase = max(self.phase, BODY)
            self.keep = False
            try:
                self.say(of_error(RuntimeError(), "" if request is None else request.request_id), request)
            except Exception:
                self.cut(False)
        if call is not None:
            call.connection = None
            call.cancel("the proxy failed")

    def cut(self, reset: bool) -> None:
        """Ends an answer in its middle. ``reset``: by the end of the connection alone it would look complete."""
        self.phase = CLOSED
        self.since = self.front.tick
        self.call = None
        if reset:
            self.outlet.reset()
        else:
            self.outlet.close()
            self.transport.close()

    def _end(self) -> None:
        """Closes after the last answer; listens a while to whoever still sends: a reset could overtake the answer."""
        unread = self.phase != ANSWER or bool(self.rest) or self.paused
        self.phase = CLOSED
        self.since = self.front.tick
        self.call = None
        self.rest.clear()
        self.pieces.clear()
        self._read_on()
        if unread and not self.eof and self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    # -- time, and the end ----------------------------------------------------------------------

    def look(self, now: float) -> None:
        """Called now and then (the front's sweep): ends what takes too long."""
        phase, since = self.phase, now - self.since
        if phase == CLOSED:
            if since > LINGER_S:
                self.transport.abort()
        elif self.stuck and since > STALL_S:
            unsent = self.transport.get_write_buffer_size()
            if unsent >= self.unsent:
                self.transport.abort()
            self.unsent, self.since = unsent, now
        elif phase == IDLE:
            if since > self.front.options.keep_alive_timeout_s and not self.rest:
                self.transport.close()
        elif phase == HEAD:
            if since > HEAD_S:
                self.refuse(RequestError(408, f"the head of the request did not arrive within {HEAD_S:g} s"))
        elif phase == BODY:
            if since > STALL_S and not self.paused:
                self.refuse(RequestError(408, f"nothing of the request's body arrived for {STALL_S:g} s"))
        elif phase == SOCKET:
            if self.socket is None or (self.socket.closing and since > LINGER_S):
                self.transport.abort()
        elif phase == ANSWER and self.eof:
            self._look_for_client(since)

    def drain(self) -> None:
        """The proxy ends: closes now if nothing is under way."""
        if self.phase == IDLE and not self.rest:
            self.transport.close()

    def _probe(self, call: HttpCall | None) -> None:
        """Asks a client that sends no more whether it reads."""
        if call is None or call is not self.call or self.phase != ANSWER:
            return
        self.since = self.front.tick
        if call.can_be_probed:
            self.write(b"0" if call.begun else CONTINUE)
            self.loop.call_later(PROBE_AFTER_S, self._look_for_client, 0.0)

    def _look_for_client(self, silent_s: float) -> None:
        call = self.call
        if call is None or self.phase != ANSWER:
            return
        if self.outlet.broken() or (silent_s > HALF_CLOSED_S and not call.can_be_probed):
            self.transport.abort()

    def _late(self, request: Request) -> None:
        self.timer = None
        text = f"request {request.request_id} timed out: its body did not arrive within {request.timeout_s:.3g} s"
        self.refuse(CallTimeoutError(text))

    def _stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    # -- WebSocket ------------------------------------------------------------------------------

    def _open_socket(self, request: Request) -> None:
        self.phase = SOCKET
        self.parser = None
        try:
            call = self.front.socket(request, self)
        except HandshakeError as error:
            call = error.answer
        if isinstance(call, Answer):
            self.say(call, request)
            return
        self.socket = call
        self.front.sockets.add(call)
        self.front.router.submit(call, b"", False)

    def go_on_with_socket(self) -> None:
        """The WebSocket takes further bytes: those that were held first."""
        if self.phase == SOCKET and self.rest:
            data, self.rest = bytes(self.rest), bytearray()
            self._read_on()
            self.data_received(data)

    def end_socket(self) -> None:
        """The last frame was written."""
        self.socket = None
        self._end()
