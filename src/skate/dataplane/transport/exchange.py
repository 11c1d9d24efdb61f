"""The callee's end: a Session for each connection, an Exchange for each call on it.

Law: an Exchange ends exactly once (reply, end, fail, refuse, or the caller goes away), and tells its owner
through ``on_end``. Who accepts calls is a plain callable, given when listening.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
from collections import deque
from collections.abc import Callable
from typing import Protocol

from skate.core.errors import CancelCause, WireError
from skate.dataplane.payload import Lent
from skate.dataplane.transport.failure import encode_failure
from skate.dataplane.transport.framed import Framed
from skate.dataplane.transport.mark import attached, note
from skate.dataplane.wire.frames import (
    AHEAD,
    ASKS,
    CALL,
    CANCEL,
    CHUNK,
    CREDIT,
    ERROR,
    GRANTED,
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
    join_head,
    pack,
    pack_count,
    pack_ids,
    split_head,
    unpack_cancel,
    unpack_count,
)
from skate.dataplane.wire.head import CallHead, ReplyHead, decode_call, encode_head

logger = logging.getLogger("skate.wire")

PIECE_MAX = 128 * 1024  # bytes of a body that go at once: more would wait at a slow reader, beyond its credit
SPLIT_MIN = 128 * 1024  # bytes of a body that goes without the head: cutting it off costs a copy
LOAD_MAX = 0xFFFF  # what the field of a frame can say
HELLO_S = 10.0  # for the other side's hello: who says nothing keeps no descriptor here
HOLD_MAX = 64 * 1024 * 1024  # bytes of answers that a caller has not read, above which no more of its calls are read


class Gathering(Protocol):
    """Pieces of an answer that leave together."""

    @property
    def may_cut(self) -> bool: ...  # whether the borders of pieces mean nothing

    size: int  # bytes so far, about; 0: none

    def take(self) -> tuple[bytes, int]:
        """The body and the flags of a chunk with all of them; nothing is left."""
        ...


class Exchange:
    """One call as its callee sees it. All methods belong to the loop's thread."""

    __slots__ = (
        "_gathering",
        "_input",
        "_input_waiters",
        "_output_waiters",
        "ahead",
        "asks",
        "body",
        "cancel_reason",
        "complete",
        "ended",
        "granted",
        "head",
        "id",
        "on_cancel",
        "on_complete",
        "on_end",
        "parked_at",
        "session",
    )

    def __init__(self, session: Session, id: int, head: CallHead, body: bytes, flags: int) -> None:
        self.session = session
        self.id = id
        self.head = head
        self.body = body
        self.complete = bool(flags & LAST)
        self.granted = bool(flags & GRANTED)
        self.ahead = bool(flags & AHEAD)
        self.asks = bool(flags & ASKS)
        self.ended = False
        self.parked_at = 0.0  # when it began to wait here for a slot; 0: it did not
        self.cancel_reason: str | None = None
        self.on_cancel: Callable[[str, CancelCause], None] | None = None
        self.on_complete: Callable[[], None] | None = None  # the last chunk of the input has arrived
        self.on_end: Callable[[], None] | None = None
        self._gathering: Gathering | None = None
        self._input: deque[bytes | None] | None = None
        self._input_waiters: list[asyncio.Future[None]] = []  # user code may wait in several tasks at once
        self._output_waiters: list[asyncio.Future[None]] = []

    # -- input ----------------------------------------------------------------------------------

    async def receive(self) -> bytes | None:
        """The next chunk of input; None when the input is complete or the caller is gone."""
        while True:
            if self._input:
                chunk = self._input.popleft()
                if chunk is None:
                    self._input.append(None)  # stays at the end for whoever asks again
                    return None
                self.session.give_credit(self.id, len(chunk))
                return chunk
            if self.complete or self.ended:
                return None
            await self._wait(self._input_waiters)

    def take_input(self, chunk: bytes, last: bool) -> None:
        """A chunk arrived (called by the Session)."""
        if self._input is None:
            self._input = deque()
        if chunk or not last:
            self._input.append(chunk)
        if last:
            self.complete = True
            self._input.append(None)
            if self.on_complete is not None:
                self.on_complete()
        _wake(self._input_waiters)

    # -- output ---------------------------------------------------------------------------------

    def reply(self, data: bytes) -> None:
        """The one and only answer."""
        if not self.ended:
            if self._gathering is not None:
                self.pack()
            session = self.session
            if type(data) is Lent:
                data.leaves()
            session.write_frame(CHUNK, self.id, LAST, session.load(), data, len(session.exchanges) == 1)
            self._finish()

    def reply_http(self, head: ReplyHead, data: bytes) -> None:
        """The one and only answer, with its HTTP head; a large one in two frames, so that its body is not copied."""
        if self.ended:
            return
        session = self.session
        if len(data) < SPLIT_MIN:
            body, flags = join_head(encode_head(head), data), LAST | HEADED
        else:
            if not any(name.lower() == b"content-length" for name, _ in head.headers):
                head = ReplyHead(head.status, [*head.headers, (b"content-length", b"%d" % len(data))])
            session.write_frame(CHUNK, self.id, HEADED, session.load(), join_head(encode_head(head), b""))
            body, flags = data, LAST
        session.write_frame(CHUNK, self.id, flags, session.load(), body, len(session.exchanges) == 1)
        self._finish()

    async def start_http(self, head: ReplyHead, data: bytes = b"") -> None:
        """The HTTP head of an answer that goes on with ``send`` and ``end``."""
        if len(data) < SPLIT_MIN:
            await self._chunk(join_head(encode_head(head), data), HEADED)
        else:
            await self._chunk(join_head(encode_head(head), b""), HEADED)
            await self._chunk(data, 0)

    async def send(self, data: bytes) -> None:
        """One chunk of the answer; waits while the caller has given no credit."""
        await self._chunk(data, 0)

    async def send_body(self, data: bytes) -> None:
        """A part of a body, whose borders mean nothing: a large one goes in pieces, each when there is credit."""
        if len(data) <= PIECE_MAX:
            await self._chunk(data, 0)
            return
        whole = memoryview(data)
        for start in range(0, len(data), PIECE_MAX):
            await self._chunk(whole[start : start + PIECE_MAX], 0)

    async def send_items(self, data: bytes) -> None:
        """One chunk that holds many items of a stream, as it came from another callee; waits like ``send``."""
        await self._chunk(data, MANY)

    def send_nowait(self, data: bytes) -> bool:
        """One chunk of the answer if there is credit, else False and nothing is sent."""
        session = self.session
        if self.ended:
            return True
        self.pack()
        if not session.wire.may_send(self.id) or session.is_stuck:
            return False
        session.wire.spend(self.id, _size(data))
        session.write_frame(CHUNK, self.id, 0, session.load(), data)
        return True

    async def _chunk(self, data: bytes | memoryview, flags: int) -> None:
        session = self.session
        while not self.ended:  # looks at both again after each wait: another task may have sent meanwhile
            if not session.wire.may_send(self.id):
                await self._wait(self._output_waiters)
            elif session.is_stuck:
                await session.drained()
            else:
                self.pack()
                session.wire.spend(self.id, _size(data))
                session.write_frame(CHUNK, self.id, flags, session.load(), data)
                return

    def gather(self, gathering: Gathering) -> None:
        """From now on what is put into ``gathering`` leaves as one chunk at the end of each turn of the loop, and in
        front of whatever else is sent. Look at ``may_gather`` before, and say ``gathered`` after, the first piece.
        """
        self._gathering = gathering

    def may_gather(self) -> bool:
        """Whether another chunk may be begun; if not, ``room`` tells when."""
        return not self.session.is_stuck and self.session.wire.may_send(self.id)

    async def room(self) -> None:
        """Waits until another chunk may be begun, or the call has ended."""
        session = self.session
        while not self.ended:
            if not session.wire.may_send(self.id):
                await self._wait(self._output_waiters)
            elif session.is_stuck:
                await session.drained()
            else:
                return

    def gathered(self) -> None:
        """The first piece of a chunk was put in."""
        self.session.plan_to_pack(self)

    def pack(self) -> None:
        """What was gathered leaves now."""
        gathering = self._gathering
        if gathering is not None and gathering.size:
            body, flags = gathering.take()
            if not self.ended:
                session = self.session
                session.wire.spend(self.id, len(body))
                session.write_frame(CHUNK, self.id, flags, session.load(), body)

    async def _wait(self, waiters: list[asyncio.Future[None]]) -> None:
        waiter = self.session.loop.create_future()
        waiters.append(waiter)
        try:
            await waiter
        finally:
            if waiter in waiters:
                waiters.remove(waiter)

    def end(self, data: bytes = b"") -> None:
        """The answer is complete."""
        self.reply(data)

    def fail(self, error: BaseException, traceback: str | None = None) -> None:
        """The call ends with an error; errors of user code are shipped as the user's own type."""
        if not self.ended:
            self.pack()
            self.session.write_frame(ERROR, self.id, 0, self.session.load(), encode_failure(error, traceback))
            self._finish()

    def begin(self) -> None:
        """The callee starts the call now: said before any of its user code runs, so that no other one gets it too."""
        self.session.say_started(self)

    def refuse(self, returned: bool = False) -> None:
        """Not here, not now: the router keeps the call. Only before ``begin``.

        ``returned``: because it was asked back or we are ending, not because no slot is free.
        """
        if not self.ended:
            self.session.write_frame(REFUSED, self.id, RETURNED if returned else 0, self.session.load(), b"")
            self._finish()

    # -- ends -----------------------------------------------------------------------------------

    def credit_came(self) -> None:
        _wake(self._output_waiters)

    def cancelled(self, reason: str, cause: CancelCause) -> None:
        """The caller cancelled or is gone (called by the Session)."""
        if self.ended:
            return
        self.cancel_reason = reason
        callback = self.on_cancel
        self._finish()
        if callback is not None:
            callback(reason, cause)

    def _finish(self) -> None:
        self.ended = True
        self.session.forget(self.id)
        _wake(self._input_waiters)
        _wake(self._output_waiters)
        callback, self.on_end = self.on_end, None
        if callback is not None:
            callback()


