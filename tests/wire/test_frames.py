"""Frames survive any cut; what is no frame is an error, never a hang and never memory above the limit."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skate.core.errors import WireError
from skate.dataplane.wire.frames import (
    AHEAD_MAX,
    CHUNK,
    FILL_MIN,
    FRAME_MAX,
    HEADER_SIZE,
    KINDS,
    Cutter,
    header,
    join_head,
    pack,
    pack_count,
    pack_ids,
    split_head,
    unpack_count,
    unpack_ids,
)

frames = st.lists(
    st.tuples(
        st.sampled_from(sorted(KINDS)),
        st.integers(0, 2**32 - 1),
        st.integers(0, 255),
        st.integers(0, 2**16 - 1),
        st.binary(max_size=300),
    ),
    max_size=20,
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(frames, st.lists(st.integers(0, 10_000), max_size=30))
def test_any_cut_gives_the_same_frames(sent: list[tuple[int, int, int, int, bytes]], places: list[int]) -> None:
    cutter = Cutter()
    got = [frame for piece in cut(b"".join(pack(*frame) for frame in sent), places) for frame in cutter.feed(piece)]
    assert got == sent


@given(
    st.lists(st.sampled_from([0, 5, 600, FILL_MIN - 1, FILL_MIN, FILL_MIN + 1, 3 * FILL_MIN]), max_size=6),
    st.lists(st.integers(0, 3_000_000), max_size=12),
)
def test_any_cut_gives_the_same_large_frames(sizes: list[int], places: list[int]) -> None:
    sent = [(CHUNK, n, 0, 0, bytes([n + 1]) * size) for n, size in enumerate(sizes)]
    cutter = Cutter()
    got = [frame for piece in cut(b"".join(pack(*frame) for frame in sent), places) for frame in cutter.feed(piece)]
    assert got == sent and all(type(frame[4]) is bytes for frame in got)


def test_what_is_announced_and_does_not_come_takes_little_memory() -> None:
    tracemalloc.start()
    try:
        cutter = Cutter()
        cutter.feed(header(CHUNK, 1, 0, 0, FRAME_MAX) + b"x")
        assert tracemalloc.get_traced_memory()[0] < AHEAD_MAX + 100_000
    finally:
        tracemalloc.stop()


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_any_bytes_give_frames_or_an_error(pieces: list[bytes]) -> None:
    cutter = Cutter(frame_max=1000)
    try:
        for piece in pieces:
            for kind, _, _, _, body in cutter.feed(piece):
                assert kind in KINDS and len(body) <= 1000
            assert cutter._size <= 1000 + HEADER_SIZE + 200
    except WireError:
        pass


def test_an_announced_length_above_the_limit_is_refused_before_its_bytes_come() -> None:
    with pytest.raises(WireError, match="above the limit"):
        Cutter(frame_max=10).feed(header(CHUNK, 1, 0, 0, 11))


def test_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(WireError, match="unknown frame kind"):
        Cutter().feed(b"GET / HTTP/1.1\r\n\r\n")


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_heads(head: bytes, body: bytes) -> None:
    assert split_head(join_head(head, body)) == (head, body)


@given(st.binary(max_size=40))
def test_a_wrong_head_is_an_error(data: bytes) -> None:
    try:
        head, rest = split_head(data)
        assert len(head) + len(rest) + 4 == len(data)
    except WireError:
        pass


@given(st.lists(st.integers(0, 2**32 - 1), max_size=50), st.integers(0, 2**32 - 1))
def test_ids_and_counts(ids: list[int], count: int) -> None:
    assert unpack_ids(pack_ids(ids)) == tuple(ids)
    assert unpack_count(pack_count(count)) == count
    with pytest.raises(WireError):
        unpack_ids(b"123")
    with pytest.raises(WireError):
        unpack_count(b"12345")
