"""The lifespan of an application: startup, state, shutdown, each within its time, nothing left running."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI

from skate.core.clock import ManualClock, SystemClock
from skate.core.errors import DeployError
from skate.dataplane.replica.lifespan import Lifespan


def lifespan_app(behaviour: Any) -> Any:
    return FastAPI(lifespan=contextlib.asynccontextmanager(behaviour))


def test_lifespan_hands_its_state_on_and_ends() -> None:
    log: list[str] = []

    async def behaviour(_: Any) -> AsyncIterator[dict[str, int]]:
        async with asyncio.timeout(30):  # must be left in the task that entered it
            yield {"n": 1}
            log.append("down")

    async def main() -> None:
        lifespan = Lifespan(lifespan_app(behaviour), SystemClock())
        await lifespan.start()
        assert lifespan.supported and lifespan.request_state() == {"n": 1}
        await lifespan.stop()
        await lifespan.stop()
        assert log == ["down"] and lifespan.failure is None and len(asyncio.all_tasks()) == 1

    asyncio.run(main())


@pytest.mark.parametrize("error", [ZeroDivisionError("no"), SystemExit(3)])
def test_a_failed_startup_raises_with_the_cause(error: BaseException) -> None:
    async def behaviour(_: Any) -> AsyncIterator[None]:
        raise error
        yield

    async def main() -> None:
        lifespan = Lifespan(lifespan_app(behaviour), SystemClock())
        with pytest.raises(DeployError, match="startup of the ASGI application failed") as caught:
            await lifespan.start()
        assert caught.value.__cause__ is error and len(asyncio.all_tasks()) == 1
        await lifespan.stop()

    asyncio.run(main())


def test_an_application_that_knows_no_lifespan() -> None:
    async def raising(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"

    async def silent(scope: Any, receive: Any, send: Any) -> None:
        return

    async def main() -> None:
        for app in (raising, silent):
            lifespan = Lifespan(app, SystemClock())
            await lifespan.start()
            assert not lifespan.supported and lifespan.request_state() == {}
            await lifespan.stop()

    asyncio.run(main())


def test_startup_and_shutdown_have_a_limit(caplog: pytest.LogCaptureFixture) -> None:
    async def slow_start(_: Any) -> AsyncIterator[None]:
        await asyncio.Event().wait()
        yield

    async def slow_stop(_: Any) -> AsyncIterator[None]:
        yield
        await asyncio.Event().wait()

    async def main() -> None:
        clock = ManualClock()
        starting = Lifespan(lifespan_app(slow_start), clock, startup_s=5.0)
        start = asyncio.create_task(starting.start())
        await elapse(clock, 5.0, start)
        with pytest.raises(DeployError, match="did not end within 5 s"):
            await start
        stopping = Lifespan(lifespan_app(slow_stop), clock, shutdown_s=7.0)
        await stopping.start()
        stop = asyncio.create_task(stopping.stop())
        await elapse(clock, 7.0, stop)
        await stop
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    assert "shutdown of the ASGI application did not end within 7 s" in caplog.text


async def elapse(clock: ManualClock, seconds: float, until: asyncio.Task[Any]) -> None:
    """Lets everything run, and only when it waits for the clock moves that."""
    for _ in range(100):
        await asyncio.sleep(0)
    assert not until.done()
    clock.advance(seconds)
    limit = time.monotonic() + 5
    while not until.done() and time.monotonic() < limit:
        await asyncio.sleep(0)


def test_a_shutdown_that_fails_and_one_that_comes_unasked_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    broken = asyncio.Event()

    async def failing(_: Any) -> AsyncIterator[None]:
        yield
        raise ValueError("at the end")

    async def dying(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await broken.wait()
        raise RuntimeError("in between")

    async def main() -> None:
        first = Lifespan(lifespan_app(failing), SystemClock())
        await first.start()
        await first.stop()
        assert isinstance(first.failure, ValueError)
        second = Lifespan(dying, SystemClock())
        await second.start()
        broken.set()
        while second.failure is None:
            await asyncio.sleep(0)
        await second.stop()

    asyncio.run(main())
    assert "shutdown of the ASGI application failed" in caplog.text and "at the end" in caplog.text
    assert "ended while it served" in caplog.text and "in between" in caplog.text
