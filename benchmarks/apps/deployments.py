"""The deployments that are measured. ``Driver`` measures from inside of its replica, as a user's code would call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from time import perf_counter
from typing import Any

from starlette.requests import Request

from benchmarks.stats import percentile
from skate import serve

HELLO = "Hello, world!"  # what the peer answers, too
SAMPLE_MAX = 200_000  # calls or items of one measurement
WARM_UP = 200  # calls before one
BESIDE_MAX = 64  # what ``max_ongoing_requests`` must allow where so many calls are meant to be under way at once


@serve.deployment
class Hello:
    """The plain deployment behind HTTP: all options at their defaults."""

    async def __call__(self, request: Request) -> str:
        return HELLO


@serve.deployment(max_ongoing_requests=BESIDE_MAX)
class WideHello:
    """The same, with as many requests at once as the load has connections."""

    async def __call__(self, request: Request) -> str:
        return HELLO


@serve.deployment
class SyncHello:
    """The same as a ``def``, which runs on a thread."""

    def __call__(self, request: Request) -> str:
        return HELLO


class _Echo:
    async def echo(self, value: Any) -> Any:
        return value

    async def items(self, seconds: float) -> AsyncIterator[int]:
        until = perf_counter() + seconds
        for number in range(SAMPLE_MAX):
            yield number
            if not number % 64 and perf_counter() > until:
                return

    def sync_items(self, seconds: float) -> Iterator[int]:
        until = perf_counter() + seconds
        for number in range(SAMPLE_MAX):
            yield number
            if not number % 64 and perf_counter() > until:
                return


@serve.deployment
class Echo(_Echo):
    """The callee with default options."""


@serve.deployment(max_ongoing_requests=BESIDE_MAX)
class WideEcho(_Echo):
    """The callee that lets 64 calls in at once."""


@serve.deployment
class Driver:
    """The caller inside a replica."""

    def __init__(self, echo: Any, wide: Any) -> None:
        self._echoes = {"default": echo, "wide": wide}

    async def latency(self, seconds: float) -> dict[str, float]:
        """One call after the other: microseconds from ``remote`` to the value."""
        echo = self._echoes["default"].echo
        for _ in range(WARM_UP):
            await echo.remote(1)
        times: list[float] = []
        until = perf_counter() + seconds
        while (began := perf_counter()) < until and len(times) < SAMPLE_MAX:
            await echo.remote(1)
            times.append(perf_counter() - began)
        return {"p50_us": percentile(times, 50) * 1e6, "p99_us": percentile(times, 99) * 1e6, "calls": len(times)}

    async def rate(self, seconds: float, in_flight: int, kind: str) -> float:
        """Calls per second with so many under way at any time. ``kind`` of callee: default or wide."""
        echo = self._echoes[kind].echo
        for _ in range(WARM_UP):
            await echo.remote(1)
        began = perf_counter()
        until = began + seconds

        async def one_after_the_other() -> int:
            calls = 0
            while perf_counter() < until and calls < SAMPLE_MAX:
                await echo.remote(1)
                calls += 1
            return calls

        calls = sum(await asyncio.gather(*(one_after_the_other() for _ in range(in_flight))))
        return calls / (perf_counter() - began)

    async def stream_rate(self, seconds: float, method: str) -> float:
        """Items per second of one stream, from the call to the last item."""
        stream = getattr(self._echoes["default"], method).options(stream=True)
        items = 0
        began = perf_counter()
        async for _ in stream.remote(seconds):
            items += 1
        return items / (perf_counter() - began)
