"""Any bytes, cut anywhere, at the protocol itself: never an exception out, never a request left without an end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import httptools
import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from skate.core.clock import ManualClock
from skate.core.specs import DeploymentTarget, HttpOptions, Route, Snapshot
from skate.dataplane.call import Call
from skate.dataplane.ledger import Outcome
from skate.dataplane.proxy.connection import ANSWER, CLOSED, SOCKET, Connection
from skate.dataplane.proxy.front import Front
from skate.dataplane.router import Router
from skate.dataplane.wire.frames import join_head
from skate.dataplane.wire.head import WEBSOCKET, ReplyHead, encode_head

EXAMPLES = 200

LINES = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n",
        b"POST /a?b HTTP/1.1\r\n",
        b"HEAD http://x/%c3%bc HTTP/1.0\r\n",
        b"CONNECT x:1 HTTP/1.1\r\n",
        b"Host: x\r\n",
        b"Content-Length: 3\r\n",
        b"Content-Length: 70000\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"Connection: keep-alive, Upgrade\r\n",
        b"Upgrade: h2c\r\n",
        b"Upgrade: websocket\r\n",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n",
        b"Expect: 100-continue\r\n",
        b"X-Request-Timeout-Seconds: 1\r\n",
        b"X-Request-Id: \xff\r\n",
        b"a: b\r\n",
        b" folded\r\n",
        b"\r\n",
        b"\n",
        b"abc",
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
        b"\x81\x83\x00\x00\x00\x00abc",
        b"\x88\x80\x00\x00\x00\x00",
        b"x" * 70_000,
    ]
)
WHOLE = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /-/healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    ]
)
STREAMS = st.lists(WHOLE | LINES | st.binary(max_size=20), max_size=12).map(b"".join)
CUTS = st.lists(st.integers(1, 200), min_size=1, max_size=20)
# What the world does after each piece: an answer to the oldest call in some form, a full transport or replica, time.
DEEDS = st.lists(
    st.sampled_from(["whole", "stream", "fail", "stuck", "free", "full", "room", "late", "turn"]), max_size=30
)


class FakeTransport(asyncio.Transport):
    """Keeps what is written; tells of its end as a loop would."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.loop = loop
        self.protocol = protocol
        self.written = bytearray()
        self.reading = True
        self.closing = False
        self.lost = False

    def write(self, data: Any) -> None:
        assert not self.lost, "written to a connection that is gone"
        self.written += data

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self.loop.call_soon(self.lose)

    def lose(self) -> None:
        self.lost = True
        self.protocol.connection_lost(None)

    abort = close

    def is_closing(self) -> bool:
        return self.closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Nothing: what matters is what is written."""

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class Waiting(Router):
    """A router whose calls wait until the test answers them."""

    def submit(self, call: Call, body: bytes, complete: bool = True) -> None:
        super().submit(call, body, complete)
        assert call.outcome is None
        calls.append(call)


calls: list[Call] = []
full = False  # the replica takes no more of any body


def take(call: Call, data: bytes, last: bool = False) -> bool:
    """In place of ``Call.try_send``."""
    return not full or call.outcome is not None


def fill(now: bool) -> None:
    global full
    full = now
    if not full:
        for call in calls:
            call.wake()


def answer(deed: str) -> None:
    """Answers the oldest open call."""
    while calls and calls[0].outcome is not None:
        del calls[0]
    if not calls:
        return
    call = calls[0]
    head = encode_head(ReplyHead(200, [(b"x", b"y")]))  # type: ignore[arg-type]
    if deed == "fail":
        call.end(Outcome.LOST, ValueError("lost"))
    elif call.head.kind == WEBSOCKET:
        kind = "accept" if deed == "stream" else "close"
        call.wire_chunk(msgspec.msgpack.encode({"type": f"websocket.{kind}"}), False, kind == "close")
    elif deed == "stream":
        call.wire_chunk(join_head(head, b"hel"), True, False)
        call.wire_chunk(b"lo", False, False)
    else:
        call.wire_chunk(join_head(head, b"hello"), True, True)


def play(stream: bytes, cuts: list[int], deeds: list[str]) -> tuple[Connection, FakeTransport, Router]:
    """One connection from its beginning to its end."""
    loop = asyncio.new_event_loop()

    async def played() -> tuple[Connection, FakeTransport, Router]:
        clock = ManualClock()
        router = Waiting("proxy", clock)
        target = DeploymentTarget("a", "D", 10, -1)
        router.apply(Snapshot(1, True, {"a/D": target}, (Route("/", "a", "D"),)))
        front = Front(router, HttpOptions(max_body_bytes=50_000), clock)
        connection = front.connect()
        transport = FakeTransport(loop, connection)
        connection.connection_made(transport)
        pieces = list(cut(stream, cuts))
        deeds.reverse()
        while (pieces or deeds) and not transport.lost:
            if pieces and transport.reading:
                connection.data_received(pieces.pop(0))
            elif pieces and not deeds:
                break
            deed = deeds.pop() if deeds else ""
            if deed in ("stuck", "free"):
                connection.pause_writing() if deed == "stuck" else connection.resume_writing()
            elif deed in ("full", "room"):
                fill(deed == "full")
            elif deed == "late":
                clock.advance(5.0)
                front._sweep()
            elif deed:
                if deed != "turn" and (deed != "patient" or connection.phase == ANSWER):
                    answer(deed)
                await asyncio.sleep(0)
        fill(False)
        if not transport.lost and not connection.eof_received():
            transport.close()
        await asyncio.sleep(0)
        for _ in range(200):  # whatever is still asked for is answered
            answer("whole" if connection.phase != SOCKET else "fail")
            await asyncio.sleep(0)
        transport.close()
        for _ in range(3):
            await asyncio.sleep(0)
        front.close()
        return connection, transport, router

    calls.clear()
    fill(False)
    try:
        with patch.object(Call, "try_send", take):
            return loop.run_until_complete(played())
    finally:
        for timer in list(getattr(loop, "_scheduled", ())):
            timer.cancel()
        loop.close()


def cut(stream: bytes, cuts: list[int]) -> Iterator[bytes]:
    start = 0
    for number in range(len(stream)):
        end = start + cuts[number % len(cuts)] * (100 if len(stream) > 5000 else 1)
        yield stream[start:end]
        start = end
        if start >= len(stream):
            return


class Answers:
    """Counts the answers in what was written, as a strict client reads them."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.begun = self.ended = 0

    def on_message_begin(self) -> None:
        self.begun += 1

    def on_message_complete(self) -> None:
        self.ended += 1


