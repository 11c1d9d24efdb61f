"""Calls between deployments, on Ray Serve and Skate: echoes, chains, streams, arrays. The same source for both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy

from benchmarks.peers import calling
from benchmarks.peers.plain import Apps, Deployment


class Echo:
    async def echo(self, value: Any) -> Any:
        return value

    async def items(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    async def take(self, array: Any) -> int:
        return calling.touched(array)


class Middle:
    """Between the driver and the echo."""

    def __init__(self, child: Any) -> None:
        self.child = child.options(stream=True)

    async def items(self, count: int) -> AsyncIterator[int]:
        async for item in self.child.items.remote(count):
            yield item

    def passed_on(self, count: int) -> Any:
        return self.child.items.remote(count)


class Link:
    """One of a chain."""

    def __init__(self, follower: Any) -> None:
        self.follower = follower

    async def echo(self, value: Any) -> Any:
        return await self.follower.echo.remote(value)


class Driver:
    """The caller: it measures from inside of its replica, as a user's code would call."""

    def __init__(self, echo: Any, middle: Any, chain3: Any, chain10: Any) -> None:
        self.chains = {1: echo, 3: chain3, 10: chain10}
        self.echo, self.middle = echo, middle

    async def latency(self, chain: int, seconds: float) -> dict[str, float]:
        method = self.chains[chain].echo
        return await calling.latency(lambda: method.remote(1), seconds)

    async def rate(self, chain: int, in_flight: int, seconds: float) -> dict[str, float]:
        method = self.chains[chain].echo
        return await calling.rate(lambda: method.remote(1), seconds, in_flight)

    async def items(self, through: str, seconds: float) -> dict[str, float]:
        callee = self.echo if through == "nobody" else self.middle
        method = getattr(callee.options(stream=True), "passed_on" if through == "passed on" else "items")
        return await calling.items(method.remote, seconds)

    async def arrays(self, size: int, seconds: float) -> dict[str, float]:
        method, array = self.echo.take, numpy.ones(size, numpy.uint8)
        return await calling.arrays(lambda: method.remote(array), size, seconds)


def handles(serve: Any, deployment: Deployment) -> Apps:
    echo = deployment(Echo).bind()
    link, chain = deployment(Link), {1: deployment(Echo).options(name="End").bind()}
    for number in range(2, 11):
        chain[number] = link.options(name=f"Link{number}").bind(chain[number - 1])
    middle = deployment(Middle).bind(echo)
    return {None: deployment(Driver).bind(echo, middle, chain[3], chain[10])}
