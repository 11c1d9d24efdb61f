"""Who is asking, carried along with the code that runs: the request's context and the replica's.

Law: set at the callee's door only, read anywhere below it; a call made under a request inherits its id, its deadline
and its cancellation from here. A request is cancelled once, for the first reason; what is called under it afterwards
ends at once for the same one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from skate.core.clock import SystemClock
from skate.core.errors import CallTimeoutError, CancelCause, RequestCancelledError


class Cancellable(Protocol):
    """A call under way that can be told to stop."""

    def cancel(self, reason: str, cause: CancelCause) -> Any: ...


@dataclass(slots=True)
class RequestContext:
    """The request on whose behalf the current code runs; any thread may ask it.

    ``deadline``: when its time is over, in seconds of the process's monotonic clock; None without a limit.
    ``cancel_reason``: why it was cancelled, in words, and ``cancel_cause``: the same as one of ``cancelled``,
    ``client_disconnected``, ``timed_out``, ``shutting_down``, ``caller_lost``; both None as long as it is not.
    ``children``: the calls under way that were made on its behalf.
    """

    request_id: str
    app: str
    deployment: str
    route: str = ""
    deadline: float | None = None
    now: Callable[[], float] = field(default=SystemClock.now, repr=False)
    children: set[Cancellable] = field(default_factory=set, repr=False)
    cancel_reason: str | None = None
    cancel_cause: CancelCause | None = None

    @property
    def cancelled(self) -> bool:
        """Whether nobody waits for the answer any more. Code that computes for long asks now and then."""
        return self.cancel_reason is not None

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the deadline, never below 0; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - self.now())

    def raise_if_cancelled(self) -> None:
        """Raises, if the request was cancelled, what a call made now would raise: CallTimeoutError for one whose time
        is over, RequestCancelledError (with ``cause``) otherwise.
        """
        if self.cancel_reason is None:
            return
        what = f"request {self.request_id} to {self.app}/{self.deployment}"
        if self.cancel_cause == "timed_out":
            raise CallTimeoutError(f"{what} timed out: {self.cancel_reason}")
        raise RequestCancelledError(f"{what} was cancelled: {self.cancel_reason}", self.cancel_cause or "cancelled")

    def cancel(self, reason: str, cause: CancelCause) -> None:
        """Cancels the request as far as it is known here, and the calls under it (on the loop of their router)."""
        if self.cancel_reason is None:
            self.cancel_cause = cause  # first: other threads look at the reason, and then at this
            self.cancel_reason = reason
        self.cancel_children(reason, cause)

    def cancel_children(self, reason: str, cause: CancelCause) -> None:
        """Cancels the calls that are under way; what is called afterwards is not concerned."""
        for child in tuple(self.children):
            child.cancel(reason, cause)


@dataclass(frozen=True, slots=True)
class ReplicaContext:
    """What ``serve.get_replica_context()`` gives: the replica that the calling code runs in.

    ``replica_id`` and ``replica_tag`` are the same string, unique in the instance. ``servable_object`` is the
    user's instance (or function), None while its constructor runs.
    """

    app_name: str
    deployment: str
    replica_id: str
    servable_object: Any = None

    @property
    def replica_tag(self) -> str:
        return self.replica_id


request: ContextVar[RequestContext | None] = ContextVar("skate_request", default=None)
replica: ContextVar[ReplicaContext | None] = ContextVar("skate_replica", default=None)
_process: list[ReplicaContext] = []  # of a process that is one replica: code outside any request sees it too


def replica_context() -> ReplicaContext | None:
    """The replica that the calling code runs in; None outside."""
    return replica.get() or (_process[0] if _process else None)


def set_process_replica(here: ReplicaContext) -> None:
    """This whole process is one replica."""
    _process[:] = [here]
