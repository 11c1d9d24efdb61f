"""What the proxy reads from request headers and writes into answers' headers.

Law: a request is scanned once. What an application may not decide (framing of the message, hop-by-hop headers, the
request id) is taken out of its answer and said by the proxy, so that no answer can break the connection it travels on.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from skate.core.errors import SkateError
from skate.core.ids import request_id as new_request_id

Headers = list[tuple[bytes, bytes]]

REQUEST_ID = b"x-request-id"
TIMEOUT = b"x-request-timeout-seconds"
REQUEST_ID_MAX = 128  # characters
LENGTH_UNKNOWN = -1  # the body comes in chunks (or, in HTTP/2, in frames) of unknown number

_READ = frozenset((REQUEST_ID, TIMEOUT, b"content-length", b"transfer-encoding"))
_GOOD_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_BAD_SIGNS = re.compile(rb"[^\x21-\x7e]+")

# Granian adds length or chunking itself; with transfer-encoding and content-length together it closes the connection,
# with a wrong content-length on an answer of one piece it sends the surplus into the next answer (2.8.7, measured).
_NOT_THE_APPLICATIONS = frozenset(
    (
        b"connection",
        b"content-length",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        REQUEST_ID,
    )
)
_BODILESS = frozenset((204, 205, 304))  # statuses whose answer has no body


class BadHeaderError(SkateError):
    """A request header of ours has no usable value."""

    status, grpc, fault = 400, "INVALID_ARGUMENT", "caller"


class RequestLine(NamedTuple):
    """What the proxy needs to know of a request before it forwards it."""

    request_id: str
    given: bool  # the client sent the id
    timeout_s: float | None
    length: int  # of the body; LENGTH_UNKNOWN if it does not say


def read_headers(headers: Headers, timeout_s: float | None, http_version: str) -> RequestLine:
    """Scans the request's headers (lower-case names). ``timeout_s`` applies where the client names none.

    Raises BadHeaderError, whose request id is not known to the caller, if the timeout is no number.
    """
    request_id = b""
    length = 0 if http_version.startswith("1") else LENGTH_UNKNOWN  # HTTP/2 needs neither header to have a body
    for name, value in headers:
        if name in _READ:
            if name == REQUEST_ID:
                request_id = request_id or value
            elif name == TIMEOUT:
                timeout_s = read_timeout(value)
            elif name == b"transfer-encoding":
                length = LENGTH_UNKNOWN
            elif length != LENGTH_UNKNOWN or not http_version.startswith("1"):
                length = int(value) if value.isdigit() else LENGTH_UNKNOWN
    if not request_id:
        return RequestLine(new_request_id(), False, timeout_s, length)
    if not _GOOD_ID.fullmatch(request_id):
        request_id = _BAD_SIGNS.sub(b"", request_id)[:REQUEST_ID_MAX]
    return RequestLine(request_id.decode("ascii") or new_request_id(), bool(request_id), timeout_s, length)


def read_timeout(value: bytes) -> float | None:
    """Seconds of X-Request-Timeout-Seconds; None (no limit) for zero, negative and infinite ones."""
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if math.isnan(seconds):
        shown = value[:40].decode("latin-1")
        raise BadHeaderError(
            f"the header X-Request-Timeout-Seconds says {shown!r}, which is no number of seconds; "
            "send a number such as 2.5, or 0 for no limit"
        )
    return seconds if 0 < seconds < math.inf else None


def answer_headers(headers: Headers, request_id: bytes) -> Headers:
    """The application's headers without those that are not its own, and with the request id."""
    kept = [pair for pair in headers if pair[0].lower() not in _NOT_THE_APPLICATIONS]
    kept.append((REQUEST_ID, request_id))
    return kept


def whole_headers(headers: Headers, request_id: bytes, size: int, status: int, is_head: bool) -> Headers:
    """Headers of an answer whose body is here as a whole: its length is what it is, whatever was declared."""
    kept = answer_headers(headers, request_id)
    if status not in _BODILESS:
        declared = declared_length(headers) if is_head and size == 0 else None
        kept.append((b"content-length", b"%d" % (size if declared is None else declared)))
    return kept


def stream_headers(headers: Headers, request_id: bytes) -> Headers:
    """Headers of an answer that comes in pieces: a declared length stands, and Granian holds the body to it.

    (It cuts off the surplus, and closes the connection when too little came.)
    """
    kept = answer_headers(headers, request_id)
    declared = declared_length(headers)
    if declared is not None:
        kept.append((b"content-length", b"%d" % declared))
    return kept


def declared_length(headers: Headers) -> int | None:
    """The content-length that the application declared, if it is one usable number."""
    values = {value.strip() for name, value in headers if name.lower() == b"content-length"}
    value = values.pop() if len(values) == 1 else b""
    return int(value) if value.isdigit() and len(value) < 20 else None
