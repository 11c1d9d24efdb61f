"""Frames on an asyncio transport. Law: what is said within one loop tick leaves in few writes, not one a frame.

Both ends build on this: ``Peer`` (who calls) and ``Session`` (who answers). It keeps no queue of its own beyond
one tick; credit per call and ``pause_writing`` bound what the transport below may hold.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from contextlib import suppress
from typing import Protocol

from skate.core.errors import WireError
from skate.dataplane.shared.neighbour import neighbour, probe
from skate.dataplane.shared.segment import reachable
from skate.dataplane.wire.connection import Connection, Role
from skate.dataplane.wire.frames import HEADER, HEADER_SIZE, SHARES, Frame, header, join_head, pack

logger = logging.getLogger("skate.wire")

COPY_MAX = 32 * 1024  # bodies up to this size are joined into one write; larger ones are written as they are
FLUSH_FRAMES = 12  # frames that leave before the end of a tick: two processes work at once instead of taking turns
WRITE_HIGH = 1024 * 1024  # bytes in the transport above which streams wait
READ_MAX = 256 * 1024  # bytes of one read of what a broken connection still holds
ABORT_S = 1.0  # for what was gathered to leave a connection that is closed for a broken protocol
CLOSE_S = 5.0  # the same for one that is closed in order
SILENT_S = 10.0  # without a sign of life from another machine, after which the connection to it counts as lost


def watch_line(raw: socket.socket) -> None:
    """Lets the kernel notice, within ``SILENT_S``, that a link is cut or the machine at its other end is gone."""
    third_s = max(1, round(SILENT_S / 3))
    kept = {"TCP_KEEPIDLE": third_s, "TCP_KEEPINTVL": third_s, "TCP_KEEPCNT": 2}  # for a connection that is silent
    kept["TCP_USER_TIMEOUT"] = round(SILENT_S * 1000)  # for what was sent on it
    with suppress(OSError), socket.fromfd(raw.fileno(), raw.family, raw.type) as line:  # uvloop's own takes no options
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in kept.items():
            if (option := getattr(socket, name, None)) is not None:  # not every system has them all
                line.setsockopt(socket.IPPROTO_TCP, option, value)


class Packs(Protocol):
    """Who gathers pieces of a frame until frames are written."""

    def pack(self) -> None: ...


class Framed(asyncio.Protocol):
    """One connection: cuts what comes, gathers what goes."""

    def __init__(self, role: Role, name: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.wire = Connection(role)
        self.name = name
        self.transport: asyncio.Transport | None = None
        self.closed = False
        self.peer_pid = 0  # of the process at the other end, where its memory can be opened here
        self.greeted: asyncio.Future[None] = self.loop.create_future()
        self._out: list[bytes | memoryview] = []
        self._gathered: list[Packs] = []  # have something to pack before the next write
        self._flushing = False
        self._fd = -1  # of the socket below, if there is one
        self._drained: asyncio.Event | None = None  # set while nothing is stuck below; None until first needed
        self._stuck = False

    # -- asyncio.Protocol -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self.transport = transport  # type: ignore[assignment]
        self.transport.set_write_buffer_limits(high=WRITE_HIGH)  # type: ignore[union-attr]
        raw = transport.get_extra_info("socket")
        self._fd = -1 if raw is None else raw.fileno()
        if raw is not None and raw.family != socket.AF_UNIX:
            watch_line(raw)
        if self.wire.role == "caller":
            self.write(self.hello(raw))

    def data_received(self, data: bytes) -> None:
        try:
            frames = self.wire.feed(data)
        except WireError as error:
            self.abort(error)
            return
        if self.wire.peer_name is not None and not self.greeted.done():
            self._greet()
            self.greeted.set_result(None)
            self.on_greeted()
        if frames:
            try:
                self.on_frames(frames)
            except WireError as error:
                self.abort(error)

    def _greet(self) -> None:
        """Answers the other side's hello: with ours, and with whether its memory can be opened here.

        In this order, so that a caller knows both before its first call.
        """
        raw = self.transport.get_extra_info("socket") if self.transport is not None else None
        if self.wire.role == "callee":
            self.write(self.hello(raw))
        hello, pid = self.wire.peer_hello, neighbour(raw)
        if pid and hello is not None and hello.probe is not None and reachable(pid, hello.probe):
            self.peer_pid = pid
            self.write(pack(SHARES, 0, 0, 0, b""))

    def connection_lost(self, error: Exception | None) -> None:
        if self.closed and self.transport is None:
            return
        if error is not None and not self.closed:
            self.closed = True
            self._read_rest()
        self.closed = True
        self.transport = None
        self._fd = -1  # the kernel may give the number to somebody else
        self._out.clear()
        Framed.resume_writing(self)
        if not self.greeted.done():
            self.greeted.set_exception(error or WireError("the connection closed before it said hello"))
            self.greeted.exception()  # whoever waits sees it; nobody waiting is no error
        self.on_closed(error)

    def _read_rest(self) -> None:
        """Takes what the other side said before it died: a write that failed has kept the loop from reading it.

        It may hold answers, and marks of calls that were started; without them those calls would be executed twice.
        """
        sock = self.transport.get_extra_info("socket") if self.transport is not None else None
        if sock is None or self.wire.role != "caller":
            return
        try:
            while data := os.read(sock.fileno(), READ_MAX):
                self.data_received(data)
        except OSError:  # nothing more is there
            return

    def pause_writing(self) -> None:
        self._stuck = True
        if self._drained is not None:
            self._drained.clear()

    def resume_writing(self) -> None:
        self._stuck = False
        if self._drained is not None:
            self._drained.set()

    # -- for the two ends -----------------------------------------------------------------------

    @property
    def fd(self) -> int:
        """The descriptor of the socket below; -1: there is none."""
        return self._fd

    def hello(self, raw: socket.socket | None) -> bytes:
        """The first frame; ``raw`` is the socket below, if there is one."""
        return self.wire.hello(self.name, probe=probe(raw))

    def on_greeted(self) -> None:
        """The other side said hello."""

    def on_frames(self, frames: list[Frame]) -> None:
        raise NotImplementedError

    def on_closed(self, error: Exception | None) -> None:
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        """Gathers bytes that leave at the end of this loop tick."""
        if self.closed:
            return
        self._out.append(data)
        self._plan_flush()

    def write_frame(
        self, kind: int, call: int, flags: int, load: int, body: bytes | memoryview, alone: bool = False
    ) -> None:
        """Gathers one frame; a large body is not copied. ``alone``: nothing else is under way, so it leaves at once."""
        if self.closed:
            return
        size = len(body)
        if size <= COPY_MAX:
            self._out.append(HEADER.pack(size, call, kind, flags, load) + body)
        else:
            self._out += (header(kind, call, flags, load, size), body)
        if alone:
            self.flush()
        else:
            self._plan_flush()

    def write_headed(self, kind: int, call: int, flags: int, head: bytes, body: bytes, alone: bool = False) -> None:
        """Gathers one frame flagged HEADED; a large body is not copied."""
        if len(body) <= COPY_MAX:
            self.write_frame(kind, call, flags, 0, join_head(head, body), alone)
        elif not self.closed:
            front = join_head(head, b"")
            self._out += (header(kind, call, flags, 0, len(front) + len(body)) + front, body)
            self._plan_flush()

    def _plan_flush(self) -> None:
        if len(self._out) >= FLUSH_FRAMES:
            self.flush()
        elif not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._end_of_tick)

    def _end_of_tick(self) -> None:
        self._flushing = False
        self.flush()

    def flush(self) -> None:
        """Writes what was gathered, at once where the kernel takes it.

        uvloop keeps what its transport is given until the end of the iteration. So that the other side can begin while
        this one still works, bytes go past the transport as long as nothing waits in it.
        """
        if self._gathered:
            gathered, self._gathered = self._gathered, []
            for one in gathered:
                one.pack()
        out, self._out = self._out, []
        transport = self.transport
        if transport is None or not out:
            return
        if any(len(part) > COPY_MAX + HEADER_SIZE for part in out):
            transport.writelines(out)
            return
        data = out[0] if len(out) == 1 else b"".join(out)
        if self._fd >= 0 and not transport.is_closing() and transport.get_write_buffer_size() == 0:
            try:
                data = data[os.write(self._fd, data) :]
            except OSError:  # full, or broken: the transport knows what to do
                pass
        if data:
            transport.write(data)

    async def drained(self) -> None:
        """Waits while the transport below holds more than ``WRITE_HIGH`` bytes."""
        if not self._stuck:
            return
        if self._drained is None:
            self._drained = asyncio.Event()
        await self._drained.wait()

    def abort(self, error: Exception) -> None:
        """Ends the connection because the other side broke the protocol."""
        logger.warning("connection %s with %s closed: %s", self.name, self.wire.peer_name, error)
        if not self.greeted.done():
            self.greeted.set_exception(error)
            self.greeted.exception()
        transport = self.transport
        self.close()
        if transport is not None:  # who breaks the protocol may as well have stopped reading
            self.loop.call_later(ABORT_S, transport.abort)

    def close(self) -> None:
        """Ends the connection after what was gathered has left."""
        self.flush()
        transport = self.transport
        if transport is not None:
            self.closed = True
            if transport.get_write_buffer_size():  # the other side may never read again
                self.loop.call_later(CLOSE_S, transport.abort)
            transport.close()
