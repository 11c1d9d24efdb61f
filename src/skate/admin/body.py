"""The body of a request as plain data. Law: a limit on its size, its depth and its time."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request

from skate.admin.answers import Failure

BODY_MAX = 1024 * 1024  # bytes; a file of a thousand applications has half of it
BODY_S = 15.0  # for all of a body to come
DEPTH_MAX = 100  # levels of nesting: user_config may have 64 (core.checks), and lies some levels deep

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_BRACKETS = re.compile(rb"[\[{]|[\]}]")


async def read_json(request: Request) -> Any:
    """The decoded body; None if there is none. Raises Failure."""
    raw = await _read(request)
    if not raw.strip():
        return None
    if depth(raw) > DEPTH_MAX:
        raise Failure(400, "MalformedBody", f"the body is nested more than {DEPTH_MAX} levels deep")
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Failure(400, "MalformedBody", f"the body is no JSON: {error}") from None


async def _read(request: Request) -> bytes:
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_S):
            async for piece in request.stream():
                size += len(piece)
                if size > BODY_MAX:
                    raise Failure(413, "BodyTooLarge", f"the body has more than {BODY_MAX} bytes")
                pieces.append(piece)
    except TimeoutError:
        raise Failure(408, "BodyTooSlow", f"the body did not come within {BODY_S:g} s") from None
    except ClientDisconnect:
        raise Failure(400, "BodyIncomplete", "the body ended before it was complete") from None
    return b"".join(pieces)


def depth(raw: bytes) -> int:
    """How deep a JSON document is nested, found without recursion."""
    deepest = level = 0
    for found in _BRACKETS.finditer(_STRING.sub(b"", raw)):
        if found[0] in b"[{":
            level += 1
            deepest = max(deepest, level)
        else:
            level = max(0, level - 1)
    return deepest
