"""The way out to one client: bytes that leave at once, and the two things that only the socket itself can do or tell.

Law: order is kept: bytes go past the transport only while nothing waits in it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct

_NO_LINGER = struct.pack("ii", 1, 0)


class Outlet:
    """Writes to the client of a transport."""

    __slots__ = ("_fd", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        raw = transport.get_extra_info("socket")
        self._fd = -1 if raw is None or transport.get_extra_info("sslcontext") is not None else raw.fileno()

    def write(self, data: bytes) -> None:
        """Writes what the kernel takes now, and the rest when it can.

        uvloop would keep it all until everything that was read is dealt with, and the client could not go on meanwhile.
        """
        if self._fd >= 0 and not self._transport.get_write_buffer_size():
            try:
                data = data[os.write(self._fd, data) :]
            except OSError:  # full, or broken: the transport knows what to do
                pass
            if not data:
                return
        self._transport.write(data)

    def close(self) -> None:
        """From here on the transport alone writes: the kernel may give the descriptor's number to somebody else."""
        self._fd = -1

    def reset(self) -> None:
        """Ends the connection so that the client sees an error, not an end."""
        own = self._transport.get_extra_info("socket")
        if own is not None:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self._transport.abort()

    def broken(self) -> bool:
        """Whether the system knows that the client is gone."""
        own = self._transport.get_extra_info("socket")
        return own is not None and bool(own.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
