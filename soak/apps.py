"""What the soak serves: one deployment for each way a call can go. Replicas find it by its import path.

``Plain`` answers everything in every form; ``Shop`` is a FastAPI door before two children; ``Narrow`` refuses what is
too much; ``Mortal`` and its ``Leaf`` are the ones whose replicas are killed.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

from fastapi import FastAPI, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.requests import Request

from skate import serve
from skate.core.errors import ReplicaDiedError

NAP_MAX_S = 5.0
MEET_S = 10.0  # for as many calls as there are slots to be there at once


class Meeting:
    """Calls that wait until there are as many of them as the replica has slots: a slot that leaked is missed."""

    def __init__(self) -> None:
        self.here = 0
        self.all = asyncio.Event()

    async def join(self, slots: int) -> int:
        """How many came; ``slots`` when all did."""
        self.here += 1
        if self.here == slots:
            self.all.set()
        try:
            async with asyncio.timeout(MEET_S):
                await self.all.wait()
        except TimeoutError:
            pass
        return self.here


async def numbered(n: int, size: int, pause_s: float = 0.0) -> AsyncIterator[bytes]:
    """``n`` pieces of ``size`` bytes, each of which begins with its number."""
    for i in range(n):
        yield (b"%d " % i).ljust(size, b".")
        if pause_s:
            await asyncio.sleep(pause_s)


class Common:
    """What several deployments can do through handles."""

    def __init__(self) -> None:
        self.meeting = Meeting()

    async def add(self, a: int, b: int) -> int:
        return a + b

    async def nap(self, seconds: float) -> str:
        await asyncio.sleep(min(seconds, NAP_MAX_S))
        return "rested"

    async def items(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    async def endless(self) -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 5000
            await asyncio.sleep(0.001)

    async def fail(self, word: str) -> None:
        raise ValueError(word)

    async def meet(self, slots: int) -> int:
        return await self.meeting.join(slots)


@serve.deployment(num_replicas=2, max_ongoing_requests=32)
class Plain(Common):
    async def __call__(self, request: Request) -> Any:
        query = request.query_params
        match request.url.path.rpartition("/")[2]:
            case "hello":
                return "hello"
            case "json":
                n = (await request.json())["n"]
                return {"n": n, "twice": 2 * n}
            case "body":
                return zlib.crc32(await request.body())
            case "pieces":
                crc = 0
                async for piece in request.stream():
                    crc = zlib.crc32(piece, crc)
                return crc
            case "nap":
                return await self.nap(float(query["s"]))
            case "stream":
                return numbered(int(query["n"]), int(query["size"]), float(query.get("pause", "0")))
            case word:
                raise KeyError(word)

    def blocking(self, n: int) -> int:
        time.sleep(0.002)
        return n + 1

    def blocking_items(self, n: int) -> Iterator[int]:
        yield from range(n)

    async def scaled(self, array: Any, factor: float) -> Any:
        return array * factor


@serve.deployment(max_ongoing_requests=32)
class Price(Common):
    def of(self, item: int) -> int:
        return 3 * item


@serve.deployment(max_ongoing_requests=32)
class Stock(Common):
    async def of(self, item: int) -> int:
        await asyncio.sleep(0)
        return item % 7


shop = FastAPI()


@serve.deployment(max_ongoing_requests=48)
@serve.ingress(shop)
class Shop(Common):
    def __init__(self, price: Any, stock: Any) -> None:
        super().__init__()
        self.price, self.stock = price, stock

    @shop.get("/item/{item}")
    async def item(self, item: int) -> dict[str, int]:
        price, stock = self.price.of.remote(item), self.stock.of.remote(item)
        return {"price": await price, "stock": await stock}

    @shop.get("/feed")
    async def feed(self, n: int) -> StreamingResponse:
        stream = self.stock.options(stream=True).items.remote(n)

        async def lines() -> AsyncIterator[str]:
            async for i in stream:
                yield f"{i}\n"

        return StreamingResponse(lines())

    @shop.get("/slow")
    async def slow(self) -> str:
        value: str = await self.stock.nap.remote(NAP_MAX_S)
        return value

    @shop.websocket("/echo")
    async def echo(self, socket: WebSocket) -> None:
        await socket.accept()
        async for text in socket.iter_text():
            await socket.send_text(text)


@serve.deployment(max_ongoing_requests=1, max_queued_requests=2)
class Narrow(Common):
    async def __call__(self, request: Any) -> str:
        await asyncio.sleep(0.01)
        return "through"


@serve.deployment(max_ongoing_requests=2)
class Single(Common):
    """One replica with few slots: calls are sent ahead to it, wait there, and some of them when it is killed."""

    async def __call__(self, request: Any) -> str:
        await asyncio.sleep(0.003)
        return "one"


mortal = FastAPI()


@serve.deployment(num_replicas=2, max_ongoing_requests=16)
class Leaf(Common):
    pass


@serve.deployment(num_replicas=2, max_ongoing_requests=32)
@serve.ingress(mortal)
class Mortal(Common):
    def __init__(self, leaf: Any) -> None:
        super().__init__()
        self.leaf = leaf

    @mortal.get("/sum/{n}")
    async def sum(self, n: int) -> Any:
        try:
            return {"sum": await self.leaf.add.remote(n, n)}
        except ReplicaDiedError as error:
            return JSONResponse({"died": str(error)}, 500)

    @mortal.get("/nap")
    async def rest(self, s: float) -> Any:
        return await self.nap(s)

    @mortal.get("/stream")
    async def stream(self, n: int, size: int, pause: float) -> StreamingResponse:
        return StreamingResponse(numbered(n, size, pause))

    @mortal.websocket("/echo")
    async def echo(self, socket: WebSocket) -> None:
        await socket.accept()
        async for text in socket.iter_text():
            await socket.send_text(text)

    async def passed_on(self, n: int) -> AsyncIterator[int]:
        async for i in self.leaf.options(stream=True).items.remote(n):
            yield i


APPS = {
    "plain": Plain.bind(),
    "shop": Shop.bind(Price.bind(), Stock.bind()),
    "narrow": Narrow.bind(),
    "single": Single.bind(),
    "mortal": Mortal.bind(Leaf.bind()),
}
# (application, deployment): (replicas, slots of each), as declared above; at the end all must be free.
SLOTS = {
    ("plain", "Plain"): (2, 32),
    ("shop", "Shop"): (1, 48),
    ("shop", "Price"): (1, 32),
    ("shop", "Stock"): (1, 32),
    ("narrow", "Narrow"): (1, 1),
    ("single", "Single"): (1, 2),
    ("mortal", "Mortal"): (2, 32),
    ("mortal", "Leaf"): (2, 16),
}
TOLD = "narrow/Narrow"  # whose callers never leave early, so that they know what its ledger must say
MORTALS = (("mortal", "Mortal"), ("mortal", "Leaf"), ("single", "Single"))
