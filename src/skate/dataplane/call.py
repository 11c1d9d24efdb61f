"""The call record: one for every call a router accepts, from acceptance to its one outcome.

Law: a call ends exactly once, with one Outcome, and its owner hears ``on_end`` exactly once. Its marks say how far
it came: what was not started may be sent again, what was started may not.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from skate.core.context import RequestContext
from skate.core.errors import CallTimeoutError, CancelCause, RequestCancelledError, WireError
from skate.dataplane.ledger import Account, Outcome
from skate.dataplane.transport.failure import UserFailure, decode_failure
from skate.dataplane.wire.frames import split_head
from skate.dataplane.wire.head import CallHead, ReplyHead, decode_reply, encode_head

if TYPE_CHECKING:
    from skate.dataplane.link import Link
    from skate.dataplane.router import Lane, Router

logger = logging.getLogger("skate.router")

LOSSES_MAX = 16  # replicas that may die under one call until it fails: bounds what flapping costs
KEPT_MAX = 4 << 20  # bytes of input kept of a started call, to send it again; one with more is not sent again
KEPT_PIECE = 64  # bytes that a piece of it costs beside its own


class Call:
    """Base record; a subclass says what becomes of the answer (``on_reply_head``, ``on_chunk``, ``on_end``)."""

    __slots__ = (
        "accepted_at",
        "account",
        "body",
        "complete",
        "context",
        "deadline",
        "deployment_key",
        "ended_at",
        "head",
        "kept",
        "lane",
        "link",
        "losses",
        "more",
        "outcome",
        "queued",
        "retries",
        "router",
        "routing_key",
        "sent_at",
        "sequence",
        "started",
        "timer",
        "waiter",
        "wire_id",
    )

    def __init__(self, deployment_key: str, head: CallHead, deadline: float | None = None) -> None:
        self.deployment_key = deployment_key  # "<app>/<deployment>"
        self.head = head
        self.deadline = deadline  # on the router's clock
        self.body = b""
        self.complete = True
        self.more: list[tuple[bytes, bool]] | None = None  # input sent after the body, kept until started
        self.sequence = 0  # order of arrival at the router
        self.accepted_at = 0.0
        self.sent_at = 0.0
        self.ended_at = 0.0
        self.losses = 0  # times its replica died
        self.retries: int | None = None  # how often it may still be sent again after it had started; None: not settled
        self.routing_key: str | None = None
        self.started = False  # the replica said so, in words; ``running`` looks at its mark, too
        self.outcome: Outcome | None = None
        self.router: Router | None = None
        self.account: Account | None = None  # where it is counted
        self.lane: Lane | None = None
        self.queued = False  # waits in its lane
        self.link: Link | None = None  # the replica that has it
        self.wire_id = 0
        self.timer: asyncio.TimerHandle | None = None
        self.waiter: asyncio.Future[None] | None = None
        self.context: RequestContext | None = None  # the request under which this call was made

    @property
    def request_id(self) -> str:
        return self.head.request_id

    @property
    def running(self) -> bool:
        """Whether its replica has started it, as far as can be known now."""
        link = self.link
        return self.started or (link is not None and link.peer is not None and link.peer.has_started(self.wire_id))

    # -- for the owner --------------------------------------------------------------------------

    def on_reply_head(self, head: ReplyHead) -> None:
        """An HTTP answer begins."""

    def on_chunk(self, data: bytes) -> None:
        """A part of the answer; give credit with ``consumed`` when it is dealt with."""

    def on_items(self, data: bytes) -> None:
        """A part of the answer that holds many items of a stream; credit as for ``on_chunk``."""
        raise WireError(f"request {self.request_id} got a chunk of items, though it did not ask for a stream")

    def on_end(self, error: BaseException | None) -> None:
        """The call has its outcome; ``error`` is None for ok."""

    def consumed(self, size: int) -> None:
        """A chunk of ``size`` bytes was dealt with: the callee may send more."""
        if self.link is not None and self.link.peer is not None and self.outcome is None:
            self.link.peer.take(self.wire_id, size)

    def cancel(self, reason: str = "cancelled by the caller", cause: CancelCause = "cancelled") -> bool:
        """Ends the call if it is still under way; the replica is told. False: it had ended already.

        What is cancelled because the time of the request above is over has timed out itself.
        """
        if self.outcome is not None:
            return False
        what = f"request {self.request_id} to {self.deployment_key}"
        if cause == "timed_out":
            self.drop(Outcome.TIMED_OUT, CallTimeoutError(f"{what} timed out: {reason}"), reason, cause)
        else:
            error = RequestCancelledError(f"{what} was cancelled: {reason}", cause)
            self.drop(Outcome.CANCELLED, error, reason, cause)
        return True

    def on_writable(self) -> None:
        """Input that ``try_send`` refused may be tried again; also told when the call has ended."""

    def try_send(self, data: bytes, last: bool = False) -> bool:
        """A further chunk of input, if it can go now; False: it was not taken, ``on_writable`` tells when to try again.

        A call that has ended takes everything and drops it.
        """
        if self.outcome is not None:
            return True
        link = self.link
        if link is None or link.peer is None or not link.peer.may_send(self.wire_id):
            return False
        if not self.started or self.retries:
            self._keep(data, last)
        link.peer.send(self.wire_id, data, last)
        return True

    def _keep(self, data: bytes, last: bool) -> None:
        """Keeps input that was sent: it must be sent again when the replica dies."""
        if self.more is None:
            self.more = []
            self.kept = len(self.body)
        self.more.append((data, last))
        self.kept += len(data) + KEPT_PIECE
        if self.started and self.kept > KEPT_MAX:
            self._commit()

    def _commit(self) -> None:
        """From here on it cannot be sent again."""
        self.retries = 0
        self.body = b""
        self.more = None

    def gather(self) -> None:
        """Makes one body of all input, to send it again: the next replica has given no credit for pieces."""
        if self.more:
            self.body = b"".join((self.body, *(data for data, _ in self.more)))
            self.more, self.complete = None, True

    @property
    def may_be_repeated(self) -> bool:
        """Whether a call that was started may be sent again: it is marked so, and all of its input is here."""
        complete = self.complete or (bool(self.more) and self.more[-1][1])  # type: ignore[index]
        return bool(self.retries) and complete

    async def send(self, data: bytes, last: bool = False) -> None:
        """A further chunk of input; waits while the call waits for a replica or the replica gives no credit."""
        while not self.try_send(data, last):
            self.waiter = asyncio.get_running_loop().create_future()
            await self.waiter

    async def send_end(self) -> None:
        """The input is complete (after the last ``send``)."""
        await self.send(b"", True)

    # -- for the router -------------------------------------------------------------------------

    def encoded_head(self, now: float) -> bytes:
        """The head as it goes on the wire, with the seconds that are left."""
        if self.deadline is not None:
            self.head.timeout_s = max(0.0, self.deadline - now)
        return encode_head(self.head)

    def drop(self, outcome: Outcome, error: BaseException, reason: str, cause: CancelCause) -> None:
        """Ends the call from our side, wherever it is; says so in one line of the log if it has none above it."""
        link = self.link
        if link is not None and link.peer is not None:
            link.peer.cancel(self.wire_id, reason, cause)
        self._say_dropped(reason)
        self.end(outcome, error)

    def _say_dropped(self, reason: str) -> None:
        if self.context is None and self.router is not None:  # else who made the call above it says it
            self.router.say_dropped(self, reason)

    def end(self, outcome: Outcome, error: BaseException | None) -> None:
        """Gives the call its outcome; later attempts to do so are ignored."""
        if self.outcome is not None:
            return
        self.outcome = outcome
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.body = b""
        self.more = None
        if self.context is not None:
            self.context.children.discard(self)
            self.context = None
        if self.router is not None:
            self.router.count(self)
        if self.lane is not None:
            self.lane.call_ended(self)
        try:
            self.wake()
            self.on_end(error)
        except Exception:  # the owner's; the other calls that end with this one must not suffer from it
            logger.exception("the owner of request %s failed to hear of its end", self.request_id)

    def wake(self) -> None:
        """Whoever waits to send more input looks again."""
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        if not self.complete:
            self.on_writable()

    # -- CallSink: what the wire says -----------------------------------------------------------

    def wire_started(self) -> None:
        self.started = True
        if not self.retries:
            self.body = b""
            self.more = None
        link = self.link
        if link is not None and link.probe is self:
            link.lane.call_started(self)

    def wire_chunk(self, body: bytes, headed: bool, last: bool) -> None:
        self.started = True
        if self.retries:
            self._commit()  # the owner has seen a part of the answer
        try:
            if headed:
                raw, body = split_head(body)
                self.on_reply_head(decode_reply(raw))
            if body or not (last or headed):
                self.on_chunk(body)
        except Exception as error:  # of the wire or of the owner: no more is heard of this call after its last chunk
            if last:
                self.end(Outcome.LOST, error)
            raise
        if last:
            self.end(Outcome.OK, None)

    def wire_items(self, body: bytes) -> None:
        self.started = True
        if self.retries:
            self._commit()  # the owner has seen a part of the answer
        self.on_items(body)

    def wire_failed(self, body: bytes) -> None:
        try:
            error = decode_failure(body)
        except Exception as unreadable:
            error = unreadable
        if isinstance(error, UserFailure):
            self.end(Outcome.USER_ERROR, error)
        else:
            outcome = outcome_of(error)
            if outcome is Outcome.TIMED_OUT or outcome is Outcome.CANCELLED:
                self._say_dropped(str(error))
            self.end(outcome, error)

    def wire_refused(self, returned: bool) -> None:
        lane = self.lane
        if self.outcome is None and lane is not None:
            lane.call_refused(self, returned)

    def wire_credit(self) -> None:
        self.wake()

    def wire_lost(self, error: Exception | None) -> None:
        lane = self.lane
        if self.outcome is None and lane is not None:
            lane.call_lost(self)


_OUTCOMES = {
    "CallTimeoutError": Outcome.TIMED_OUT,
    "RequestCancelledError": Outcome.CANCELLED,
    "BackPressureError": Outcome.REFUSED,
    "DeploymentUnavailableError": Outcome.REFUSED,
    "ReplicaDiedError": Outcome.LOST,
    "ReplicaStoppedError": Outcome.LOST,
}


def outcome_of(error: BaseException) -> Outcome:
    """The outcome that one of Skate's own errors stands for; what blames neither load nor loss is the callee's."""
    return _OUTCOMES.get(type(error).__name__, Outcome.USER_ERROR)
