"""Any bytes, cut anywhere: frames, an error that says what was wrong, or nothing; never memory beyond what was sent.

The frames here are mostly right, so that what is wrong with them is found deep inside a conversation.
"""

from __future__ import annotations

import itertools
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skate.core.errors import SkateError, WireError
from skate.dataplane.transport.failure import decode_failure, rebuild
from skate.dataplane.wire import frames as f
from skate.dataplane.wire.connection import HELLO_MAX, IDS, WINDOW, Connection, Role
from skate.dataplane.wire.head import (
    CallHead,
    Hello,
    ReplyHead,
    decode_call,
    decode_hello,
    decode_http,
    decode_reply,
    encode_head,
)

EXAMPLES = settings.default.max_examples  # type: ignore[attr-defined]  # `make fuzz` raises it
ROLES = st.sampled_from(["caller", "callee"])
CUTS = st.lists(st.integers(1, 60), min_size=1, max_size=20)

IDS_USED = st.integers(0, 6) | st.sampled_from([IDS - 1, IDS // 2, IDS // 2 + 1]) | st.integers(0, IDS - 1)
BODIES = (
    st.binary(max_size=40)
    | st.integers(0, 2**32 - 1).map(f.pack_count)
    | st.binary(max_size=20).map(lambda data: f.join_head(encode_head(CallHead(0, "m", "r")), data))
)
KINDS_SENT = st.sampled_from([*sorted(f.KINDS), f.CHUNK, f.CHUNK, f.CALL, 0, 99])
FLAGS = st.sampled_from([0, f.LAST, f.HEADED, f.LAST | f.HEADED, f.GRANTED | f.HEADED, 255])
FRAMES = st.builds(f.pack, KINDS_SENT, IDS_USED, FLAGS, st.integers(0, 0xFFFF), BODIES)
LARGE = st.builds(
    lambda call, size, last: f.pack(f.CHUNK, call, last, 0, bytes(size)),
    st.integers(1, 3),
    st.integers(0, WINDOW + 10),
    st.sampled_from([0, f.LAST]),
)
LIES = st.builds(
    lambda kind, call, length: f.HEADER.pack(length, call, kind, 0, 0),
    KINDS_SENT,
    IDS_USED,
    st.sampled_from([f.FRAME_MAX, f.FRAME_MAX + 1, 2**32 - 1, 100]),
)
STREAMS = st.lists(FRAMES | FRAMES | FRAMES | LARGE | LIES | st.binary(max_size=30), max_size=12).map(b"".join)
HELLOS = st.sampled_from(
    [
        f.pack(f.HELLO, 0, 0, 0, encode_head(Hello(f.VERSION, "x"))),
        f.pack(f.HELLO, 0, 0, 0, encode_head(Hello(f.VERSION, "x"))),
        f.pack(f.HELLO, 0, 0, 0, encode_head(Hello(f.VERSION, "x"))),
        f.pack(f.HELLO, 0, 0, 0, encode_head(Hello(99, "x"))),
        f.pack(f.HELLO, 0, 0, 0, b"\x93\x01\xa1x" + b"\x91" * 4000 + b"\xc0"),
        f.HEADER.pack(HELLO_MAX + 1, 0, f.HELLO, 0, 0),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"",
    ]
)


def played(role: Role, data: bytes, cuts: list[int]) -> tuple[list[f.Frame], str]:
    """What a connection makes of the bytes, in pieces of these sizes: the frames, and the error if there was one."""
    connection = Connection(role)
    for _ in range(3 if role == "caller" else 0):
        connection.open(False)
    frames: list[f.Frame] = []
    at = 0
    for size in itertools.cycle(cuts):
        piece, at = data[at : at + size], at + size
        if not piece:
            return frames, ""
        try:
            frames += connection.feed(piece)
        except WireError as error:
            return frames, str(error)
        assert held(connection) <= len(data) + HELLO_MAX + f.HEADER_SIZE
        assert all(0 < call < IDS for call in connection.calls)
    raise AssertionError


def held(connection: Connection) -> int:
    """Bytes that are kept of what came."""
    return len(connection._opening) + sum(map(len, connection._cutter._parts))


@settings(max_examples=2 * EXAMPLES)
@given(ROLES, HELLOS, STREAMS, CUTS)
def test_the_cuts_make_no_difference(role: Role, hello: bytes, stream: bytes, cuts: list[int]) -> None:
    data = hello + stream
    if len(data) > 20_000:
        cuts = [1000 * cut for cut in cuts]
    frames, error = played(role, data, cuts)
    again, same_error = played(role, data, [max(1, len(data))])
    assert bool(error) == bool(same_error)  # of two faults in one read, either may be named
    if error:  # in one read, what comes before the fault goes with it
        assert any(word in error for word in NAMED), error
    else:
        assert again == frames


# What every error has to name: a kind of frame, the hello, a limit, or a number that was wrong.
NAMED = (*f.NAMES.values(), "hello", "limit", "unknown frame kind", "version", "bytes", "head", "credit", "call ")


@pytest.mark.parametrize(
    ("role", "data", "words"),
    [
        ("callee", f.pack(f.CHUNK, 9, 0, 0, b""), ("CHUNK", "call 9", "never opened")),
        ("callee", f.pack(f.READY, 0, 0, 0, f.pack_count(1)), ("READY", "callee")),
        ("callee", f.pack(f.HELLO, 0, 0, 0, b""), ("HELLO", "callee")),
        ("callee", f.pack(f.CALL, 0, 0, 0, b""), ("CALL", "call 0")),
        ("callee", f.pack(f.RELEASE, 0, 0, 0, b"12345"), ("count", "5 bytes")),
        ("caller", f.pack(f.STARTED, 0, 0, 0, b"12345"), ("ids", "5 bytes")),
        ("caller", f.pack(f.CREDIT, 1, 0, 0, b""), ("count", "0 bytes")),
        ("caller", f.HEADER.pack(f.FRAME_MAX + 1, 1, f.CHUNK, 0, 0), (str(f.FRAME_MAX + 1), str(f.FRAME_MAX))),
        ("caller", f.pack(77, 1, 0, 0, b""), ("kind 77",)),
    ],
)
def test_an_error_says_what_was_wrong(role: Role, data: bytes, words: tuple[str, ...]) -> None:
    connection = Connection(role)
    connection.feed(f.pack(f.HELLO, 0, 0, 0, encode_head(Hello(f.VERSION, "x"))))
    if role == "caller":
        connection.open(True)
    with pytest.raises(WireError) as seen:
        connection.feed(data)
    assert [word for word in words if word not in str(seen.value)] == []


def test_a_first_call_of_any_size_may_come_with_the_hello() -> None:
    """A callee that was busy when it was connected to reads both at once."""
    caller, callee = Connection("caller"), Connection("callee")
    caller.feed(callee.hello("s"))
    hello = caller.hello("c")
    call = f.pack(f.CALL, caller.open(True), f.HEADED | f.LAST, 0, f.join_head(b"h", bytes(1_000_000)))
    assert callee.feed(hello + call[:70_000]) == [] and callee.peer_name == "c"
    assert [frame[0] for frame in callee.feed(call[70_000:])] == [f.CALL]


@pytest.mark.parametrize("role", ["caller", "callee"])
def test_who_has_not_said_hello_gets_no_memory(role: Role) -> None:
    connection = Connection(role)
    with pytest.raises(WireError, match="hello announces"):
        connection.feed(f.HEADER.pack(HELLO_MAX + 1, 0, f.HELLO, 0, 0))
    connection = Connection(role)
    hello = f.HEADER.pack(HELLO_MAX, 0, f.HELLO, 0, 0) + bytes(HELLO_MAX - 1)
    for at in range(len(hello)):
        assert connection.feed(hello[at : at + 1]) == []
    assert held(connection) == len(hello)


def peak_of(deed: Any) -> int:
    """Bytes allocated while the deed is done, at the most."""
    tracemalloc.start()
    try:
        deed()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_length_that_is_announced_allocates_nothing() -> None:
    connection = Connection("caller")
    connection.feed(f.pack(f.HELLO, 0, 0, 0, encode_head(Hello(f.VERSION, "x"))))
    connection.open(True)
    announced = f.HEADER.pack(f.FRAME_MAX, 1, f.CHUNK, 0, 0)
    assert peak_of(lambda: connection.feed(announced + b"some bytes")) < 10_000


@pytest.mark.parametrize("size", [1, 2, 60, 5000])
def test_a_trickle_costs_hardly_more_than_its_bytes(size: int) -> None:
    total = 400_000
    cutter = f.Cutter()
    cutter.feed(f.HEADER.pack(total, 1, f.CHUNK, 0, 0))
    pieces = [bytes([n % 251]) * size for n in range(100)]

    def trickle() -> None:
        for n in range(total // size // 2):  # half of it: nothing is joined yet
            assert cutter.feed(pieces[n % 100]) == []

    assert peak_of(trickle) < 1.3 * total / 2


# -- what is inside the frames --------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=9) | st.text(max_size=9) | st.floats(),
    lambda inner: st.lists(inner, max_size=9),
    max_leaves=20,
)
DEEP = b"\x91" * 100_000 + b"\xc0"
READABLE = [
    encode_head(CallHead(0, "m", "r", 1.0)),
    encode_head(ReplyHead(200, [(b"a", b"b")])),
    encode_head(Hello(1, "x")),
    encode_head(["ValueError", "text", True, b"not a pickle", "trace", 0, None]),
    encode_head(["BackPressureError", "text", False, None, "", 503, 1.0]),
    encode_head(["RequestError", "needs two arguments"]),
    b"\xdc\x00\x09\x00\xa1m\xa1r\xc0\xc2\xa0\xa0\xc0" + DEEP,  # a field more than we know, nested deep
    DEEP,
]
MSGPACK = st.binary(max_size=60) | VALUES.map(encode_head) | st.sampled_from(READABLE)


@settings(max_examples=4 * EXAMPLES)
@given(MSGPACK, st.integers(0, 200), st.binary(max_size=3))
def test_any_head_is_read_or_is_an_error(data: bytes, at: int, other: bytes) -> None:
    data = data[:at] + other + data[at + len(other) :] if other else data
    for decode in (decode_call, decode_reply, decode_hello, decode_http):
        try:
            decode(data)  # type: ignore[operator]
        except WireError as error:
            assert "head" in str(error) or "hello" in str(error)


@settings(max_examples=4 * EXAMPLES)
@given(MSGPACK, st.integers(0, 200), st.binary(max_size=3))
def test_any_failure_is_an_exception_to_raise(data: bytes, at: int, other: bytes) -> None:
    data = data[:at] + other + data[at + len(other) :] if other else data
    assert isinstance(rebuild(decode_failure(data)), Exception)


def test_a_failure_that_cannot_be_read_says_so() -> None:
    error = decode_failure(b"\xff")
    assert isinstance(error, SkateError) and "unreadable" in str(error)
