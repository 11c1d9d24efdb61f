from __future__ import annotations

import pytest

from skate.core.context import RequestContext
from skate.core.errors import CallTimeoutError, CancelCause, RequestCancelledError


class Child:
    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []

    def cancel(self, reason: str, cause: CancelCause) -> None:
        self.heard.append((reason, cause))


def test_time_left_counts_down_to_nothing() -> None:
    now = [10.0]
    request = RequestContext("r", "app", "D", deadline=12.5, now=lambda: now[0])
    assert request.remaining_s == 2.5
    now[0] = 13.0
    assert request.remaining_s == 0.0
    assert RequestContext("r", "app", "D").remaining_s is None


def test_a_request_is_cancelled_once_for_the_first_reason() -> None:
    request = RequestContext("r", "app", "D")
    request.raise_if_cancelled()
    assert not request.cancelled and request.cancel_reason is None and request.cancel_cause is None
    child = Child()
    request.children.add(child)
    request.cancel("the client disconnected", "client_disconnected")
    request.cancel("later", "timed_out")
    assert request.cancelled and request.cancel_cause == "client_disconnected"
    assert child.heard[0] == ("the client disconnected", "client_disconnected")
    with pytest.raises(RequestCancelledError, match="request r to app/D was cancelled: the client") as raised:
        request.raise_if_cancelled()
    assert raised.value.cause == "client_disconnected"


def test_what_has_timed_out_says_so() -> None:
    request = RequestContext("r", "app", "D")
    request.cancel("the time of the request is over", "timed_out")
    with pytest.raises(CallTimeoutError, match="timed out"):
        request.raise_if_cancelled()


def test_children_can_be_cancelled_without_the_request() -> None:
    request, child = RequestContext("r", "app", "D"), Child()
    request.children.add(child)
    request.cancel_children("gone", "client_disconnected")
    assert child.heard == [("gone", "client_disconnected")] and not request.cancelled
