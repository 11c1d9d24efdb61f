"""Who goes away or cancels: the handler ends, the calls under it end, nothing of it stays."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from skate import serve
from skate.core.errors import CallTimeoutError, RequestCancelledError
from skate.core.specs import LedgerReport
from skate.dataplane.handle import DeploymentHandle
from tests.e2e.conftest import Deploy
from tests.e2e.notes import Gate, Notes
from tests.e2e.world import Instance, calls, client, descriptors_of, until


def chain(notes: Notes, gate: Gate) -> Any:
    @serve.deployment
    class Child:
        async def __call__(self) -> str:
            notes.add("child begins")
            try:
                await gate.passed()
                return "child"
            finally:
                notes.add("child ends")

        async def stream(self) -> Any:
            try:
                for n in range(1000):
                    yield n
                    notes.add("item")
                    await gate.passed()
            finally:
                notes.add("child ends")

    @serve.deployment
    class Parent:
        def __init__(self, child: Any) -> None:
            self.child = child

        async def __call__(self, request: Request) -> Any:
            try:
                return await self.child.remote()
            except asyncio.CancelledError:
                notes.add("parent cancelled")
                raise

        async def stream(self) -> Any:
            try:
                async for item in self.child.options(stream=True).stream.remote():
                    yield item
            finally:
                notes.add("parent ends")

        def sync(self) -> Any:
            try:
                return self.child.remote().result()
            finally:
                notes.add("sync ends")

    return Parent.bind(Child.bind())


@contextmanager
def sent(instance: Instance, path: str) -> Iterator[socket.socket]:
    """A client that has sent its request; it leaves at the end of the block."""
    with socket.create_connection(("127.0.0.1", instance.port), timeout=10) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        yield connection


def test_a_client_that_leaves_cancels_the_handler_and_its_calls(
    deploy: Deploy, instance: Instance, notes: Notes, gate: Gate
) -> None:
    deploy(chain(notes, gate))
    before = calls()
    with sent(instance, "/a1"):
        until(lambda: notes.has("child begins"))
    until(lambda: notes.has("parent cancelled") and notes.has("child ends"))
    after = until(lambda: (seen := calls()).accepted == before.accepted + 2 and seen)
    assert (after.cancelled - before.cancelled, after.ok - before.ok) == (2, 0)


def test_a_client_that_leaves_while_it_waits_is_never_served(
    deploy: Deploy, instance: Instance, notes: Notes, gate: Gate
) -> None:
    @serve.deployment(max_ongoing_requests=1)
    class Counter:
        async def __call__(self, request: Request) -> str:
            notes.add(request.url.path)
            await gate.passed()
            return "done"

    deploy(Counter.bind())
    before = calls()
    with ThreadPoolExecutor() as pool, client(instance.url) as http:
        first = pool.submit(http.get, "/a1/first")
        until(lambda: notes.has("/a1/first"))
        with sent(instance, "/a1/second"):
            until(lambda: serve.status().calls.open == 2)
        until(lambda: serve.status().calls.cancelled == before.cancelled + 1)
        gate.open()
        assert first.result().text == "done"
        assert http.get("/a1/third").text == "done"
    assert notes.read() == ["/a1/first", "/a1/third"]


def test_a_client_that_leaves_a_stream_ends_the_generator(
    deploy: Deploy, instance: Instance, notes: Notes, gate: Gate
) -> None:
    @serve.deployment
    class Streams:
        async def __call__(self, request: Request) -> Any:
            try:
                yield "first"
                await gate.passed()
                yield "second"
            finally:
                notes.add("ends")

    deploy(Streams.bind())
    with sent(instance, "/a1") as connection:
        while b"first" not in connection.recv(1000):
            pass
    until(lambda: notes.has("ends"))


def test_is_disconnected_and_receive_tell(deploy: Deploy, instance: Instance, notes: Notes) -> None:
    @serve.deployment
    class Watches:
        async def __call__(self, request: Request) -> None:
            assert not await request.is_disconnected()
            notes.add("connected")
            try:
                while not await request.is_disconnected():
                    await asyncio.sleep(0.005)
            finally:
                notes.add("gone")

    deploy(Watches.bind())
    with sent(instance, "/a1"):
        until(lambda: notes.has("connected"))
    until(lambda: notes.has("gone"))


def test_cancel_of_a_running_call(deploy: Deploy, notes: Notes, gate: Gate) -> None:
    handle = deploy(chain(notes, gate))
    response = handle.remote(None)
    until(lambda: notes.has("child begins"))
    response.cancel()
    for _ in range(2):
        with pytest.raises(RequestCancelledError):
            response.result(timeout_s=5)
    assert response.cancelled() and response.done()
    until(lambda: notes.has("parent cancelled") and notes.has("child ends"))


def test_cancel_of_a_queued_call(deploy: Deploy, notes: Notes, gate: Gate) -> None:
    @serve.deployment(max_ongoing_requests=1)
    class One:
        async def __call__(self, word: str) -> str:
            notes.add(word)
            await gate.passed()
            return word

    handle = deploy(One.bind())
    first = handle.remote("first")
    until(lambda: notes.has("first"))
    second, third = handle.remote("second"), handle.remote("third")
    second.cancel()
    with pytest.raises(RequestCancelledError):
        second.result(timeout_s=5)
    gate.open()
    assert (first.result(), third.result()) == ("first", "third")
    assert notes.read() == ["first", "third"]


def test_cancel_of_a_finished_call_changes_nothing(deploy: Deploy, notes: Notes, gate: Gate) -> None:
    gate.open()
    handle = deploy(chain(notes, gate))
    response = handle.remote(None)
    assert response.result() == "child"
    response.cancel()
    assert response.result() == "child" and not response.cancelled()


def test_cancel_of_a_stream_ends_both_generators(deploy: Deploy, notes: Notes, gate: Gate) -> None:
    handle = deploy(chain(notes, gate))
    stream = handle.options(stream=True).stream.remote()
    assert next(stream) == 0
    stream.cancel()
    with pytest.raises(RequestCancelledError):
        next(stream)
    until(lambda: notes.has("parent ends") and notes.has("child ends"))


def test_a_sync_handler_goes_on_but_the_call_under_it_ends(deploy: Deploy, notes: Notes, gate: Gate) -> None:
    handle = deploy(chain(notes, gate))
    response = handle.sync.remote()
    until(lambda: notes.has("child begins"))
    response.cancel()
    with pytest.raises(RequestCancelledError):
        response.result(timeout_s=5)
    until(lambda: notes.has("child ends") and notes.has("sync ends"))


def test_timeout_s_of_a_handle_is_the_deadline_of_all_below(deploy: Deploy, notes: Notes, gate: Gate) -> None:
    handle = deploy(chain(notes, gate))
    with pytest.raises(CallTimeoutError, match="timed out after 0"):
        handle.options(timeout_s=0.2).remote(None).result()
    until(lambda: notes.has("child ends"))


def three(notes: Notes, gate: Gate) -> Any:
    """Three deployments in a row; each says how many seconds it has left."""

    def left() -> float:
        deadline = serve.get_request_context().deadline
        return -1.0 if deadline is None else deadline - time.monotonic()

    @serve.deployment(max_ongoing_requests=1)
    class Last:
        async def __call__(self, what: str) -> list[float]:
            notes.add(what)
            if what == "hold":
                await gate.passed()
            return [left()]

    @serve.deployment
    class Middle:
        def __init__(self, last: DeploymentHandle) -> None:
            self.last = last

        async def __call__(self, what: str) -> list[float]:
            return [left(), *await self.last.remote(what)]

    @serve.deployment
    class First:
        def __init__(self, middle: DeploymentHandle) -> None:
            self.middle = middle

        async def __call__(self, request: Request) -> list[float]:
            return await self.go(request.query_params["what"])

        async def go(self, what: str) -> list[float]:
            return [left(), *await self.middle.remote(what)]

    return First.bind(Middle.bind(Last.bind()))


def test_a_deadline_reaches_all_three_of_a_chain(deploy: Deploy, http: httpx.Client, notes: Notes, gate: Gate) -> None:
    handle = deploy(three(notes, gate))
    for seconds in (
        http.get("/a1?what=go", headers={"X-Request-Timeout-Seconds": "30"}).json(),
        handle.options(timeout_s=30).go.remote("go").result(),
    ):
        assert 30 > seconds[0] > seconds[1] > seconds[2] > 20
    assert http.get("/a1?what=go").json() == handle.go.remote("go").result() == [-1, -1, -1]


def test_what_waits_at_the_end_of_a_chain_beyond_its_deadline_is_never_begun(
    deploy: Deploy, http: httpx.Client, notes: Notes, gate: Gate
) -> None:
    handle = deploy(three(notes, gate))
    holding = handle.go.remote("hold")
    until(lambda: notes.has("hold"))
    answer = http.get("/a1?what=late", headers={"X-Request-Timeout-Seconds": "0.2"})
    assert answer.status_code == 408
    with pytest.raises(CallTimeoutError):
        handle.options(timeout_s=0.2).go.remote("late").result()
    until(lambda: calls_at("Last").queued == 0 and calls_at("Middle").open == 1)
    gate.open()
    assert len(holding.result()) == 3
    assert handle.go.remote("go").result() and notes.read() == ["hold", "go"]


def calls_at(deployment: str) -> LedgerReport:
    return serve.status().calls_by_deployment[f"a1/{deployment}"]


def test_await_of_a_cancelled_task_cancels_only_the_wait(deploy: Deploy, notes: Notes, gate: Gate) -> None:
    handle = deploy(chain(notes, gate))

    async def main() -> None:
        response = handle.remote(None)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_value(response), 0.1)
        gate.open()
        assert await response == "child"

    asyncio.run(main())


async def _value(response: Any) -> Any:
    return await response


def test_nothing_grows(deploy: Deploy, instance: Instance, notes: Notes, gate: Gate) -> None:
    """500 requests, a hundred of them left by their clients: the proxy has no more descriptors than before."""

    @serve.deployment(max_ongoing_requests=200)
    class Mixed:
        async def __call__(self, request: Request) -> Any:
            if request.url.path.endswith("/slow"):
                notes.add("slow")
                await gate.passed()
            return request.url.path

    deploy(Mixed.bind())
    proxy, replica = pids()
    with client(instance.url) as http:
        assert http.get("/a1").text == "/a1"
        before = descriptors_of(proxy), descriptors_of(replica)
        for n in range(4):
            with ExitStack() as clients:
                for _ in range(25):
                    clients.enter_context(sent(instance, "/a1/slow"))
                until(lambda n=n: notes.has("slow", 25 * (n + 1)))  # type: ignore[misc]
            for _ in range(100):
                assert http.get("/a1").status_code == 200
        assert calls().open == 0
        until(lambda: descriptors_of(proxy) <= before[0] + 1 and descriptors_of(replica) <= before[1] + 1)


def pids() -> tuple[int, int]:
    status = serve.status()
    return status.proxies["0"].pid, status.applications["a1"].deployments["Mixed"].replicas[0].pid
