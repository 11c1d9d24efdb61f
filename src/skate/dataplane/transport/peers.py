"""Listening and connecting, by address: ``unix:/path``, ``tcp:host:port``, ``memory:name``.

Law: an address is a string that means the same in every process; a Unix socket is private to its user (0600);
a connection is of use only after both sides said hello.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

from skate.core.errors import (
    CallTimeoutError,
    CancelCause,
    NotRunningError,
    PayloadTooLargeError,
    RequestCancelledError,
    SkateError,
    WireError,
)
from skate.dataplane.payload import Lent
from skate.dataplane.shared.neighbour import probe
from skate.dataplane.transport.exchange import Acceptor, Listening
from skate.dataplane.transport.failure import decode_failure
from skate.dataplane.transport.framed import Framed
from skate.dataplane.transport.mark import Mark, offered
from skate.dataplane.transport.memory import LISTENERS, connect_memory
from skate.dataplane.wire.frames import (
    CALL,
    CHUNK,
    CREDIT,
    ERROR,
    FRAME_MAX,
    HEAD_LENGTH_SIZE,
    HEADED,
    LAST,
    MANY,
    READY,
    RECALL,
    REFUSED,
    RELEASE,
    RETURNED,
    STARTED,
    Frame,
    pack,
    pack_cancel,
    pack_count,
    unpack_count,
    unpack_ids,
)
from skate.dataplane.wire.head import CONTROL, CallHead, encode_head

logger = logging.getLogger("skate.wire")

CONNECT_TIMEOUT_S = 5.0
BACKLOG = 1024
CLOSE_TURNS = 10  # of the loop, for closed connections to say that they are lost

_request_ids = itertools.count(1)


class CallSink(Protocol):
    """Who hears about one call. Exactly one of the terminal ones comes: last chunk, failed, refused, lost."""

    def wire_started(self) -> None: ...
    def wire_chunk(self, body: bytes, headed: bool, last: bool) -> None: ...
    def wire_items(self, body: bytes) -> None: ...
    def wire_failed(self, body: bytes) -> None: ...
    def wire_refused(self, returned: bool) -> None: ...
    def wire_credit(self) -> None: ...
    def wire_lost(self, error: Exception | None) -> None: ...


class Peer(Framed):
    """The caller's end of one connection. All methods belong to the loop's thread."""

    def __init__(self, name: str) -> None:
        super().__init__("caller", name)
        self.sinks: dict[int, CallSink] = {}
        self.load = 0  # calls the callee had in hand when it last spoke
        self.heard_at = 0.0  # when that was, on the loop's clock
        self.mark: Mark | None = None
        self.far = False  # over a network: what the callee said last may be lost with the connection
        self.on_ready: Callable[[int], None] | None = None
        self.on_lost: Callable[[Peer], None] | None = None

    def hello(self, raw: socket.socket | None) -> bytes:
        self.mark = offered(raw)
        self.far = raw is not None and raw.family != socket.AF_UNIX
        return self.wire.hello(self.name, os.getpid(), -1 if self.mark is None else self.mark.fd, probe(raw))

    # -- calls ----------------------------------------------------------------------------------

    def open(self, sink: CallSink, head: bytes, body: bytes, complete: bool, how: int = 0) -> int:
        """Sends a call; what comes back goes to ``sink``. The id is valid on this connection only.

        ``how``: the flags GRANTED, AHEAD, ASKS. A ``Lent`` body is to be kept by the caller until the call has started.
        Raises PayloadTooLargeError, WireError when too many calls are open; nothing was sent then.
        """
        if isinstance(body, Lent):
            body = body.on_wire(self.wire.shares)
        size = HEAD_LENGTH_SIZE + len(head) + len(body)
        if size > FRAME_MAX:
            raise PayloadTooLargeError(
                f"a call of {size} bytes is above the limit of {FRAME_MAX}: send less at once, "
                "or send where the data lies instead of the data"
            )
        call = self.wire.open(complete)
        self.sinks[call] = sink
        flags = how | HEADED | LAST if complete else how | HEADED
        self.write_headed(CALL, call, flags, head, body, len(self.sinks) == 1)
        return call

    def has_started(self, call: int) -> bool:
        """Whether the callee is known to have started the call; STARTED frames are told to the sink instead."""
        return self.mark is not None and self.mark.covers(call)

    def send(self, call: int, data: bytes, last: bool = False) -> None:
        """A further chunk of input; see ``may_send``."""
        if call in self.sinks:
            self.wire.spend(call, len(data))
            self.write_frame(CHUNK, call, LAST if last else 0, 0, data)
            if last:
                self.wire.finish_input(call)

    def may_send(self, call: int) -> bool:
        """Whether another chunk may go now; if not, ``wire_credit`` tells when."""
        return self.wire.may_send(call) and not self._stuck

    def take(self, call: int, size: int) -> None:
        """The user took a chunk of ``size`` bytes of the answer; gives credit when it is due."""
        credit = self.wire.take(call, size)
        if credit:
            self.write(credit)

    def cancel(self, call: int, reason: str, cause: CancelCause = "cancelled") -> None:
        """Tells the callee to stop; nothing more is heard of the call."""
        if self.sinks.pop(call, None) is not None:
            self.wire.close(call)
            self.write(pack_cancel(call, reason, cause))

    def release(self, count: int) -> None:
        """Gives back slots that READY promised."""
        self.write(pack(RELEASE, 0, 0, 0, pack_count(count)))

    def recall(self) -> None:
        """Asks for all calls back that have not started; they come as refused, the others go on."""
        self.write(pack(RECALL, 0, 0, 0, b""))

    # -- what comes back ------------------------------------------------------------------------

    def on_frames(self, frames: list[Frame]) -> None:
        self.load = frames[-1][3]
        self.heard_at = self.loop.time()
        todo = iter(frames)
        while True:  # again after an error: what one sink does wrong must not cost the others their frames
            try:
                self._hand_out(todo)
                return
            except WireError:
                raise
            except Exception:
                logger.exception("the owner of a call on connection %s failed to take its answer", self.name)

    def _hand_out(self, frames: Iterator[Frame]) -> None:
        sinks = self.sinks
        for kind, call, flags, _, body in frames:
            if kind == CHUNK:
                last = bool(flags & LAST)
                sink = sinks.pop(call, None) if last else sinks.get(call)
                if sink is None:
                    continue
                if flags & MANY and not last:
                    sink.wire_items(body)
                else:
                    sink.wire_chunk(body, bool(flags & HEADED), last)
            elif kind == STARTED:
                for started in unpack_ids(body):
                    if (sink := sinks.get(started)) is not None:
                        sink.wire_started()
            elif kind == READY:
                if self.on_ready is not None:
                    self.on_ready(unpack_count(body))
                else:
                    self.release(unpack_count(body))
            elif kind == CREDIT:
                if (sink := sinks.get(call)) is not None:
                    sink.wire_credit()
            elif (sink := sinks.pop(call, None)) is not None:
                if kind == ERROR:
                    sink.wire_failed(body)
                elif kind == REFUSED:
                    sink.wire_refused(bool(flags & RETURNED))

    def on_closed(self, error: Exception | None) -> None:
        sinks, self.sinks = self.sinks, {}
        if self.on_lost is not None:
            self.on_lost(self)  # first, so that no call is sent here again
        unsure = self.far and error is not None  # any of them may have begun: none may be executed twice
        for call, sink in sinks.items():
            try:
                if unsure or self.has_started(call):
                    sink.wire_started()
                sink.wire_lost(error)
            except Exception:
                logger.exception("the owner of a call on connection %s failed to hear of its loss", self.name)
        if self.mark is not None:
            self.mark.close()
            self.mark = None

    def resume_writing(self) -> None:
        super().resume_writing()
        for sink in list(self.sinks.values()):
            sink.wire_credit()

    # -- control calls --------------------------------------------------------------------------

    async def ask(self, method: str, body: bytes = b"", timeout_s: float | None = 30.0) -> bytes:
        """A control call and its answer. Raises the tree's errors, CallTimeoutError after ``timeout_s``."""
        answer: asyncio.Future[bytes] = self.loop.create_future()
        chunks: list[bytes] = []

        def on_end(error: BaseException | None) -> None:
            if not answer.done():
                if error is None:
                    answer.set_result(b"".join(chunks))
                else:
                    answer.set_exception(error)

        cancel = self.subscribe(method, body, chunks.append, on_end)
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            if answer.done() and not answer.cancelled():
                raise
            raise CallTimeoutError(f"{self.wire.peer_name} did not answer {method!r} within {timeout_s} s") from None
        finally:
            cancel()

    def subscribe(
        self,
        method: str,
        body: bytes,
        on_chunk: Callable[[bytes], object],
        on_end: Callable[[BaseException | None], object],
    ) -> Callable[[], None]:
        """A control call whose answer is a stream; returns what ends it. ``on_end`` comes once, or never after that."""
        sink = _ControlSink(self, method, on_chunk, on_end)
        if self.closed:
            self.loop.call_soon(sink.wire_lost, None)
            return sink.stop
        head = encode_head(CallHead(CONTROL, method, str(next(_request_ids))))
        sink.call = self.open(sink, head, body, True)
        return sink.stop


