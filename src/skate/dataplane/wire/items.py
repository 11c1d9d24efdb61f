"""Several items of a stream in one chunk (flag MANY). Law: a chunk is segments and nothing else, in order of the items.

    length u32 | segment[length]

The highest bit of the length says what a segment is: one item as its caller would get it alone, or a run, the
pickle of a list of items. A frame for each small item costs more than all the rest of its way.
"""

from __future__ import annotations

import struct

from skate.core.errors import WireError

SEGMENT_MAX = (1 << 31) - 1
_RUN = 1 << 31
_U32 = struct.Struct("<I")

Segment = tuple[bool, bytes]  # a run?, the pickle


def segment_head(length: int, run: bool) -> bytes:
    """What goes in front of a segment of this length."""
    if length > SEGMENT_MAX:
        raise WireError(f"a segment of {length} bytes is above the limit of {SEGMENT_MAX}")
    return _U32.pack(length | _RUN if run else length)


def split_segments(body: bytes) -> list[Segment]:
    """The segments of a chunk. Raises WireError if they do not fill it exactly."""
    found: list[Segment] = []
    at, end = 0, len(body)
    while at < end:
        if end - at < 4:
            raise WireError("a chunk of items ends within a length")
        (word,) = _U32.unpack_from(body, at)
        start = at + 4
        at = start + (word & ~_RUN)
        if at > end:
            raise WireError("a chunk of items ends within an item")
        found.append((bool(word & _RUN), body[start:at]))
    return found
