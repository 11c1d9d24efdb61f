"""Time as an argument. Law: no loop of Skate asks the operating system for the time; it asks its Clock.

``SystemClock`` is the real one; ``ManualClock`` moves only when a test says so.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Awaitable
from typing import Any, Protocol


class Clock(Protocol):
    """Seconds from an arbitrary start that never go backwards, the wall time, and a sleep that agrees with them."""

    def now(self) -> float: ...
    def wall(self) -> float: ...
    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's monotonic clock."""

    now = staticmethod(time.monotonic)  # asked several times for every call: no frame of ours in between

    def wall(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class ManualClock:
    """A clock for tests: ``advance`` moves it and wakes the sleepers that are due, in order."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self._now

    def wall(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), waiter))
        await waiter

    def advance(self, seconds: float) -> None:
        """Moves the time forward by ``seconds`` and releases whoever slept until then."""
        self._now += seconds
        while self._sleepers and self._sleepers[0][0] <= self._now:
            _, _, waiter = heapq.heappop(self._sleepers)
            if not waiter.done():
                waiter.set_result(None)


async def within(clock: Clock, work: Awaitable[Any], seconds: float) -> bool:
    """Waits for ``work``, at most ``seconds`` of the clock; whether it ended, with whatever outcome.

    What has not ended is cancelled, unless it is shielded.
    """
    done = asyncio.ensure_future(work)
    alarm = asyncio.ensure_future(clock.sleep(seconds))
    try:
        await asyncio.wait({done, alarm}, return_when=asyncio.FIRST_COMPLETED)
        return done.done()
    finally:
        done.cancel()
        alarm.cancel()
        await asyncio.gather(done, alarm, return_exceptions=True)
