"""Connections inside one process: two protocols that hand each other bytes through the loop. No copies, no sockets."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

LISTENERS: dict[str, Callable[[], asyncio.Protocol]] = {}  # name -> makes the callee's protocol
os.register_at_fork(after_in_child=LISTENERS.clear)  # those who listen live in the parent


class MemoryTransport(asyncio.Transport):
    """One end of a pair. Bytes written here reach the other end's protocol in a later tick, in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._loop = loop
        self._protocol = protocol
        self._other: MemoryTransport | None = None
        self._closing = False

    def join(self, other: MemoryTransport) -> None:
        self._other = other

    def write(self, data: Any) -> None:
        if not self._closing and self._other is not None:
            self._loop.call_soon(self._other.deliver, bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def deliver(self, data: bytes) -> None:
        if not self._closing:
            self._protocol.data_received(data)

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._loop.call_soon(self._protocol.connection_lost, None)
        if self._other is not None:
            self._loop.call_soon(self._other.close)

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self._closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is buffered here: credit bounds what is under way."""

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


def connect_memory(name: str, caller: asyncio.Protocol) -> None:
    """Joins ``caller`` with a new protocol of whoever listens at ``name``; ConnectionRefusedError if nobody does."""
    make = LISTENERS.get(name)
    if make is None:
        raise ConnectionRefusedError(f"nobody listens at memory:{name}")
    loop = asyncio.get_running_loop()
    callee = make()
    here, there = MemoryTransport(loop, caller), MemoryTransport(loop, callee)
    here.join(there)
    there.join(here)
    callee.connection_made(there)
    caller.connection_made(here)
