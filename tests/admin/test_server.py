"""The process of the REST API: real sockets in front, a controller in memory behind."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest
import uvloop

from skate.admin import server
from skate.admin.body import BODY_MAX
from skate.core.clock import SystemClock
from skate.core.errors import NotFoundError
from skate.core.specs import AdminConfig, AdminOptions, ProxyReport, ServeStatus
from skate.dataplane.transport.exchange import Exchange
from skate.dataplane.transport.peers import Listener, listen
from skate.engine.base import Life

LIMIT_S = 5.0  # for anything a test waits for
TOKEN = "t" * 16
_numbers = itertools.count()


async def until(true: Callable[[], Any]) -> None:
    """Waits for a state of the world."""
    async with asyncio.timeout(LIMIT_S):
        while not true():
            await asyncio.sleep(0.002)


class Controller:
    """Hears reports and says a status, in this process."""

    def __init__(self) -> None:
        self.address = f"memory:admin-test-{next(_numbers)}"
        self.reports: list[ProxyReport] = []
        self.cancelled: list[str] = []
        self.asked: list[str] = []
        self.hangs = False
        self._listener: Listener | None = None

    async def start(self) -> None:
        self._listener = await listen(self.address, self.accept, "controller")

    async def close(self) -> None:
        if self._listener is not None:
            await self._listener.close()
            self._listener = None

    def accept(self, exchange: Exchange) -> None:
        method = exchange.head.method
        self.asked.append(method)
        if method == "report_proxy":
            self.reports.append(msgspec.msgpack.decode(exchange.body, type=ProxyReport))
            exchange.reply(b"")
        elif self.hangs:
            exchange.on_cancel = lambda *why: self.cancelled.append(method)
        elif method == "status":
            exchange.reply(msgspec.msgpack.encode(ServeStatus(controller_pid=len(self.reports))))
        else:
            exchange.fail(NotFoundError(f"no control call {method!r}"))


@asynccontextmanager
async def served(controller: Controller, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """The entry, running; a client of it. When it has ended, nothing is left."""
    await controller.start()
    config = AdminConfig("admin", controller.address, AdminOptions(port=0, **options))
    life = Life(SystemClock(), inline=True)
    running = asyncio.ensure_future(server.run(msgspec.msgpack.encode(config), life))
    await until(lambda: controller.reports)
    report = controller.reports[0]
    assert (report.id, report.phase, report.pid, report.host) == ("admin", "ready", os.getpid(), "127.0.0.1")
    try:
        url = f"http://127.0.0.1:{report.port}"
        async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S, trust_env=False) as web:
            yield web
    finally:
        life.stopping.set()
        async with asyncio.timeout(LIMIT_S):
            await running
        await controller.close()
    with pytest.raises(OSError, match=r"refused|Connect"):
        await asyncio.open_connection("127.0.0.1", report.port)
    await until(lambda: len(asyncio.all_tasks()) == 1)


Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a test on a loop of this kind."""

    def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
        make = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=make) as runner:
            runner.run(test())

    return run


def test_it_serves_and_never_waits_for_a_controller_that_is_away(run: Run) -> None:
    async def test() -> None:
        controller = Controller()
        async with served(controller) as web:
            assert (await web.get("/api/serve/status")).json()["controller_pid"] == 1
            assert (await web.get("/-/healthz")).text == "success"
            await controller.close()
            answer = await web.get("/api/serve/status")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert "is being started again" in answer.json()["message"]
            await controller.start()
            await until(lambda: len(controller.reports) == 2)
            assert controller.reports[1] == controller.reports[0]
            assert (await web.get("/api/serve/status")).json()["controller_pid"] == 2

    run(test)


def test_a_call_under_way_ends_with_the_controller(run: Run) -> None:
    async def test() -> None:
        controller = Controller()
        async with served(controller) as web:
            controller.hangs = True
            request = asyncio.ensure_future(web.get("/api/serve/status"))
            await until(lambda: "status" in controller.asked)
            await controller.close()
            answer = await request
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")

    run(test)


def test_what_nobody_waits_for_is_cancelled(run: Run) -> None:
    async def test() -> None:
        controller = Controller()
        async with served(controller) as web:
            controller.hangs = True
            request = asyncio.ensure_future(web.post("/api/serve/plan", json={"applications": []}))
            await until(lambda: "plan" in controller.asked)
            request.cancel()
            await until(lambda: controller.cancelled == ["plan"])

    run(test)


def test_the_end_does_not_wait_for_what_hangs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "DRAIN_S", 0.01)

    async def test() -> None:
        controller = Controller()
        async with served(controller) as web:
            controller.hangs = True
            request = asyncio.ensure_future(web.get("/api/serve/status"))
            await until(lambda: "status" in controller.asked)
        assert (await asyncio.gather(request, return_exceptions=True))[0] is not None

    run(test)


def test_a_taken_port_is_said_and_the_process_ends(run: Run) -> None:
    async def test() -> None:
        controller = Controller()
        await controller.start()
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            config = AdminConfig("admin", controller.address, AdminOptions(port=port))
            async with asyncio.timeout(LIMIT_S):
                await server.run(msgspec.msgpack.encode(config), Life(SystemClock(), inline=True))
        (report,) = controller.reports
        assert (report.phase, report.port) == ("failed", port)
        assert "another process uses this port" in report.message
        await controller.close()
        await until(lambda: len(asyncio.all_tasks()) == 1)

    run(test)


def test_an_address_of_others_without_a_token_is_not_listened_on(run: Run) -> None:
    async def test() -> None:
        controller = Controller()
        await controller.start()
        config = AdminConfig("admin", controller.address, AdminOptions(host="0.0.0.0", port=0))
        async with asyncio.timeout(LIMIT_S):
            await server.run(msgspec.msgpack.encode(config), Life(SystemClock(), inline=True))
        (report,) = controller.reports
        assert report.phase == "failed"
        assert "has no token" in report.message
        await controller.close()

    run(test)


def test_requests_beyond_the_limit_are_sent_away(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUESTS_MAX", 1)
    monkeypatch.setattr(server, "QUEUE_MAX", 0)

    async def test() -> None:
        controller = Controller()
        async with served(controller) as web:
            controller.hangs = True
            first = asyncio.ensure_future(web.get("/api/serve/status"))
            await until(lambda: "status" in controller.asked)
            answer = await web.get("/api/serve/status")
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            first.cancel()

    run(test)


def test_connections_beyond_the_limit_are_sent_away(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 1)

    async def test() -> None:
        async with served(Controller()) as web:
            reader, writer = await asyncio.open_connection("127.0.0.1", web.base_url.port)
            writer.write(b"GET /-/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            assert (await web.get("/-/healthz")).status_code == 503
            writer.close()

    run(test)


def test_a_stranger_is_sent_away_before_the_body_comes(run: Run) -> None:
    async def test() -> None:
        async with served(Controller(), token=TOKEN) as web:
            reader, writer = await asyncio.open_connection("127.0.0.1", web.base_url.port)
            writer.write(
                b"PUT /api/serve/applications/ HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n"
            )
            async with asyncio.timeout(LIMIT_S):
                assert (await reader.readline()).startswith(b"HTTP/1.1 401")
            writer.close()
            bearer = {"authorization": f"Bearer {TOKEN}"}
            assert (await web.get("/api/serve/status", headers=bearer)).status_code == 200

    run(test)


def test_a_body_above_the_limit_is_refused(run: Run) -> None:
    async def test() -> None:
        async with served(Controller()) as web:
            answer = await web.put("/api/serve/applications/", content=b"x" * (BODY_MAX + 1))
            assert answer.status_code == 413

    run(test)