@settings(max_examples=EXAMPLES)
@given(STREAMS, CUTS, DEEDS)
def test_any_bytes_in_any_pieces(stream: bytes, cuts: list[int], deeds: list[str]) -> None:
    failures: list[logging.LogRecord] = []
    watch = logging.Handler()
    watch.emit = failures.append  # type: ignore[method-assign]
    logging.getLogger("skate.proxy").addHandler(watch)
    try:
        connection, transport, router = play(stream, cuts, deeds)
    finally:
        logging.getLogger("skate.proxy").removeHandler(watch)
    assert not failures, failures[0].getMessage()
    assert transport.lost
    assert connection.phase == CLOSED
    assert router.ledger.open == 0
    if transport.written:
        assert transport.written.startswith((b"HTTP/1.1 ",))


@settings(max_examples=EXAMPLES)
@given(st.lists(WHOLE.filter(lambda data: b"websocket" not in data), min_size=1, max_size=8), CUTS)
def test_every_good_request_is_answered_once_and_in_full(requests: list[bytes], cuts: list[int]) -> None:
    deeds = ["patient", "turn"] * 2000
    stream = b"".join(requests)
    connection, transport, router = play(stream, cuts, deeds[: 4 * len(stream)])
    seen = Answers()
    seen.parser.feed_data(bytes(transport.written))
    assert (seen.begun, seen.ended) == (len(requests), len(requests))
    assert router.ledger.report().ok == sum(b"healthz" not in one for one in requests)
    assert connection.phase == CLOSED


def test_a_new_connection_waits() -> None:
    connection, transport, _ = play(b"", [1], [])
    assert transport.written == b""
    assert connection.rest == b""
