"""How calls from one process to another are measured, whatever carries them. Law: standard library only, bounded.

Each function is given a callable that makes one call and returns its awaitable (or one stream), and runs for so many
seconds inside of the calling process. Times in microseconds; a percentile is a value that was measured.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable
from time import perf_counter
from typing import Any

CALLS_MAX = 500_000
WARM_UP = 100  # calls before a measurement
PAGE = 4096
ARRAYS_MAX = 2000
FIRST_ITEMS = 300

Call = Callable[[], Awaitable[Any]]
Values = dict[str, float]


async def latency(call: Call, seconds: float) -> Values:
    """One call after the other."""
    for _ in range(WARM_UP):
        await call()
    times: list[float] = []
    until = perf_counter() + seconds
    while (began := perf_counter()) < until and len(times) < CALLS_MAX:
        await call()
        times.append(perf_counter() - began)
    times.sort()
    return {"p50 µs": times[len(times) // 2] * 1e6, "p99 µs": times[len(times) * 99 // 100] * 1e6, "count": len(times)}


async def rate(call: Call, seconds: float, in_flight: int) -> Values:
    """So many calls under way at any time."""
    for _ in range(WARM_UP):
        await call()
    began = perf_counter()
    until = began + seconds

    async def one_after_the_other() -> int:
        calls = 0
        while perf_counter() < until and calls < CALLS_MAX:
            await call()
            calls += 1
        return calls

    calls = sum(await asyncio.gather(*(one_after_the_other() for _ in range(in_flight))))
    return {"calls/s": calls / (perf_counter() - began), "count": calls}


async def items(stream: Callable[[int], AsyncIterable[Any]], seconds: float) -> Values:
    """All items of one stream, from the call to the last one. How many are asked for follows from a shorter one before,
    because some callees produce without regard to who reads, and what they have produced must be read."""
    _, fast = await _whole(stream(FIRST_ITEMS))
    count, rate = await _whole(stream(max(FIRST_ITEMS, min(CALLS_MAX, int(fast * seconds)))))
    return {"items/s": rate, "count": count}


async def _whole(stream: AsyncIterable[Any]) -> tuple[int, float]:
    count = 0
    began = perf_counter()
    async for _ in stream:
        count += 1
    return count, count / (perf_counter() - began)


async def arrays(call: Call, size: int, seconds: float) -> Values:
    """One array after the other as the argument of a call; the callee looks at every page of it (``touched``)."""
    for _ in range(3):
        await call()
    count = 0
    began = perf_counter()
    until = began + seconds
    while perf_counter() < until and count < ARRAYS_MAX:
        if await call() != touched_of_ones(size):
            raise ValueError("the callee saw another array")
        count += 1
    return {"MB/s": count * size / 1e6 / (perf_counter() - began), "count": count}


def touched(array: Any) -> int:
    """Reads one byte of every page of a byte array: an argument that nobody looks at would be carried for nothing."""
    return len(array) + int(array[::PAGE].sum())


def touched_of_ones(size: int) -> int:
    """What ``touched`` says of an array of so many ones."""
    return size + -(-size // PAGE)
