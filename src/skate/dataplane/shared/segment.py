"""One piece of shared memory, from its owner's and from a receiver's side.

Law: a segment is a memfd: it has no name, and goes when the last process that has it goes, however that ends. Who
reads it holds ``flock(LOCK_SH)`` on an open file of its own for as long as it has it mapped; the owner writes only
after ``flock(LOCK_EX)`` succeeded and its generation was raised. So the owner learns that a segment is free when it
wants to know, without a message, the kernel frees what a killed receiver held, and a receiver that comes too late
finds another generation: an error, never somebody else's bytes.

A mapping keeps its open file, and so the lock, alive: also in a child that user code forked while it had one.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import struct
import weakref

from skate.core.errors import CodeError
from skate.dataplane.wire.parts import Extent

HEAD_SIZE = 4096  # a page of its own: what follows is aligned for every type
PIECE = 8 << 20  # bytes copied at once; between two pieces other threads may run
MAGIC = b"skateseg"

_HEAD = struct.Struct("<8sQ")
_CLAIMED_AT = _HEAD.size

HELD, AWAITED, KEPT, FREE = "held", "awaited", "kept", "free"  # the states of a segment, to its owner
AVAILABLE = hasattr(os, "memfd_create")


class Hold:
    """Whoever keeps this keeps the owner from writing to the segment that it was given for."""

    __slots__ = ("__weakref__",)


class Segment:
    """A segment of this process; offsets count from its beginning, where a page of ``HEAD_SIZE`` is its own.

    Raises OSError when it cannot be made.
    """

    __slots__ = ("_hold", "_map", "cost", "extent", "fd", "seen", "sent", "size", "used")

    def __init__(self, size: int, generation: int) -> None:
        self.size = size
        self.fd = os.memfd_create("skate", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, size)
            self._map = mmap.mmap(self.fd, size)
            inode = os.fstat(self.fd).st_ino
        except BaseException:
            os.close(self.fd)
            raise
        self.used = HEAD_SIZE  # bytes that have been written at any time: what it costs
        self.sent = False  # its last content was said to somebody
        self.cost = 0  # bytes that the pool counts for it
        self.seen: tuple[str, float] | None = None  # the state in which the pool saw it, and since when
        self._hold: weakref.ref[Hold] | None = None
        self.extent = Extent(self.fd, inode, generation, size)
        self._write_head()

    def _write_head(self) -> None:
        self._map[: _CLAIMED_AT + 1] = _HEAD.pack(MAGIC, self.extent.generation) + b"\0"

    def state(self) -> str:
        """HELD by somebody here, AWAITED by the one it was sent to, KEPT by a receiver, or FREE."""
        if self._hold is not None and self._hold() is not None:
            return HELD
        if self.sent and not self._map[_CLAIMED_AT]:
            return AWAITED
        if not self._lock():
            return KEPT
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        return FREE

    def take(self, generation: int) -> Hold | None:
        """Makes it ours to write, as ``generation``; None while somebody has its content or may still come for it."""
        if self._hold is not None and self._hold() is not None:
            return None
        if (self.sent and not self._map[_CLAIMED_AT]) or not self._lock():
            return None
        self.extent = self.extent._replace(generation=generation)
        self._write_head()
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        return self.hold()

    def hold(self) -> Hold:
        """The hold of whoever writes to a segment that is new or was taken."""
        hold = Hold()
        self._hold = weakref.ref(hold)
        self.sent = False
        self.seen = None
        return hold

    def _lock(self) -> bool:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def write(self, offset: int, data: memoryview) -> memoryview:
        """Copies ``data`` to ``offset`` and shows it there.

        Where its pages do not exist yet it goes through the descriptor, which takes half the time.
        """
        end = offset + len(data)
        cold = end > self.used
        for at in range(0, len(data), PIECE):
            piece = data[at : at + PIECE]
            if cold:
                _write_all(self.fd, piece, offset + at)
            else:
                self._map[offset + at : offset + at + len(piece)] = piece
        self.used = max(self.used, end)
        return memoryview(self._map)[offset:end]

    def close(self) -> None:
        """Gives it up; receivers keep what they have."""
        os.close(self.fd)
        self.fd = -1


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


_held: set[int] = set()  # by id, what of other processes is open or mapped here: counted, because descriptors are few


class Mapping(mmap.mmap):
    """A segment of another process, mapped; its memory is released with the last view of it."""

    def __new__(cls, fd: int, size: int) -> Mapping:
        made = super().__new__(cls, fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        _held.add(id(made))
        return made

    def __del__(self) -> None:
        _held.discard(id(self))


class Grip:
    """A segment of another process, opened and locked: its owner leaves it alone while this or a mapping of it lives.

    Raises OSError or CodeError when it is not, or no longer, what ``extent`` says.
    """

    __slots__ = ("extent", "fd")

    def __init__(self, pid: int, extent: Extent) -> None:
        self.fd = os.open(f"/proc/{pid}/fd/{extent.fd}", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        _held.add(id(self))
        fcntl.flock(self.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        found = os.fstat(self.fd)
        if not stat.S_ISREG(found.st_mode) or found.st_ino != extent.inode or found.st_size < extent.size:
            raise CodeError(f"descriptor {extent.fd} of process {pid} is not the shared memory that was announced")
        if os.pread(self.fd, _HEAD.size, 0) != _HEAD.pack(MAGIC, extent.generation):
            raise CodeError(f"the shared memory at descriptor {extent.fd} of process {pid} holds another value by now")
        os.pwrite(self.fd, b"\1", _CLAIMED_AT)
        self.extent = extent._replace(fd=self.fd)  # as this process may name it in its turn

    def map(self) -> Mapping:
        """Its memory; a page that is written to becomes this mapping's own."""
        return Mapping(self.fd, self.extent.size)

    def copy(self, offset: int, length: int) -> bytearray:
        """What lies at ``offset`` of the segment's file."""
        data = bytearray(length)
        view = memoryview(data)
        while view:
            done = os.preadv(self.fd, [view], offset)
            if not done:
                raise CodeError("a shared memory ended before its size")
            view, offset = view[done:], offset + done
        return data

    def __del__(self) -> None:
        _held.discard(id(self))
        if hasattr(self, "fd"):
            os.close(self.fd)


def held() -> int:
    """How many segments of other processes are open or mapped in this one."""
    return len(_held)


def reachable(pid: int, extent: Extent) -> bool:
    """Whether this process can open what that one offers (same user, same view of the processes, /proc there)."""
    try:
        Grip(pid, extent)
    except (OSError, CodeError):
        return False
    return True
