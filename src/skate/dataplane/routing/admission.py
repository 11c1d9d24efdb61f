"""Queue or refuse. Pure.

A call that finds no free slot waits; ``max_queued_requests`` bounds how many of one router may wait
(-1: ``QUEUE_MAX`` of the router itself, so that nothing here is ever unbounded).
"""

from __future__ import annotations

from collections.abc import Mapping

QUEUE_MAX = 100_000  # calls one router keeps for one deployment when the user set no limit


def may_queue(queued: int, max_queued_requests: int) -> bool:
    """Whether one more call may wait behind ``queued`` others."""
    limit = QUEUE_MAX if max_queued_requests < 0 else min(max_queued_requests, QUEUE_MAX)
    return queued < limit


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
