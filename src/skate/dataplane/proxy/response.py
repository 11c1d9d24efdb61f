"""Answers as bytes. Law: what an application may not decide (where its message ends, hop-by-hop headers, the
request id, the date) is taken out of its answer and said by the proxy, so that no answer can break its connection.
"""

from __future__ import annotations

import re
from http import HTTPStatus

from skate.core.errors import SkateError
from skate.dataplane.proxy.request import Headers

NAMES_MAX = 1024  # header names that are remembered

KEEP, KEEP_OLD, CLOSE = b"", b"\r\nconnection: keep-alive", b"\r\nconnection: close"
CHUNKED = b"\r\ntransfer-encoding: chunked"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_NOT_THE_APPLICATIONS = frozenset(
    (
        b"connection",
        b"content-length",
        b"date",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-request-id",
    )
)
_BODILESS = frozenset((204, 205, 304))
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}".encode() for status in HTTPStatus}
_names: dict[bytes, bytes] = {}  # name as an application writes it -> beginning of its line; empty: not its to say


class BadAnswerError(SkateError):
    """The application's answer has something that HTTP does not allow."""

    fault = "application"


def status_line(status: int) -> bytes:
    """Raises BadAnswerError for what cannot be the status of an answer."""
    line = _STATUS_LINES.get(status)
    if line is None and 200 <= status <= 999:
        line = b"HTTP/1.1 %d " % status
    if line is None or status < 200:
        raise BadAnswerError(f"status {status}")
    return line


def header_lines(headers: Headers) -> bytes:
    """The application's headers without those that are not its own. Raises BadAnswerError."""
    parts: list[bytes] = []
    for name, value in headers:
        begin = _names.get(name)
        if begin is None:
            begin = _learn(name)
        if begin:
            parts += begin, value
    lines = b"".join(parts)
    kept = len(parts) >> 1
    if lines.count(b"\n") != kept or lines.count(b"\r") != kept or b"\0" in lines:
        raise BadAnswerError("a header")
    return lines


def _learn(name: bytes) -> bytes:
    if not _TOKEN.fullmatch(name):
        raise BadAnswerError("a header")
    if len(_names) >= NAMES_MAX:
        _names.clear()
    begin = b"" if name.lower() in _NOT_THE_APPLICATIONS else b"\r\n%b: " % name
    _names[name] = begin
    return begin


def without_body(status: int, is_head: bool) -> bool:
    """Whether no body may follow the head."""
    return is_head or status in _BODILESS


def length_line(status: int, size: int) -> bytes:
    """``content-length``, where the status allows one."""
    return b"" if status == 204 or status == 304 else b"\r\ncontent-length: %d" % size


def declared_length(headers: Headers) -> int | None:
    """The content-length that the application declared, if it is one usable number."""
    values = {value.strip() for name, value in headers if name.lower() == b"content-length"}
    value = values.pop() if len(values) == 1 else b""
    return int(value) if value.isdigit() and len(value) < 20 else None


def chunk(data: bytes) -> bytes:
    """One piece of a body of unknown length."""
    return b"%x\r\n%b\r\n" % (len(data), data)