class _ControlSink:
    """Gathers the answer of one control call."""

    def __init__(
        self,
        peer: Peer,
        method: str,
        on_chunk: Callable[[bytes], object],
        on_end: Callable[[BaseException | None], object],
    ) -> None:
        self.peer, self.method, self.on_chunk, self.on_end = peer, method, on_chunk, on_end
        self.call: int | None = None
        self.done = False

    def stop(self) -> None:
        if not self.done:
            self.done = True
            if self.call is not None:
                self.peer.cancel(self.call, "no longer needed")

    def _finish(self, error: BaseException | None) -> None:
        if not self.done:
            self.done = True
            self.on_end(error)

    def wire_started(self) -> None:
        pass

    def wire_chunk(self, body: bytes, headed: bool, last: bool) -> None:
        if self.done:
            return
        if body or not last:
            self.on_chunk(body)
        if last:
            self._finish(None)
        elif self.call is not None:
            self.peer.take(self.call, len(body))

    def wire_items(self, body: bytes) -> None:
        raise WireError(f"{self.peer.wire.peer_name} answered {self.method!r} with a stream of items")

    def wire_failed(self, body: bytes) -> None:
        self._finish(decode_failure(body))

    def wire_refused(self, returned: bool) -> None:
        self._finish(SkateError(f"{self.peer.wire.peer_name} refused {self.method!r}: it is ending"))

    def wire_credit(self) -> None:
        pass

    def wire_lost(self, error: Exception | None) -> None:
        self._finish(
            RequestCancelledError(f"the connection to {self.peer.wire.peer_name} was lost during {self.method!r}")
        )


