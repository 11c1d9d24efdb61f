"""What is read from headers, and what an application's headers become."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skate.dataplane.proxy.headers import (
    LENGTH_UNKNOWN,
    BadHeaderError,
    read_headers,
    stream_headers,
    whole_headers,
)


def test_a_request_without_headers_has_no_body_and_gets_an_id() -> None:
    line = read_headers([], 3.0, "1.1")
    assert (line.given, line.timeout_s, line.length) == (False, 3.0, 0)
    assert len(line.request_id) == 36


def test_the_length_is_known_from_content_length_only() -> None:
    assert read_headers([(b"content-length", b"12")], None, "1.1").length == 12
    assert read_headers([(b"transfer-encoding", b"chunked")], None, "1.1").length == LENGTH_UNKNOWN
    both = [(b"transfer-encoding", b"chunked"), (b"content-length", b"3")]
    assert read_headers(both, None, "1.1").length == LENGTH_UNKNOWN
    assert read_headers([], None, "2").length == LENGTH_UNKNOWN
    assert read_headers([(b"content-length", b"12")], None, "2").length == 12


@pytest.mark.parametrize(
    ("sent", "taken"),
    [(b"abc-1", "abc-1"), (b"a b\tc", "abc"), (b"x" * 500, "x" * 128), (b"a\xff\x01", "a"), (b"<i>", "<i>")],
)
def test_an_id_is_taken_without_what_may_not_be_in_it(sent: bytes, taken: str) -> None:
    line = read_headers([(b"x-request-id", sent)], None, "1.1")
    assert (line.request_id, line.given) == (taken, True)


@given(st.binary(max_size=300))
def test_every_id_is_printable_and_bounded(sent: bytes) -> None:
    taken = read_headers([(b"x-request-id", sent)], None, "1.1").request_id
    assert 1 <= len(taken) <= 128
    assert taken.isascii()
    assert taken.isprintable()
    assert " " not in taken


@pytest.mark.parametrize(
    ("sent", "seconds"), [(b"2.5", 2.5), (b"0", None), (b"-1", None), (b"inf", None), (b"1e3", 1e3)]
)
def test_the_client_sets_its_own_limit(sent: bytes, seconds: float | None) -> None:
    assert read_headers([(b"x-request-timeout-seconds", sent)], 9.0, "1.1").timeout_s == seconds


@pytest.mark.parametrize("sent", [b"soon", b"", b"nan", b"1s"])
def test_a_limit_that_is_no_number_is_refused(sent: bytes) -> None:
    with pytest.raises(BadHeaderError, match="no number of seconds"):
        read_headers([(b"x-request-timeout-seconds", sent)], None, "1.1")


def test_framing_is_not_the_applications_and_the_rest_is_kept_in_order() -> None:
    theirs = [
        (b"set-cookie", b"a"),
        (b"Transfer-Encoding", b"chunked"),
        (b"set-cookie", b"b"),
        (b"connection", b"close"),
        (b"content-length", b"999"),
        (b"X-Request-Id", b"theirs"),
        (b"x-own", b"1"),
    ]
    kept = whole_headers(theirs, b"ours", 5, 200, False)
    assert kept == [
        (b"set-cookie", b"a"),
        (b"set-cookie", b"b"),
        (b"x-own", b"1"),
        (b"x-request-id", b"ours"),
        (b"content-length", b"5"),
    ]


def test_the_answer_to_head_may_declare_the_length_it_would_have() -> None:
    declared = [(b"content-length", b"77")]
    assert (b"content-length", b"77") in whole_headers(declared, b"i", 0, 200, True)
    assert (b"content-length", b"3") in whole_headers(declared, b"i", 3, 200, True)
    assert (b"content-length", b"0") in whole_headers([], b"i", 0, 200, True)


def test_answers_without_body_declare_none() -> None:
    for status in (204, 304):
        assert whole_headers([(b"content-length", b"3")], b"i", 0, status, False) == [(b"x-request-id", b"i")]


def test_a_stream_keeps_one_usable_length() -> None:
    assert (b"content-length", b"7") in stream_headers([(b"Content-Length", b"7")], b"i")
    for bad in ([(b"content-length", b"7"), (b"content-length", b"8")], [(b"content-length", b"x")], []):
        assert stream_headers(bad, b"i") == [(b"x-request-id", b"i")]
