"""How Python values become bytes and come back: arguments, results and stream items of handle calls.

Law: a payload is ``bytes`` that say themselves what they are (``wire/parts.py``). One that refers to shared memory is
bytes, too, of a class that keeps that memory as it is for as long as it lives: ``Lent`` where the value was made,
``Arrived`` where it came. So whoever keeps a payload (a call until it has started, a response until it is looked
at) does what is needed without knowing of it. A payload that cannot be shared is a payload all the same: whatever
stands in the way (another machine, no memory left to lend) costs time and is no error.

The receiver's value lies in the shared memory itself, mapped so that a page that is written to becomes the
receiver's own: arrays arrive writable, and what one receiver writes neither the sender nor another receiver sees.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pickle import PickleBuffer
from typing import Any

from skate.authoring import code
from skate.core.errors import CodeError, ReplicaDiedError, WireError
from skate.dataplane.shared.pool import files_max, pool
from skate.dataplane.shared.segment import HEAD_SIZE, Grip, Segment, held
from skate.dataplane.wire.parts import HERE, IN_PARTS, SEGMENTS_MAX, Part, Table, decode_table, encode_table

SHARE_MIN = 128 * 1024  # bytes from which on shared memory is faster than the socket (100 to 200 KB, measured)
STREAM_MIN = 8 * 1024  # bytes of a pickle that goes where its buffers go, and not into the frame
ALIGN = 64  # of every part in a segment: a cache line, enough for any element
HELD_MAX = min(512, files_max())  # segments of others that are open or mapped here; what comes beyond is copied


class Lent(bytes):
    """A payload made here, and the memory that it refers to; that is not written to while this lives."""

    views: list[memoryview]  # of all parts, wherever they lie
    keeps: tuple[object, ...]
    segment: Segment | None  # of this process; the other ones were passed on
    size: int  # bytes in all, for credit

    def on_wire(self, shares: bool) -> bytes:
        """The bytes for a connection: these, if the other side can open our memory, else all that they refer to.

        Arguments need no ``leaves``: their call holds the memory until it has started or ended, and nobody comes later.
        """
        return self if shares else _inline(self.views)

    def leaves(self) -> None:
        """Notes that these bytes are said to somebody now, who will come for the memory."""
        if self.segment is not None:
            self.segment.sent = True


class Arrived(bytes):
    """A payload of another process, and the memory that it refers to, held as it is while this lives."""

    table: Table
    grips: tuple[Grip, ...]
    copies: list[memoryview]  # of all parts, where no more segments could be held; else empty
    size: int

    def views(self) -> list[memoryview]:
        """All parts; what is written there nobody else sees."""
        if not self.copies:
            try:
                return _views(self, self.table, [memoryview(grip.map()) for grip in self.grips])
            except OSError:  # no more files, or mappings: the descriptors that are open do it
                self.copies = _copied(self, self.table, self.grips)
        return [memoryview(bytearray(copy)) for copy in self.copies]


class Passed:
    """A value that is passed on as it came: the receiver unpickles it, this process never does."""

    __slots__ = ("payload", "views")

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.views = payload.views() if isinstance(payload, Arrived) else []

    def places(self) -> Iterator[tuple[int, Grip, Part]]:
        """Which of the views lie in memory that a receiver may be referred to, and where; a view by its id."""
        payload = self.payload
        if isinstance(payload, Arrived) and payload.grips and not payload.copies:
            for view, part in zip(self.views, payload.table.parts, strict=True):
                if part.where != HERE:
                    yield id(view), payload.grips[part.where - 1], part

    def __reduce__(self) -> tuple[Any, ...]:
        if self.views:
            return rebuild, tuple(PickleBuffer(view) for view in self.views)
        return loads, (bytes(self.payload),)


# -- out ----------------------------------------------------------------------------------------------


def dumps(value: Any, share: bool = True, passed: Sequence[Passed] = ()) -> bytes:
    """The payload of a value, as it is at this moment. Raises CodeError when it cannot travel.

    ``share``: large buffers may go into shared memory; what is given back is ``Lent`` then. ``passed``: all that the
    value holds of this kind; memory that they refer to is referred to again, and not copied.
    """
    buffers = code.Buffers()
    data = code.dumps(value, buffers)
    if not buffers and len(data) < SHARE_MIN:
        return data
    views = [memoryview(data), *(buffer.raw() for buffer in buffers)]
    lent = _lent(views, passed) if share else None
    if lent is not None:
        return lent
    return _inline(views) if buffers else data


def _lent(views: Sequence[memoryview], passed: Sequence[Passed]) -> Lent | None:
    """The payload with its large parts in shared memory; None where there is nothing to share, or no memory for it."""
    known = {id: (grip, part) for one in passed for id, grip, part in one.places()}
    grips = list(dict.fromkeys(grip for grip, _ in known.values()))
    if len(grips) >= SEGMENTS_MAX:
        known, grips = {}, []
    new = {
        n: -(-len(view) // ALIGN) * ALIGN
        for n, view in enumerate(views)
        if id(view.obj) not in known and (n or len(view) >= STREAM_MIN)
    }
    size = sum(new.values())
    loan = pool.lend(size) if new and (known or size >= SHARE_MIN) else None
    if loan is None and (new or not known):
        return None
    parts: list[Part] = []
    held_views: list[memoryview] = []
    at = HEAD_SIZE
    for n, view in enumerate(views):
        if found := known.get(id(view.obj)):
            parts.append(found[1]._replace(where=grips.index(found[0]) + 1))
            held_views.append(view)
        elif loan and n in new:
            parts.append(Part(len(grips) + 1, at, len(view)))
            try:
                held_views.append(loan[0].write(at, view))
            except OSError:  # no memory
                return None
            at += new[n]
        else:  # the pickle, a short one
            parts.append(Part(HERE, 0, len(view)))
            held_views.append(view)
    extents = [*(grip.extent for grip in grips), *((loan[0].extent,) if loan else ())]
    lent = Lent(b"".join((encode_table(extents, parts), *(views[:1] if parts[0].where == HERE else ()))))
    lent.views, lent.keeps, lent.segment = held_views, (grips, loan), loan[0] if loan else None
    lent.size = _size(lent, parts)
    return lent


def _size(data: bytes, parts: Iterable[Part]) -> int:
    return len(data) + sum(part.length for part in parts if part.where != HERE)


def size_of(payload: bytes | memoryview) -> int:
    """What a payload counts for the credit of its call: its bytes and those that it refers to."""
    return payload.size if isinstance(payload, Lent | Arrived) else len(payload)


def relayed(payload: bytes, shares: bool) -> bytes:
    """A result that came from elsewhere, for another caller, unopened.

    Memory that it refers to is copied: nobody would know until when it has to be held for that caller.
    """
    if not isinstance(payload, Arrived):
        return payload
    views = payload.views()
    return (_lent(views, ()) if shares else None) or _inline(views)


def _inline(views: Sequence[memoryview]) -> bytes:
    """A payload that refers to nothing."""
    if len(views) == 1:
        return bytes(views[0])
    parts, at = [], 0
    for view in views:
        parts.append(Part(HERE, at, len(view)))
        at += len(view)
    return b"".join((encode_table((), parts), *views))


# -- in -----------------------------------------------------------------------------------------------


def receive(data: bytes, pid: int) -> bytes:
    """A payload that has come, with the memory that it refers to held from now on: to be called at once.

    ``pid``: the process at the other end, 0 if its memory cannot be opened here. Raises ReplicaDiedError when that
    process is gone and its memory with it, CodeError when the bytes are no payload.
    """
    if data[:1] != IN_PARTS:
        return data
    table = _table(data)
    if not table.extents:
        return data
    if not pid:
        raise CodeError("a value from another process refers to memory that this connection does not share")
    try:
        grips = tuple(Grip(pid, extent) for extent in table.extents)
    except (OSError, CodeError) as error:
        raise ReplicaDiedError(
            f"a value lay in the memory of process {pid}, which has ended or given it up before it was fetched: {error}"
        ) from error
    arrived = Arrived(data)
    arrived.table, arrived.grips, arrived.copies = table, grips, []
    arrived.size = _size(data, table.parts)
    if held() > HELD_MAX:
        arrived.copies, arrived.grips = _copied(data, table, grips), ()
    return arrived


def _table(data: bytes) -> Table:
    try:
        return decode_table(data)
    except WireError as error:
        raise CodeError(f"a value from another process cannot be read: {error}") from None


def _views(data: bytes, table: Table, roots: Sequence[memoryview]) -> list[memoryview]:
    here = memoryview(data)[table.start :]
    found = []
    for number, (where, offset, length) in enumerate(table.parts):
        view = (roots[where - 1] if where != HERE else here)[offset : offset + length]
        # A buffer in the frame is not ours to write to, and lies as it fell; the pickle is only read.
        found.append(memoryview(bytearray(view)) if where == HERE and number else view)
    return found


def _copied(data: bytes, table: Table, grips: Sequence[Grip]) -> list[memoryview]:
    here = memoryview(data)[table.start :]
    found = []
    for where, offset, length in table.parts:
        copy = bytearray(here[offset : offset + length]) if where == HERE else grips[where - 1].copy(offset, length)
        found.append(memoryview(copy))
    return found


def loads(payload: bytes) -> Any:
    """The value of a payload, a new one each time. Raises CodeError when it cannot be made here."""
    if payload[:1] != IN_PARTS:
        return code.loads(payload)
    if isinstance(payload, Arrived):
        return rebuild(*payload.views())
    table = _table(payload)
    if table.extents:
        raise CodeError("a value from another process refers to memory that was not held when it came")
    return rebuild(*_views(payload, table, ()))


def rebuild(pickled: memoryview, *buffers: Any) -> Any:
    """The value of a pickle and its buffers. Raises CodeError when it cannot be made here."""
    return code.loads(pickled, buffers)
