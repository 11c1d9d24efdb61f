"""Who is asking, carried along with the code that runs: the request's context and the replica's.

Law: set at the callee's door only, read anywhere below it; a call made under a request inherits its id,
its deadline and its cancellation from here.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol


class Cancellable(Protocol):
    """A call under way that can be told to stop."""

    def cancel(self, reason: str = ...) -> Any: ...


@dataclass(slots=True)
class RequestContext:
    """The request on whose behalf the current code runs. ``deadline`` is on the process's monotonic clock."""

    request_id: str
    app: str
    deployment: str
    route: str = ""
    deadline: float | None = None
    children: set[Cancellable] = field(default_factory=set)
    cancel_reason: str | None = None


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
