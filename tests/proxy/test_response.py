"""What becomes of an application's status and headers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skate.dataplane.proxy.response import (
    NAMES_MAX,
    BadAnswerError,
    chunk,
    declared_length,
    header_lines,
    status_line,
)


def test_framing_is_not_the_applications_and_the_rest_is_kept_in_order() -> None:
    theirs = [
        (b"set-cookie", b"a"),
        (b"Transfer-Encoding", b"chunked"),
        (b"set-cookie", b"b"),
        (b"connection", b"close"),
        (b"content-length", b"999"),
        (b"X-Request-Id", b"theirs"),
        (b"Date", b"never"),
        (b"X-Own", b""),
        (b"server", b"theirs"),
    ]
    assert header_lines(theirs) == b"\r\nset-cookie: a\r\nset-cookie: b\r\nX-Own: \r\nserver: theirs"


@given(st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=8)), max_size=4))
def test_no_header_can_become_two(headers: list[tuple[bytes, bytes]]) -> None:
    try:
        lines = header_lines(headers)
    except BadAnswerError:
        return
    for line in lines.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b": ")
        assert (name, value) in headers
        assert colon
        assert not set(line) & {0, 10, 13}


def test_the_memory_of_names_is_bounded() -> None:
    for number in range(3 * NAMES_MAX):
        name = b"x-%d" % number
        assert header_lines([(name, b"v")]) == b"\r\n%b: v" % name


def test_statuses() -> None:
    assert status_line(200) == b"HTTP/1.1 200 OK"
    assert status_line(499) == b"HTTP/1.1 499 "
    for status in (-1, 0, 100, 101, 199, 1000):
        with pytest.raises(BadAnswerError):
            status_line(status)


def test_a_declared_length_is_one_usable_number() -> None:
    assert declared_length([(b"Content-Length", b" 7 ")]) == 7
    assert declared_length([(b"content-length", b"7"), (b"content-length", b"7")]) == 7
    for bad in ([(b"content-length", b"7"), (b"content-length", b"8")], [(b"content-length", b"x")], []):
        assert declared_length(bad) is None


def test_chunks() -> None:
    assert chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"
