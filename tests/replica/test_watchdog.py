from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import pytest

from skate.core.clock import SystemClock
from skate.core.specs import LoopBlocking
from skate.dataplane.replica import watchdog
from skate.dataplane.replica.watchdog import Watchdog
from tests.replica.line import until

BOUND_S = 0.05


class Calls:
    def __init__(self) -> None:
        self.ongoing = 0
        self.on_call: Callable[[], None] | None = None


def blocking_code(seconds: float) -> None:
    time.sleep(seconds)


def test_it_sleeps_when_nothing_comes_and_a_call_wakes_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watchdog, "IDLE_S", 0.02)
    monkeypatch.setattr(watchdog, "TELL_S", 0.01)
    monkeypatch.setattr(logging.getLogger("skate"), "propagate", True)
    told: list[tuple[LoopBlocking, ...]] = []
    calls = Calls()

    async def main() -> None:
        dog = Watchdog("replica a/D#1", BOUND_S, SystemClock(), calls, told.append)
        dog.start()
        try:
            for round in range(1, 3):
                await until(lambda: calls.on_call)
                calls.ongoing = 1
                assert calls.on_call is not None
                wake, calls.on_call = calls.on_call, None
                wake()
                await asyncio.sleep(BOUND_S)  # it asks
                blocking_code(0.3)
                await until(lambda round=round: told and told[-1][0].episodes == round)  # type: ignore[misc]
                assert dog.silent_s() < 0.3
                calls.ongoing = 0
            await until(lambda: calls.on_call)
        finally:
            dog.stop()
        assert not dog._thread.is_alive() and calls.on_call is None

    asyncio.run(main())
    assert [one.place.partition(" ")[0] for one in told[-1]] == ["blocking_code"]
    assert sum("replica a/D#1: the event loop is blocked" in line for line in caplog.messages) == 1


def test_stop_ends_one_that_looks_and_a_silent_loop_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls()
    calls.ongoing = 1
    seen: list[float] = []

    async def main() -> None:
        dog = Watchdog("r", BOUND_S, SystemClock(), calls, lambda counts: None)
        dog.start()
        await asyncio.sleep(0)  # its thread begins
        end = time.monotonic() + 5
        while not seen and time.monotonic() < end:  # the loop does not turn meanwhile
            if dog.silent_s() > 0.01:
                seen.append(dog.silent_s())
        dog.stop()
        assert not dog._thread.is_alive()

    asyncio.run(main())
    assert seen
