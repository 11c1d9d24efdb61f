"""The mark: how far a callee has come with a caller's calls, readable after the callee died. Memory that both share.

Law: calls of one connection start in the order of their ids, so one number says which were started: all up to it.
The callee writes it before user code of a call runs, the caller reads it when the connection broke. That takes no
frame and wakes nobody; a STARTED frame for each read cost a write here and a wake-up there (designs/0002).

The memory is a memfd of the caller: nameless, gone with its last user. The callee finds it as ``/proc/<pid>/fd/<n>``,
which works for the same user in the same pid namespace; where it does not (TCP, macOS), STARTED frames say the same.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct

from skate.dataplane.shared.neighbour import neighbour
from skate.dataplane.wire.connection import follows

NAME = "skate-mark"
_LAST = struct.Struct("<I")


class Mark:
    """The caller's end. ``fd`` goes into its hello."""

    __slots__ = ("_memory", "fd")

    def __init__(self) -> None:
        self.fd = os.memfd_create(NAME)
        os.ftruncate(self.fd, mmap.PAGESIZE)
        self._memory = mmap.mmap(self.fd, mmap.PAGESIZE)

    def covers(self, call: int) -> bool:
        """Whether the callee had started this call."""
        (last,) = _LAST.unpack_from(self._memory)
        return last != 0 and not follows(call, last)

    def close(self) -> None:
        """Lets go of the memory; the callee may hold it longer."""
        self._memory.close()
        os.close(self.fd)


def offered(raw: socket.socket | None) -> Mark | None:
    """A mark for a connection over this socket; None where the other end could not open it."""
    if raw is None or raw.family != socket.AF_UNIX or not hasattr(os, "memfd_create"):
        return None
    try:
        return Mark()
    except OSError:  # no descriptor is left: frames do
        return None


def attached(raw: socket.socket | None, pid: int, fd: int) -> mmap.mmap | None:
    """The memory of the mark that a caller offers; None where there is none that can be trusted and opened."""
    if fd < 0 or not pid or neighbour(raw) != pid:
        return None
    path = f"/proc/{pid}/fd/{fd}"
    try:
        if not os.readlink(path).startswith(f"/memfd:{NAME}"):
            return None
        own = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            return mmap.mmap(own, mmap.PAGESIZE) if os.fstat(own).st_size == mmap.PAGESIZE else None
        finally:
            os.close(own)
    except (OSError, ValueError):
        return None


def note(memory: mmap.mmap, call: int) -> None:
    """The callee has started this call and all before it."""
    _LAST.pack_into(memory, 0, call)
