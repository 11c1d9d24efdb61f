"""Who is at the other end of a connection, and whether memory may be shared with it.

Law: the kernel says which process that is, never the other side; only a process of the same user is a neighbour.
Whether its memory can really be opened (pid namespaces, /proc, capabilities) is tried, on memory without content.
"""

from __future__ import annotations

import os
import socket
import struct

from skate.dataplane.shared.pool import pool
from skate.dataplane.wire.parts import Extent

_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid of SO_PEERCRED


def neighbour(raw: socket.socket | None) -> int:
    """The process that opened the other end of a Unix socket, if it is one of this user; else 0."""
    if raw is None or raw.family != socket.AF_UNIX or not hasattr(socket, "SO_PEERCRED"):
        return 0
    try:
        said = raw.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError:  # closed
        return 0
    pid, uid, _ = _CREDENTIALS.unpack(said)
    return int(pid) if uid == os.geteuid() else 0


def probe(raw: socket.socket | None) -> Extent | None:
    """Memory that the other end may try to open; None where that is of no use."""
    return pool.probe() if neighbour(raw) else None
