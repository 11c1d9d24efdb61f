"""Heads that are remembered: whatever was seen before, a request means what the parser says it means."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from skate.core.clock import SystemClock
from skate.core.specs import HttpOptions, Route
from skate.dataplane.proxy.front import Front
from skate.dataplane.proxy.heads import BLOCKS_MAX, Heads
from skate.dataplane.proxy.request import Request
from skate.dataplane.router import Router

FIELDS = ("target", "headers", "version", "method", "keep_alive", "path", "raw_path", "query", "length", "upgrade")


class Deaf:
    """A transport to nobody."""

    def __init__(self) -> None:
        self.closed = False
        self.said = b""

    def write(self, data: bytes) -> None:
        self.said += data

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = pause_reading = resume_reading = close


class Forgetful(Heads):
    """Has the parser read everything."""

    def remember(self, *_: Any) -> None: ...


def seen(messages: list[bytes], remembers: bool) -> list[Any]:
    """What a proxy makes of each message, each on a connection of its own: requests with their bodies, or answers."""

    async def main() -> list[Any]:
        router = Router("proxy", SystemClock())
        front = Front(router, HttpOptions(max_body_bytes=1000), SystemClock())
        front.set_routes((Route("/", "app", "D"),))
        if not remembers:
            front.heads = Forgetful()
        heard: list[Any] = []

        def submit(call: Any, body: bytes, complete: bool = True) -> None:
            request: Request = call.request
            named = {field: getattr(request, field) for field in FIELDS}
            named["headers"] = [pair for pair in request.headers if pair[0] != b"x-request-id" or request.given]
            heard.append((named, body, complete, call.head.timeout_s))

        router.submit = submit  # type: ignore[method-assign]
        for message in messages:
            transport = Deaf()
            connection = front.connect()
            connection.connection_made(transport)  # type: ignore[arg-type]
            connection.data_received(message)
            heard.append((connection.phase, connection.complete, connection.size, transport.said[:15]))
            connection.connection_lost(None)
        if front._timer is not None:
            front._timer.cancel()
        return heard

    return asyncio.run(main())


LINES = st.one_of(
    st.sampled_from([b"GET / HTTP/1.1", b"POST /a?b=c HTTP/1.1", b"GET /%41/..;x HTTP/1.1", b"HEAD /a HTTP/1.1"]),
    st.sampled_from(
        [b"GET /a HTTP/1.0", b"get / HTTP/1.1", b"GET  / HTTP/1.1", b"GET / HTTP/1.1 ", b"GET /#x HTTP/1.1"]
    ),
    st.sampled_from(
        [b"CONNECT a:1 HTTP/1.1", b"GET http://h/x HTTP/1.1", b"GET /\xff HTTP/1.1", b"GET /\x01 HTTP/1.1"]
    ),
    st.binary(max_size=12),
)
HEADERS = st.sampled_from(
    [
        *(b"Host: h", b"host: h", b"Accept: */*", b"Content-Length: 3", b"Content-Length: 0", b"Connection: close"),
        *(b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"X-Request-Id: 7", b"X-Request-Timeout-Seconds: 3"),
        *(
            b"Upgrade: websocket",
            b"Connection: upgrade",
            b"A: b\nHost: x",
            b" folded",
            b"X:  y  ",
            b"Content-Length: 2000",
        ),
    ]
)
MESSAGES = st.builds(
    lambda line, headers, body: b"\r\n".join([line, b"Host: h", *headers]) + b"\r\n\r\n" + body,
    LINES,
    st.lists(HEADERS, max_size=3),
    st.sampled_from([b"", b"abc", b"ab", b"abcd", b"0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"]),
)


@settings(max_examples=300, deadline=None)
@example([b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"] * 3)
@example([b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", b"GET / HTTP/1.1\r\nHost: h\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\n\r\n"])
@given(st.lists(MESSAGES, min_size=1, max_size=6).map(lambda some: some + some))
def test_a_request_means_the_same_whatever_was_seen_before(messages: list[bytes]) -> None:
    assert seen(messages, True) == seen(messages, False)


def test_what_is_remembered_is_bounded_and_used() -> None:
    heads = Heads()
    request = Request(b"/", [(b"host", b"h")], "1.1", None)
    message = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
    assert heads.recall(message, None) is None
    heads.remember(message, request, [(b"host", b"h")])
    found = heads.recall(b"DELETE /x?y HTTP/1.1\r\nHost: h\r\n\r\n", 2.0)
    assert found is not None
    again, body = found
    assert (again.method, again.path, again.query, again.timeout_s, body) == ("DELETE", "/x", b"y", 2.0, b"")
    assert again.headers == request.headers and again.headers is not request.headers
    for number in range(BLOCKS_MAX):
        heads.remember(b"GET / HTTP/1.1\r\nHost: h%d\r\n\r\n" % number, request, [])
    assert len(heads._blocks) <= BLOCKS_MAX
