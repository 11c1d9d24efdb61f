"""The connection as a value: every transition is in the table, everything else ends it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skate.core.errors import WireError
from skate.dataplane.wire import frames as f
from skate.dataplane.wire.connection import CALLS_MAX, IDS, WINDOW, Connection
from skate.dataplane.wire.head import Hello, encode_head


def pair() -> tuple[Connection, Connection]:
    caller, callee = Connection("caller"), Connection("callee")
    assert callee.feed(caller.hello("c")) == [] and caller.feed(callee.hello("s")) == []
    assert callee.peer_name == "c" and caller.peer_name == "s"
    return caller, callee


def call_frame(id: int, last: bool = True) -> bytes:
    return f.pack(f.CALL, id, f.HEADED | (f.LAST if last else 0), 0, f.join_head(b"h", b"b"))


def test_the_first_frame_must_be_a_hello() -> None:
    with pytest.raises(WireError, match="hello"):
        Connection("callee").feed(call_frame(1))


def test_another_version_is_named() -> None:
    with pytest.raises(WireError, match="version 99"):
        Connection("callee").feed(f.pack(f.HELLO, 0, 0, 0, encode_head(Hello(99, "x"))))


def test_a_call_is_answered_and_forgotten() -> None:
    caller, callee = pair()
    id = caller.open(complete=True)
    assert [frame[:2] for frame in callee.feed(call_frame(id))] == [(f.CALL, id)]
    callee.close(id)
    assert [frame[0] for frame in caller.feed(f.pack(f.CHUNK, id, f.LAST, 1, b"x"))] == [f.CHUNK]
    assert not caller.calls and not callee.calls
    assert caller.feed(f.pack(f.CHUNK, id, f.LAST, 1, b"late")) == []


def test_call_ids_only_grow() -> None:
    _, callee = pair()
    callee.feed(call_frame(5))
    with pytest.raises(WireError, match="not above"):
        callee.feed(call_frame(5))


def test_an_unopened_call_is_an_error() -> None:
    caller, callee = pair()
    with pytest.raises(WireError, match="never opened"):
        caller.feed(f.pack(f.CHUNK, 7, 0, 0, b""))
    with pytest.raises(WireError, match="never opened"):
        callee.feed(f.pack(f.CANCEL, 7, 0, 0, b""))


def test_input_after_its_end_is_an_error() -> None:
    _, callee = pair()
    callee.feed(call_frame(1, last=True))
    with pytest.raises(WireError, match="may not follow"):
        callee.feed(f.pack(f.CHUNK, 1, 0, 0, b"more"))


def test_each_side_may_say_only_its_own_frames() -> None:
    caller, callee = pair()
    with pytest.raises(WireError):
        caller.feed(call_frame(1))
    with pytest.raises(WireError):
        callee.feed(f.pack(f.READY, 0, 0, 0, f.pack_count(1)))


def test_too_many_calls_are_an_error() -> None:
    caller, _ = pair()
    for _ in range(CALLS_MAX):
        caller.open(True)
    with pytest.raises(WireError, match="open on one connection"):
        caller.open(True)


def test_more_than_the_credit_is_an_error() -> None:
    _, callee = pair()
    callee.feed(call_frame(1, last=False))
    chunk = f.pack(f.CHUNK, 1, 0, 0, b"x" * (WINDOW // 2))
    callee.feed(chunk)
    callee.feed(chunk)
    with pytest.raises(WireError, match="more than its credit"):
        callee.feed(chunk)


def test_credit_comes_back_when_chunks_are_taken() -> None:
    caller, callee = pair()
    id = caller.open(complete=False)
    callee.feed(call_frame(id, last=False))
    size = WINDOW // 4
    for _ in range(64):
        assert caller.may_send(id)
        caller.spend(id, size)
        callee.feed(f.pack(f.CHUNK, id, 0, 0, b"x" * size))
        credit = callee.take(id, size)
        assert credit
        caller.feed(credit)
    assert caller.calls[id].send_window == WINDOW


def test_the_last_chunk_needs_no_credit() -> None:
    caller, callee = pair()
    id = caller.open(complete=True)
    callee.feed(call_frame(id))
    while callee.may_send(id):
        callee.spend(id, WINDOW // 10)
        caller.feed(f.pack(f.CHUNK, id, 0, 0, bytes(WINDOW // 10)))
    assert caller.feed(f.pack(f.CHUNK, id, f.LAST, 0, b""))


@given(st.lists(st.binary(max_size=120), max_size=12), st.sampled_from(["caller", "callee"]))
def test_any_bytes_after_hello_end_in_frames_or_an_error(pieces: list[bytes], role: str) -> None:
    connection = Connection(role, frame_max=4096)  # type: ignore[arg-type]
    connection.feed(f.pack(f.HELLO, 0, 0, 0, encode_head(Hello(f.VERSION, "x"))))
    try:
        for piece in pieces:
            connection.feed(piece)
            assert len(connection.calls) <= 200
    except WireError:
        pass


def test_call_ids_go_round_and_spare_those_that_are_open() -> None:
    """At 50,000 calls a second a connection has used up the ids of 32 bits after a day."""
    caller, callee = pair()
    first = caller.open(True)
    callee.feed(call_frame(first))
    caller._last_call = callee._last_call = IDS - 3
    ids = []
    for _ in range(4):
        ids.append(caller.open(True))
        (frame,) = callee.feed(call_frame(ids[-1]))
        assert frame[1] == ids[-1]
    assert first == 1 and ids == [IDS - 2, IDS - 1, 2, 3]
    callee.close(IDS - 1)
    assert callee.feed(f.pack(f.CANCEL, IDS - 1, 0, 0, b"")) == []  # late, and no more than that
    with pytest.raises(WireError, match="never opened"):
        callee.feed(f.pack(f.CANCEL, 4, 0, 0, b""))


def test_each_side_may_say_that_it_can_open_the_others_memory() -> None:
    caller, callee = pair()
    for side in (caller, callee):
        assert not side.shares
        assert side.feed(f.pack(f.SHARES, 0, 0, 0, b"")) == [] and side.shares
    with pytest.raises(WireError, match="instead of none"):
        caller.feed(f.pack(f.SHARES, 0, 0, 0, b"x"))
