"""Queue or refuse. Pure.

A call that finds no free slot waits; ``max_queued_requests`` bounds how many of one router may wait
(-1: ``QUEUE_MAX`` of the router itself, so that nothing here is ever unbounded).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

RETRY_AFTER_MIN_S = 1.0  # HTTP knows whole seconds only, and 0 would be no advice
RETRY_AFTER_MAX_S = 60.0
PACE_MIN_S, PACE_MAX_S = 1.0, 10.0  # how far two refusals must, and may, lie apart to say how fast calls end
QUEUE_MAX = 100_000  # calls one router keeps for one deployment when the user set no limit


def may_queue(queued: int, max_queued_requests: int) -> bool:
    """Whether one more call may wait behind ``queued`` others."""
    limit = QUEUE_MAX if max_queued_requests < 0 else min(max_queued_requests, QUEUE_MAX)
    return queued < limit


def retry_after_s(queued: int, drained_per_s: float | None) -> float:
    """Whole seconds after which a refused caller may find room: the time in which all that waits now is served.

    ``drained_per_s``: calls that end in a second, None where that is not known yet. From 1 to ``RETRY_AFTER_MAX_S``.
    """
    if drained_per_s is None:
        return RETRY_AFTER_MIN_S
    seconds = queued / drained_per_s if drained_per_s > 0 else math.inf
    return float(math.ceil(min(max(seconds, RETRY_AFTER_MIN_S), RETRY_AFTER_MAX_S)))


class Outflow(NamedTuple):
    """How fast calls end, as seen from one refusal to a later one: who refuses nobody measures nothing."""

    at: float = -math.inf
    ended: int = 0  # calls by then
    per_s: float | None = None

    def seen(self, now: float, ended: int) -> Outflow:
        """The pace with what is seen now."""
        passed_s = now - self.at
        if passed_s < PACE_MIN_S:
            return self
        if passed_s > PACE_MAX_S:  # it says nothing of the load of today
            return Outflow(now, ended)
        return Outflow(now, ended, (ended - self.ended) / passed_s)


def retries_of(retry: int | Mapping[str, int], method: str) -> int:
    """How often a started call of this method may be sent again, by what its deployment says."""
    return retry if isinstance(retry, int) else retry.get(method, 0)


def refusal(deployment: str, queued: int, max_queued_requests: int) -> str:
    """What a refused caller is told."""
    limit = QUEUE_MAX if max_queued_requests < 0 else max_queued_requests
    return (
        f"deployment {deployment!r} is full: {queued} requests wait already and max_queued_requests is {limit}. "
        "Come back later, or raise num_replicas, max_ongoing_requests or max_queued_requests"
    )
