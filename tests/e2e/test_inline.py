"""The inline engine: the same applications, all in this process, over HTTP as well."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request

import skate
from skate import serve
from skate.core.errors import DeployError, NotRunningError, RequestCancelledError
from tests.e2e import fruit
from tests.e2e.notes import Gate, Notes
from tests.e2e.world import calls, client, until


@pytest.fixture(scope="module")
def url(runtime_dir: Path) -> Iterator[str]:
    before = threading.active_count()
    serve.start(http_options={"port": 0}, engine="inline")
    yield f"http://{serve.status().proxies['0'].address}"

    @serve.deployment
    def last() -> int:
        return 1

    handle = serve.run(last.bind(), name="last", route_prefix=None)
    assert handle.remote().result() == 1
    serve.shutdown()
    with pytest.raises(NotRunningError):
        handle.remote()
    assert list(runtime_dir.rglob("*")) == []
    assert serve.status().applications == {}
    until(lambda: threading.active_count() <= before + 1)


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with client(url) as opened:
        yield opened


def test_the_same_application(http: httpx.Client) -> None:
    handle = serve.run(fruit.application(), name="fruit", route_prefix="/fruit")
    assert http.get("/fruit/price/apple?count=3").json() == 9.0
    assert http.get("/fruit/function").json()["shop"] == "corner"
    assert http.get("/fruit/stream").text == "01"
    assert handle.plain.remote(21).result() == 42
    assert skate.get([handle.plain.remote(n) for n in range(3)]) == [0, 2, 4]
    assert http.get("/-/routes").json() == {"/fruit": "fruit"}
    assert http.get("/fruit/crash").status_code == 500
    serve.delete("fruit")
    assert http.get("/fruit/").status_code == 404


def test_composition_in_one_process(http: httpx.Client, notes: Notes, gate: Gate) -> None:
    @serve.deployment
    class Child:
        def __call__(self, request: Request) -> Any:
            return os.getpid(), serve.get_replica_context().deployment, serve.get_request_context().request_id

        async def stream(self, n: int) -> Any:
            for i in range(n):
                yield i

        async def wait(self) -> None:
            notes.add("in")
            try:
                await gate.passed()
            finally:
                notes.add("out")

    @serve.deployment(num_replicas=2)
    class Parent:
        def __init__(self, child: Any) -> None:
            self.child = child

        async def __call__(self, request: Request) -> Any:
            below = await self.child.remote(request)
            return [*below, serve.get_replica_context().deployment]

        async def total(self, n: int) -> int:
            return sum([item async for item in self.child.options(stream=True).stream.remote(n)])

        async def wait(self) -> None:
            await self.child.wait.remote()

        def sync(self) -> Any:
            return self.child.remote(None).result()[1]

    handle = serve.run(Parent.bind(Child.bind()), name="two", route_prefix="/two")
    answer = http.get("/two", headers={"x-request-id": "r1"}).json()
    assert answer == [os.getpid(), "Child", "r1", "Parent"]
    assert handle.total.remote(100).result() == sum(range(100))
    assert handle.sync.remote().result() == "Child"
    waiting = handle.wait.remote()
    until(lambda: notes.has("in"))
    waiting.cancel()
    with pytest.raises(RequestCancelledError):
        waiting.result(timeout_s=5)
    until(lambda: notes.has("out"))
    assert calls().open == 0
    serve.delete("two")


def test_errors_are_the_same(http: httpx.Client) -> None:
    class Own(Exception):
        pass

    @serve.deployment(max_constructor_retry_count=1)
    class Fails:
        def __init__(self, at_once: bool) -> None:
            if at_once:
                raise OSError("no disk")

        def __call__(self, request: Request) -> None:
            raise Own("mine")

    with pytest.raises(DeployError, match="no disk"):
        serve.run(Fails.bind(True), name="fails", route_prefix="/fails")
    handle = serve.run(Fails.bind(False), name="fails", route_prefix="/fails")
    with pytest.raises(Own, match="mine"):
        handle.remote(None).result()
    assert http.get("/fails").status_code == 500
    serve.delete("fails")


def test_a_websocket_and_an_application_by_value(url: str) -> None:
    from fastapi import WebSocket
    from websockets.sync.client import connect

    app = FastAPI()

    @serve.deployment
    @serve.ingress(app)
    class Echo:
        async def echo(self, socket: WebSocket) -> None:
            await socket.accept()
            await socket.send_text((await socket.receive_text()).upper())
            await socket.close()

    Echo.func_or_class.echo.__annotations__["socket"] = WebSocket  # type: ignore[attr-defined]
    app.websocket("/echo")(Echo.func_or_class.echo)  # type: ignore[attr-defined]
    serve.run(Echo.bind(), name="ws", route_prefix="/ws")
    with connect(url.replace("http", "ws") + "/ws/echo", proxy=None) as socket:
        socket.send("hi")
        assert socket.recv() == "HI"
    serve.delete("ws")
