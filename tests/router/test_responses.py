"""Responses seen from several threads and loops, by people who lose patience, and by the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from skate.core.clock import SystemClock
from skate.core.errors import CallTimeoutError, RemoteError
from skate.core.specs import DeploymentTarget, ReplicaTarget, Snapshot
from skate.dataplane import caller as callers
from skate.dataplane.caller import Caller, IoThread
from skate.dataplane.handle import DeploymentHandle
from skate.dataplane.payload import dumps, loads
from skate.dataplane.router import Router
from skate.dataplane.stream import ResponseStream
from skate.dataplane.transport import peers
from skate.dataplane.transport.exchange import Exchange
from skate.dataplane.transport.peers import listen
from skate.dataplane.uplink import Uplink

LIMIT_S = 10.0


class World:
    """A Caller on a thread of its own, connected to one replica, which is the test."""

    def __init__(self, thread: IoThread) -> None:
        self.thread = thread
        self.exchanges: list[Exchange] = []
        self.came = threading.Semaphore(0)
        self.handle: DeploymentHandle[Any] = DeploymentHandle("app", "D")

    async def start(self) -> Caller:
        self.listener = await listen("memory:responses", self.accept, "replica")
        router = Router("driver", SystemClock())
        target = DeploymentTarget("app", "D", 100, -1, (ReplicaTarget("r", "memory:responses"),), None)
        router.apply(Snapshot(1, True, {"app/D": target}, ()))
        self.caller = Caller(self.thread.loop, router, Uplink("memory:none", "driver", router, SystemClock()), "none")
        return self.caller

    async def stop(self) -> None:
        await self.caller.router.close()
        await self.listener.close()

    def accept(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        self.came.release()

    def next(self) -> Exchange:
        assert self.came.acquire(timeout=LIMIT_S)
        return self.exchanges.pop(0)

    def do(self, function: Callable[..., Any], *args: Any) -> Any:
        """On the router's loop."""

        async def done() -> Any:
            return function(*args)

        return self.thread.run(done(), LIMIT_S)

    def send(self, exchange: Exchange, value: Any) -> None:
        assert self.do(exchange.send_nowait, pickle.dumps(value))


@pytest.fixture
def world() -> Iterator[World]:
    thread = IoThread()
    world = World(thread)
    callers.install(thread.run(world.start(), LIMIT_S))
    yield world
    callers.install(None)
    thread.run(world.stop(), LIMIT_S)
    thread.stop()


async def impatient(ask: Callable[[], Awaitable[Any]], times: int) -> None:
    for _ in range(times):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(), 0.001)


def test_an_item_comes_to_who_asks_now_and_not_to_who_gave_up(world: World) -> None:
    async def main() -> None:
        stream = world.handle.options(stream=True).remote()
        exchange = await asyncio.to_thread(world.next)
        await impatient(stream.__anext__, 3)
        asked = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        world.send(exchange, "item")
        assert await asyncio.wait_for(asked, LIMIT_S) == "item"
        await impatient(stream.__anext__, 3)
        assert world.do(lambda: len(stream._listeners)) == 0
        world.do(exchange.end)
        assert [item async for item in stream] == []

    asyncio.run(main())


def test_who_asks_again_and_again_leaves_nothing(world: World) -> None:
    async def main() -> None:
        response = world.handle.remote()
        await impatient(lambda: response, 5)
        assert world.do(lambda: len(response._listeners)) == 0
        exchange = await asyncio.to_thread(world.next)
        world.do(exchange.reply, pickle.dumps(1))
        assert await response == await response == 1

    asyncio.run(main())
    response = world.handle.remote()
    for _ in range(3):
        with pytest.raises(CallTimeoutError):
            response.result(timeout_s=0.001)
    assert world.do(lambda: len(response._listeners)) == 0


def test_what_another_loop_had_fetched_is_not_lost_to_the_routers_own(world: World) -> None:
    stream = world.handle.options(stream=True).remote()
    exchange = world.next()
    for value in range(3):
        world.send(exchange, value)
    world.do(exchange.end)
    while not stream.done():
        world.do(lambda: None)
    assert next(stream) == 0

    async def rest() -> list[int]:
        return [item async for item in stream]

    assert world.thread.run(rest(), LIMIT_S) == [1, 2]


def test_many_threads_may_ask_for_one_value(world: World) -> None:
    with ThreadPoolExecutor(8) as pool:
        for _ in range(50):
            response = world.handle.remote()
            asked = [pool.submit(response.result, timeout_s=LIMIT_S) for _ in range(8)]
            world.do(world.next().reply, pickle.dumps(list(range(1000))))
            assert all(future.result() == list(range(1000)) for future in asked)


class Large:
    """A value that can be watched."""


@pytest.mark.parametrize("asked_for", [False, True])
def test_an_answer_goes_with_its_last_user(world: World, asked_for: bool) -> None:
    """No circle keeps it, and what is large in it, until the next full collection."""
    gc.collect()
    gc.disable()
    try:
        response = world.handle.remote()
        call = response._call
        while call is None:
            call = response._call
        world.do(world.next().reply, pickle.dumps(Large()))
        while not response.done():
            world.do(lambda: None)
        assert call.raw == b"" and response._call is None
        seen = weakref.ref(response.result(timeout_s=LIMIT_S)) if asked_for else None
        del call, response
        assert seen is None or seen() is None
    finally:
        gc.enable()


def test_a_call_that_cannot_be_sent_ends_on_the_thread_that_made_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.handle.remote()
    world.next()
    monkeypatch.setattr(peers, "FRAME_MAX", 1000)
    with pytest.raises(Exception, match="above the limit"):
        world.handle.remote("x" * 2000).result(timeout_s=LIMIT_S)
    with pytest.raises(UnicodeEncodeError):
        world.handle.options(method_name="\ud800").remote().result(timeout_s=LIMIT_S)
    with pytest.raises(OverflowError):
        world.handle.options(timeout_s=10**400).remote().result(timeout_s=LIMIT_S)


def test_a_stop_of_user_code_is_no_end_of_a_stream(world: World) -> None:
    async def main() -> None:
        stream = world.handle.options(stream=True).remote()
        exchange = await asyncio.to_thread(world.next)
        world.do(exchange.fail, StopAsyncIteration())
        with pytest.raises(RemoteError, match="StopAsyncIteration"):
            async for _ in stream:
                pass

    asyncio.run(main())


def test_calls_under_way_end_when_the_caller_does(world: World) -> None:
    response = world.handle.remote()
    world.next()
    world.thread.run(world.caller.router.close(), LIMIT_S)
    with pytest.raises(Exception, match="cancelled"):
        response.result(timeout_s=LIMIT_S)


def test_what_a_thread_fetched_comes_before_what_arrived_later() -> None:
    async def main() -> None:
        here = SimpleNamespace(loop=asyncio.get_running_loop())
        stream: ResponseStream[int] = ResponseStream(here, "id")  # type: ignore[arg-type]
        for number in range(3):
            stream._arrived((dumps(number), False))
        assert await asyncio.to_thread(next, stream) == 0  # fetches all three for other threads
        for number in range(3, 6):
            stream._arrived((dumps(number), False))
        stream._finish(None)
        passed_on = []
        while (frame := await stream.next_frame()) is not None:
            passed_on.append(loads(frame[0]))
        assert passed_on == [1, 2, 3, 4, 5]

    asyncio.run(main())
