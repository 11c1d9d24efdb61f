"""What a handler returned, as an HTTP reply.

Law: None, bytes and str are text as they are, a Response is itself, everything else is JSON. A stream takes its
content type from its first item: text for str and bytes, one JSON document a line for everything else.
"""

from __future__ import annotations

import inspect
from typing import Any

from starlette.responses import Response

from skate.dataplane.replica.jsonable import encode_json
from skate.dataplane.wire.head import ReplyHead

_TEXT = (b"content-type", b"text/plain; charset=utf-8")
_PLAIN = (b"content-type", b"text/plain")
_JSON = (b"content-type", b"application/json")
_LINES = (b"content-type", b"application/x-ndjson")
_BINARY = (bytes, bytearray, memoryview)

Reply = tuple[ReplyHead, bytes]


def render(value: Any) -> Reply | None:
    """The whole reply; None for what needs more than one step: streams, awaitables, Responses that send themselves."""
    kind = type(value)
    if kind is str:
        return _reply(_TEXT, value.encode())
    if kind is dict or kind is list:
        return _reply(_JSON, encode_json(value))
    if value is None:
        return _reply(_PLAIN, b"")
    if isinstance(value, _BINARY):
        return _reply(_PLAIN, bytes(value))
    if isinstance(value, str):
        return _reply(_TEXT, str.encode(value))
    if isinstance(value, Response):
        return _of_response(value)
    if is_stream(value) or hasattr(kind, "__await__"):
        return None
    return _reply(_JSON, encode_json(value))


def is_stream(value: Any) -> bool:
    """Whether a value is an iterator, sync or async, rather than a thing."""
    kind = type(value)
    return hasattr(kind, "__anext__") or (hasattr(kind, "__next__") and not inspect.isawaitable(value))


def stream_head(first: Any) -> ReplyHead:
    """The head of a stream that begins with this item."""
    return ReplyHead(200, [_TEXT if isinstance(first, str | bytes | bytearray | memoryview) else _LINES])


def stream_chunk(item: Any) -> bytes:
    """One item of a stream as it goes to the client."""
    if type(item) is bytes:
        return item
    if isinstance(item, str):
        return str.encode(item)
    if isinstance(item, _BINARY):
        return bytes(item)
    return encode_json(item) + b"\n"


def _reply(content_type: tuple[bytes, bytes], body: bytes) -> Reply:
    return ReplyHead(200, [content_type, (b"content-length", b"%d" % len(body))]), body


def _of_response(response: Response) -> Reply | None:
    if type(response).__call__ is not Response.__call__:
        return None  # streams, files, and whatever users derive: they send themselves
    return ReplyHead(response.status_code, response.raw_headers), bytes(response.body)
