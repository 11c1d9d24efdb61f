"""One request as its head says it. Law: a request that leaves in doubt what it is, above all where it ends, is refused.

The parser (llhttp, in its strict mode) refuses most of that itself: two lengths, a length beside chunks, bare line
feeds, folded or malformed headers, bad chunk sizes. Refused here: what it lets pass and we cannot serve.
"""

from __future__ import annotations

import math
import re
from urllib.parse import unquote_to_bytes

import httptools

from skate.core.errors import SkateError
from skate.core.ids import request_id as new_request_id

Headers = list[tuple[bytes, bytes]]

REQUEST_ID = b"x-request-id"
TIMEOUT = b"x-request-timeout-seconds"
REQUEST_ID_MAX = 128  # characters
HEAD_MAX = 64 * 1024  # bytes of a request's head, and of what may surround the chunks of a body without adding to it
TARGET_MAX = 16 * 1024  # bytes of the request target
HEADERS_MAX = 200
LENGTH_UNKNOWN = -1  # the body comes in chunks

WATCHED = frozenset(
    (b"content-length", b"expect", b"host", b"transfer-encoding", b"upgrade", REQUEST_ID, TIMEOUT)
)  # headers that mean something to the proxy

_GOOD_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_BAD_SIGNS = re.compile(rb"[^\x21-\x7e]+")
_ORIGIN_FORM = re.compile(rb"[^/?]*(.*)")
_METHODS: dict[bytes, str] = {}  # those of the parser, as text


class RequestError(SkateError):
    """A request that is answered with this status, whatever the application is; its connection is closed."""

    fault = "caller"

    def __init__(self, status_code: int, message: str) -> None:
        super().__init__(message)
        self.status_code = status_code


def head_too_large() -> RequestError:
    """The error of a head above ``HEAD_MAX``."""
    return RequestError(431, f"the headers of the request have more than {HEAD_MAX} bytes")


def malformed(error: Exception) -> RequestError:
    """The error of what the parser refused."""
    if isinstance(error, httptools.HttpParserInvalidMethodError):
        return RequestError(400, "the request is malformed, or its method is none that this server knows")
    return RequestError(400, f"the request is malformed: {str(error)[:200] or type(error).__name__}")


class BadHeaderError(SkateError):
    """A request header of ours has no usable value."""

    status, grpc, fault = 400, "INVALID_ARGUMENT", "caller"


class Request:
    """What is known when a request's head is complete; ``error`` says why it is refused, and then closed or not."""

    __slots__ = (
        "deadline",
        "error",
        "expects",
        "given",
        "headers",
        "keep_alive",
        "length",
        "method",
        "path",
        "query",
        "raw_path",
        "request_id",
        "target",
        "timeout_s",
        "upgrade",
        "version",
    )

    def __init__(self, target: bytes, headers: Headers, version: str, timeout_s: float | None) -> None:
        self.target = target
        self.headers = headers
        self.version = version
        self.timeout_s = timeout_s
        self.deadline: float | None = None  # on the clock, once it runs
        self.method = "GET"
        self.keep_alive = True
        self.path, self.raw_path, self.query = split_target(target)
        self.request_id = ""
        self.given = False  # the client sent the id
        self.length = 0  # of the body
        self.expects = False  # the client waits for "100 Continue" before it sends the body
        self.upgrade = b""
        self.error: SkateError | None = None

    @property
    def is_head(self) -> bool:
        return self.method == "HEAD"


def read_request(
    method: bytes,
    target: bytes,
    version: str,
    headers: Headers,
    watched: Headers,
    timeout_s: float | None,
) -> Request:
    """A request from what the parser found; ``watched`` are those of its headers (lower-case names) in ``WATCHED``.

    ``timeout_s`` applies where the client names none.
    """
    request = Request(target, headers, version, timeout_s)
    if method != b"GET":
        request.method = _METHODS.get(method) or _METHODS.setdefault(method, method.decode("ascii"))
    hosts = 0
    for name, value in watched:
        if name == b"host":
            hosts += 1
        elif name == b"content-length":
            request.length = int(value)  # the parser has checked it
        else:
            _read_rare(request, name, value)
    if not request.request_id:
        request.request_id = new_request_id()
    if hosts != 1 and (hosts or version == "1.1"):
        request.error = RequestError(400, f"the request has {hosts or 'no'} Host headers; it must have one")
    if version != "1.1" and version != "1.0":
        request.error = RequestError(505, f"this server speaks HTTP/1.1 and HTTP/1.0, not HTTP/{version}")
    elif method == b"CONNECT":
        request.error = RequestError(501, "this server opens no tunnels (method CONNECT)")
    elif len(target) > TARGET_MAX:
        request.error = RequestError(
            414, f"the address has more than {TARGET_MAX} bytes; put long values into the body"
        )
    elif len(headers) > HEADERS_MAX:
        request.error = RequestError(431, f"the request has more than {HEADERS_MAX} headers")
    return request


def _read_rare(request: Request, name: bytes, value: bytes) -> None:
    if name == REQUEST_ID:
        if not request.given:
            if not _GOOD_ID.fullmatch(value):
                value = _BAD_SIGNS.sub(b"", value)[:REQUEST_ID_MAX]
            request.request_id = value.decode("ascii")
            request.given = bool(value)
    elif name == TIMEOUT:
        try:
            request.timeout_s = read_timeout(value)
        except BadHeaderError as error:
            request.error = error
    elif name == b"transfer-encoding":
        if request.length == LENGTH_UNKNOWN:  # the parser overlooks the second one behind "chunked<tab>"
            request.error = RequestError(400, "the request has two Transfer-Encoding headers; it may have one")
            return
        request.length = LENGTH_UNKNOWN
        if value.lower() != b"chunked" or request.version != "1.1":  # whoever is in front may frame it differently
            request.error = RequestError(501, "the only transfer-encoding that is taken is chunked, and in HTTP/1.1")
    elif name == b"expect":
        request.expects = value.lower() == b"100-continue" and request.version == "1.1"
    elif name == b"upgrade":
        request.upgrade = value.lower()


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


def split_target(target: bytes) -> tuple[str, bytes, bytes]:
    """Path (decoded), raw path and query. "*" and the ``host:port`` of CONNECT come out as they are: no path at all."""
    if b"#" in target:
        target = target.partition(b"#")[0]
    if target[:1] != b"/":
        _, scheme, rest = target.partition(b"://")
        if not scheme:
            return target.decode("latin-1"), target, b""
        found = _ORIGIN_FORM.fullmatch(rest)
        target = found[1] if found is not None else b""
        if target[:1] != b"/":
            target = b"/" + target
    raw_path, _, query = target.partition(b"?")
    if b"%" in raw_path:
        return unquote_to_bytes(raw_path).decode("utf-8", "replace"), raw_path, query
    return raw_path.decode("utf-8", "replace"), raw_path, query