Acceptor = Callable[[Exchange], None]


class Session(Framed):
    """The callee's end of one connection."""

    def __init__(self, name: str, accept: Acceptor, listener: Listening) -> None:
        super().__init__("callee", name)
        self.exchanges: dict[int, Exchange] = {}
        self.accept = accept
        self.listener = listener
        listener.sessions.add(self)
        self._mark: mmap.mmap | None = None
        self._begun: list[int] = []  # what STARTED will say
        self._reading = False
        self._patience: asyncio.TimerHandle | None = None
        self._holding = False  # reads nothing, because the caller reads nothing either

    @property
    def is_stuck(self) -> bool:
        return self._stuck

    @property
    def peer_name(self) -> str:
        return self.wire.peer_name or ""

    def load(self) -> int:
        return min(self.listener.load(), LOAD_MAX)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._patience = self.loop.call_later(HELLO_S, self._no_hello)
        super().connection_made(transport)

    def _no_hello(self) -> None:
        self.abort(WireError(f"the other side said no hello within {HELLO_S:g} s"))

    def _wait_no_more(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def on_greeted(self) -> None:
        self._wait_no_more()
        hello = self.wire.peer_hello
        if hello is not None and self.transport is not None:
            self._mark = attached(self.transport.get_extra_info("socket"), hello.pid, hello.mark)
        if self.listener.on_session is not None:
            self.listener.on_session(self)

    def on_frames(self, frames: list[Frame]) -> None:
        self._reading = True
        try:
            self._hand_out(frames)
        finally:
            self._reading = False
            if self._begun:
                self._write_started()
            if self._stuck:
                self._hold_back()

    def _hand_out(self, frames: list[Frame]) -> None:
        for kind, call, flags, _, body in frames:
            if kind == CALL:
                self._on_call(call, flags, body)
            elif kind == CHUNK:
                exchange = self.exchanges.get(call)
                if exchange is not None:
                    exchange.take_input(body, bool(flags & LAST))
            elif kind == CANCEL:
                exchange = self.exchanges.get(call)
                if exchange is not None:
                    exchange.cancelled(*unpack_cancel(flags, body))
            elif kind == CREDIT:
                exchange = self.exchanges.get(call)
                if exchange is not None:
                    exchange.credit_came()
            elif kind == RELEASE and self.listener.on_release is not None:
                self.listener.on_release(self, unpack_count(body))
            elif kind == RECALL and self.listener.on_recall is not None:
                self.listener.on_recall(self)

    def _hold_back(self) -> None:
        """The last chunk of an answer needs no credit: who calls and never reads would fill our memory with them."""
        transport = self.transport
        if transport is not None and not self._holding and transport.get_write_buffer_size() > HOLD_MAX:
            self._holding = True
            transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._holding:
            self._holding = False
            if self.transport is not None and not self.transport.is_closing():
                self.transport.resume_reading()

    def _on_call(self, call: int, flags: int, body: bytes) -> None:
        raw, payload = split_head(body)
        exchange = self.exchanges[call] = Exchange(self, call, decode_call(raw), payload, flags)
        try:
            self.accept(exchange)
        except Exception as error:  # ours to mend; the other calls of this connection go on
            logger.exception("request %s could not be taken in", exchange.head.request_id)
            exchange.fail(error)

    def say_started(self, exchange: Exchange) -> None:
        """Tells the caller that the call is in our hands, before any of its code runs.

        The mark is written, or a frame leaves, in this very tick; user code starts in a later one: when the process
        dies of a call, the caller knows that the call was started and will not send it to kill the next replica.
        """
        if self._mark is not None:
            note(self._mark, exchange.id)
            if not exchange.asks:
                return
        self._begun.append(exchange.id)
        if not self._reading:
            self._write_started()

    def _write_started(self) -> None:
        ids, self._begun = self._begun, []
        self.write(pack(STARTED, 0, 0, self.load(), pack_ids(ids)))
        self.flush()

    def plan_to_pack(self, exchange: Exchange) -> None:
        """The exchange has gathered something that shall leave at the end of this tick."""
        if not self.closed:
            self._gathered.append(exchange)
            self._plan_flush()

    def grant(self, count: int) -> None:
        """Promises ``count`` slots to this caller, which it was refused before."""
        self.write(pack(READY, 0, 0, self.load(), pack_count(count)))

    def give_credit(self, call: int, size: int) -> None:
        credit = self.wire.take(call, size)
        if credit:
            self.write(credit)

    def forget(self, call: int) -> None:
        self.exchanges.pop(call, None)
        self.wire.close(call)

    def on_closed(self, error: Exception | None) -> None:
        self._wait_no_more()
        self.listener.sessions.discard(self)
        if self._mark is not None:
            self._mark.close()
            self._mark = None
        for exchange in list(self.exchanges.values()):
            try:
                exchange.cancelled("the process that made the call is gone", "caller_lost")
            except Exception:  # what one owner does wrong must not cost the others their end, and us our slots
                logger.exception("request %s failed to hear that its caller is gone", exchange.head.request_id)
        if self.listener.on_session_lost is not None:
            self.listener.on_session_lost(self)


class Listening:
    """What the sessions of one listening address share: who accepts, how loaded the callee is, who is told."""

    def __init__(self, name: str, accept: Acceptor) -> None:
        self.name = name
        self.accept = accept
        self.sessions: set[Session] = set()
        self.load: Callable[[], int] = lambda: 0
        self.on_session: Callable[[Session], None] | None = None
        self.on_session_lost: Callable[[Session], None] | None = None
        self.on_release: Callable[[Session, int], None] | None = None
        self.on_recall: Callable[[Session], None] | None = None

    def session(self) -> Session:
        """A new session; its transport is about to be attached."""
        return Session(self.name, self.accept, self)


def _size(data: bytes | memoryview) -> int:
    """What a chunk that leaves now counts for credit."""
    if type(data) is Lent:
        data.leaves()
        return data.size
    return len(data)


def _wake(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
