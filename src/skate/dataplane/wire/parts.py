"""A payload in parts: how large values are written down. Law: bytes in, a checked table out; nothing is opened here.

A payload is self-describing by its first byte. Pickles begin with 0x80 and are sent as they are. What begins with
0x81 is a pickle and its out-of-band buffers (part 0 is the pickle), each either in these bytes or in a segment of
shared memory of the process at the other end of the connection:

    0x81 | segments u8 | parts u16+u32 | segment (fd u32, inode u64, generation u64, size u64) ... |
    part (where u32, offset u64, length u64) ... | bytes of the parts that are here

``where`` is 0 for a part that is here, else the number of its segment, from 1. Which process the segments belong to
is not said: it is the one that the kernel names for the connection, so that no payload can name another's memory.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from skate.core.errors import WireError

IN_PARTS = b"\x81"
SEGMENTS_MAX = 255  # in one payload; more than that are copied
HERE = 0

_HEAD = struct.Struct("<BBHI")
_EXTENT = struct.Struct("<IQQQ")
_PART = struct.Struct("<IQQ")


class Extent(NamedTuple):
    """A segment as its owner names it: its descriptor, what it must be when it is opened, and its size in bytes."""

    fd: int
    inode: int
    generation: int
    size: int


class Part(NamedTuple):
    """``where``: HERE, or the number of the segment from 1; ``offset`` there, or in the bytes behind the table."""

    where: int
    offset: int
    length: int


class Table(NamedTuple):
    """What a payload in parts is made of; ``start``: where the bytes of the parts that are here begin."""

    extents: tuple[Extent, ...]
    parts: tuple[Part, ...]
    start: int


def encode_table(extents: Sequence[Extent], parts: Sequence[Part]) -> bytes:
    """The bytes that go in front of those of the parts that are here."""
    return b"".join(
        (
            _HEAD.pack(IN_PARTS[0], len(extents), 0, len(parts)),
            *(_EXTENT.pack(*extent) for extent in extents),
            *(_PART.pack(*part) for part in parts),
        )
    )


def decode_table(data: bytes) -> Table:
    """Raises WireError for anything but a table whose parts lie inside of what it names."""
    if len(data) < _HEAD.size or data[:1] != IN_PARTS:
        raise WireError("a payload in parts is cut")
    _, segments, _, count = _HEAD.unpack_from(data)
    middle = _HEAD.size + segments * _EXTENT.size
    start = middle + count * _PART.size
    if count == 0 or start > len(data):
        raise WireError(f"a payload of {len(data)} bytes announces {segments} segments and {count} parts")
    extents = tuple(map(Extent._make, _EXTENT.iter_unpack(data[_HEAD.size : middle])))
    parts = tuple(map(Part._make, _PART.iter_unpack(data[middle:start])))
    room = (len(data) - start, *(extent.size for extent in extents))
    for where, offset, length in parts:
        if where >= len(room) or offset + length > room[where]:
            raise WireError(f"a part of {length} bytes at {offset} lies outside of what its payload names")
    return Table(extents, parts, start)
