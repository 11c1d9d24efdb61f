"""The log of what was given up: one line for each tree of calls, where it begins, and never a flood."""

from __future__ import annotations

import asyncio
import logging

import pytest

from skate.core.clock import ManualClock
from skate.core.context import RequestContext
from skate.core.errors import CallTimeoutError, RequestCancelledError
from skate.dataplane.router import DROPPED_PER_S, Router
from tests.router.test_router import Noted, Replica, play, snapshot, submit, target, until


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "skate.router")
    return caplog


def test_a_line_says_what_where_when_and_why(said: pytest.LogCaptureFixture) -> None:
    async def scene(router: Router) -> None:
        router.clock = clock = ManualClock(100.0)
        replica = await Replica("a", 1).start()
        router.apply(snapshot(target(replica, limit=1)))
        running, parked = submit(router, "1", "2")
        await until(lambda: running.started and replica.slots.load == 2)
        clock.advance(1.5)
        parked.cancel("no longer wanted")
        late = Noted("3", clock.now())
        router.submit(late, b"")
        running.cancel("the client disconnected")
        await replica.die()

    play(scene)
    assert said.messages[0] == (
        "request 2 to app/D given up after 1.5 s while waiting for a slot of a: no longer wanted"
    )
    assert said.messages[1].startswith("request 3 to app/D given up after 0 s while waiting for a replica: ")
    assert said.messages[2] == ("request 1 to app/D given up after 1.5 s while running in a: the client disconnected")
    assert len(said.messages) == 3


def test_what_the_replica_says_is_said_too_and_other_ends_are_not(said: pytest.LogCaptureFixture) -> None:
    async def scene(router: Router) -> None:
        replica = await Replica("a", 5).start()
        router.apply(snapshot(target(replica, limit=5)))
        calls = submit(router, *"12345")
        await until(lambda: len(replica.held) == 5)
        ends = (CallTimeoutError("too late " * 100), RequestCancelledError("given up"), ValueError("no"), KeyError())
        for exchange, error in zip(tuple(replica.held), ends, strict=False):
            exchange.fail(error)
        replica.held[4].reply(b"")
        for call in calls:
            await call.ended.wait()
        await replica.die()

    play(scene)
    first, second = said.messages
    assert first.startswith("request 1 to app/D given up") and len(first) < 400 and "running in a: too late" in first
    assert second.startswith("request 2 to app/D given up") and second.endswith("given up")


def test_calls_under_a_request_are_told_of_by_whoever_made_that(said: pytest.LogCaptureFixture) -> None:
    async def scene(router: Router) -> None:
        replica = await Replica("a", 1).start()
        router.apply(snapshot(target(replica)))
        call = Noted("1")
        call.context = RequestContext("1", "app", "D")
        router.submit(call, b"")
        call.cancel("its request was cancelled")
        assert call.ends
        await replica.die()

    play(scene)
    assert said.messages == []


def test_a_crowd_is_counted(said: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        clock = ManualClock(100.0)
        router = Router("driver", clock)

        def crowd(size: int) -> None:
            for call in submit(router, *map(str, range(size))):
                call.cancel("gone")

        crowd(DROPPED_PER_S + 30)
        assert len(said.messages) == DROPPED_PER_S
        clock.advance(1.1)
        crowd(2)
        assert len(said.messages) == DROPPED_PER_S + 2
        assert said.messages[-2].endswith("gone (30 more were given up and not named)")
        await router.close()

    asyncio.run(main())
