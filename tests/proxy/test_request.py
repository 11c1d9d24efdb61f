"""What is read from the head of a request."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skate.dataplane.proxy.request import LENGTH_UNKNOWN, Request, read_request, split_target

HOST = (b"host", b"x")


def read(*watched: tuple[bytes, bytes], version: str = "1.1", timeout_s: float | None = None) -> Request:
    return read_request(b"GET", b"/", version, [*watched], [HOST, *watched], timeout_s)


def test_a_request_without_headers_has_no_body_and_gets_an_id() -> None:
    request = read(timeout_s=3.0)
    assert (request.given, request.timeout_s, request.length, request.error) == (False, 3.0, 0, None)
    assert len(request.request_id) == 36


def test_the_length() -> None:
    assert read((b"content-length", b"12")).length == 12
    assert read((b"transfer-encoding", b"Chunked")).length == LENGTH_UNKNOWN
    assert read((b"transfer-encoding", b"Chunked")).error is None
    assert read((b"transfer-encoding", b"gzip, chunked")).error is not None


@pytest.mark.parametrize(
    ("sent", "taken"),
    [(b"abc-1", "abc-1"), (b"a b\tc", "abc"), (b"x" * 500, "x" * 128), (b"a\xff\x01", "a"), (b"<i>", "<i>")],
)
def test_an_id_is_taken_without_what_may_not_be_in_it(sent: bytes, taken: str) -> None:
    request = read((b"x-request-id", sent), (b"x-request-id", b"second"))
    assert (request.request_id, request.given) == (taken, True)


@given(st.binary(max_size=300))
def test_every_id_is_printable_and_bounded(sent: bytes) -> None:
    taken = read((b"x-request-id", sent)).request_id
    assert 1 <= len(taken) <= 128
    assert taken.isascii()
    assert taken.isprintable()
    assert " " not in taken


@pytest.mark.parametrize(
    ("sent", "seconds"), [(b"2.5", 2.5), (b"0", None), (b"-1", None), (b"inf", None), (b"1e3", 1e3)]
)
def test_the_client_sets_its_own_limit(sent: bytes, seconds: float | None) -> None:
    assert read((b"x-request-timeout-seconds", sent), timeout_s=9.0).timeout_s == seconds


@pytest.mark.parametrize("sent", [b"soon", b"", b"nan", b"1s"])
def test_a_limit_that_is_no_number_is_refused(sent: bytes) -> None:
    error = read((b"x-request-timeout-seconds", sent)).error
    assert error is not None
    assert "no number of seconds" in str(error)


def test_one_host_and_a_version_that_we_speak() -> None:
    assert read(version="1.0").error is None
    assert read_request(b"GET", b"/", "1.0", [], [], None).error is None
    for version, watched in (("1.1", []), ("1.1", [HOST, HOST]), ("1.0", [HOST, HOST]), ("2.0", [HOST])):
        assert read_request(b"GET", b"/", version, [], watched, None).error is not None


@pytest.mark.parametrize(
    ("target", "path", "raw_path", "query"),
    [
        (b"/", "/", b"/", b""),
        (b"/a/b?c=%20d?e", "/a/b", b"/a/b", b"c=%20d?e"),
        (b"/%C3%BC%2Fx", "/ü/x", b"/%C3%BC%2Fx", b""),
        (b"/%ff%", "/\ufffd%", b"/%ff%", b""),
        (b"/a#b?c", "/a", b"/a", b""),
        (b"//a", "//a", b"//a", b""),
        (b"http://h:1/a/b?c", "/a/b", b"/a/b", b"c"),
        (b"http://h", "/", b"/", b""),
        (b"http://h?c", "/", b"/", b"c"),
        (b"*", "*", b"*", b""),
        (b"h:1", "h:1", b"h:1", b""),
        (b"", "", b"", b""),
    ],
)
def test_targets(target: bytes, path: str, raw_path: bytes, query: bytes) -> None:
    assert split_target(target) == (path, raw_path, query)


@given(st.text())
def test_a_quoted_path_comes_back(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    assert split_target(quote("/" + text).encode())[0] == "/" + text


@given(st.binary())
def test_no_target_is_too_odd(target: bytes) -> None:
    split_target(target)