class Listener:
    """A listening address; ``close`` ends it with all its sessions."""

    def __init__(
        self, address: str, listening: Listening, close: Callable[[], Awaitable[None]], fds: tuple[int, ...] = ()
    ) -> None:
        self.address = address
        self.fds = fds  # of the sockets that it accepts on
        self.listening = listening
        self._close = close

    async def close(self) -> None:
        await self._close()
        for session in list(self.listening.sessions):
            session.close()
        for _ in range(CLOSE_TURNS):
            if not self.listening.sessions:
                return
            await asyncio.sleep(0)


async def listen(address: str, accept: Acceptor, name: str) -> Listener:
    """Listens at ``address``; every call that comes goes to ``accept``. Raises OSError if it cannot be bound."""
    loop = asyncio.get_running_loop()
    listening = Listening(name, accept)
    scheme, _, rest = address.partition(":")
    if scheme == "memory":
        LISTENERS[rest] = listening.session

        async def forget() -> None:
            LISTENERS.pop(rest, None)

        return Listener(address, listening, forget)
    if scheme == "unix":
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.stat(rest).st_mode):
                os.unlink(rest)
        before = os.umask(0o177)
        try:
            server = await loop.create_unix_server(listening.session, rest, backlog=BACKLOG)
        finally:
            os.umask(before)
    elif scheme == "tcp":
        host, _, port = rest.rpartition(":")
        server = await loop.create_server(listening.session, host, int(port), backlog=BACKLOG)
        address = f"tcp:{host}:{server.sockets[0].getsockname()[1]}"
    else:
        raise ValueError(f"address {address!r} begins neither with unix:, tcp: nor memory:")

    async def close() -> None:
        server.close()
        if scheme == "unix":
            with contextlib.suppress(FileNotFoundError):
                os.unlink(rest)

    return Listener(address, listening, close, tuple(one.fileno() for one in server.sockets))


def sweep(address: str) -> None:
    """Removes what a listener that was killed has left behind."""
    scheme, _, rest = address.partition(":")
    if scheme == "unix":
        with contextlib.suppress(OSError):
            os.unlink(rest)


async def connect(address: str, name: str, timeout_s: float = CONNECT_TIMEOUT_S) -> Peer:
    """A connection to whoever listens at ``address``, after both sides said hello.

    Raises NotRunningError when nobody answers there, CallTimeoutError when it takes longer than ``timeout_s``.
    """
    loop = asyncio.get_running_loop()
    peer = Peer(name)
    scheme, _, rest = address.partition(":")
    try:
        async with asyncio.timeout(timeout_s):
            if scheme == "memory":
                connect_memory(rest, peer)
            elif scheme == "unix":
                await loop.create_unix_connection(lambda: peer, rest)
            elif scheme == "tcp":
                host, _, port = rest.rpartition(":")
                await loop.create_connection(lambda: peer, host, int(port))
            else:
                raise ValueError(f"address {address!r} begins neither with unix:, tcp: nor memory:")
            await peer.greeted
    except TimeoutError:
        peer.close()
        raise CallTimeoutError(f"nobody said hello at {address} within {timeout_s} s") from None
    except (ConnectionError, FileNotFoundError) as error:
        raise NotRunningError(f"nobody listens at {address} ({error})") from None
    except BaseException:  # cancelled: nobody else would close what is half open
        peer.close()
        raise
    return peer
