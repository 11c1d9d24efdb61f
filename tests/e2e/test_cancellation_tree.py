"""One tree: whatever ends a request ends all code and all calls under it, and each of them can read why."""

from __future__ import annotations

import asyncio
import contextvars
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from starlette.requests import Request
from websockets.sync.client import connect

from skate import serve
from skate.core.errors import CallTimeoutError, RequestCancelledError
from tests.e2e.conftest import Deploy
from tests.e2e.notes import Gate, Notes
from tests.e2e.world import Instance, calls, client, until

PRELOAD = ("fastapi",)
GONE = "client_disconnected the client disconnected"


def cause_here() -> str:
    here = serve.get_request_context()
    return f"{here.cancel_cause} {here.cancel_reason}"


def tree(notes: Notes, gate: Gate) -> Any:
    """A (async) -> B (sync) -> C (async). Each notes how it was ended."""

    def noting(name: str, error: BaseException) -> None:
        notes.add(f"{name}: {type(error).__name__}: {cause_here()}")

    @serve.deployment(max_ongoing_requests=1)
    class C:
        async def __call__(self) -> str:
            notes.add("C begins")
            try:
                await gate.passed()
            except asyncio.CancelledError as error:
                noting("C", error)
                notes.add(f"C says: {error.args[0]}")
                raise
            return "c"

        async def items(self) -> Any:
            try:
                yield 0
                await gate.passed()
                yield 1
            except asyncio.CancelledError as error:
                noting("C", error)
                raise

    @serve.deployment(max_ongoing_requests=1)
    class B:
        def __init__(self, c: Any) -> None:
            self.c = c

        def __call__(self) -> str:
            try:
                return str(self.c.remote().result())
            except Exception as error:
                noting("B", error)
                for late in (self.c.remote(), self.c.remote(self.c.remote())):  # the second waits for an argument
                    try:
                        late.result()
                    except Exception as after:
                        notes.add(f"B later: {type(after).__name__}")
                raise

        def items(self) -> Any:
            try:
                yield from self.c.options(stream=True).items.remote()
            except BaseException as error:
                noting("B", error)
                raise

        def computes(self) -> None:
            here = serve.get_request_context()
            notes.add("B computes")
            limit = time.monotonic() + 20
            while not here.cancelled and time.monotonic() < limit:
                time.sleep(0.001)
            try:
                here.raise_if_cancelled()
            except Exception as error:
                noting("B", error)
                raise

        def in_a_thread(self) -> None:
            copied = contextvars.copy_context()
            thread = threading.Thread(target=copied.run, args=(self.computes,))
            thread.start()
            thread.join()

        def queued(self) -> None:
            notes.add("B ran what was queued")

    @serve.deployment(max_ongoing_requests=1)
    class A:
        def __init__(self, b: Any, c: Any) -> None:
            self.b, self.c = b, c

        async def __call__(self, request: Request) -> Any:
            how = request.url.path.rpartition("/")[2]
            try:
                if how == "gather":
                    await asyncio.gather(self.b.remote(), asyncio.create_task(gate.passed()))
                elif how == "task":
                    await asyncio.create_task(self._in_a_task())
                else:
                    await self.b.options(method_name=how).remote()
            except asyncio.CancelledError as error:
                noting("A", error)
                raise

        async def _in_a_task(self) -> None:
            await self.b.remote()

        async def direct(self) -> Any:
            try:
                return await self.b.remote()
            except BaseException as error:
                noting("A", error)
                raise

    return A.bind(B.bind(c := C.bind()), c)


@contextmanager
def sent(instance: Instance, path: str) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", instance.port), timeout=10) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        yield connection


def all_is_free(handle: Any, gate: Gate) -> None:
    """Nothing of the request is left: every deployment takes the one call that it has room for."""
    assert calls().open == 0
    gate.open()
    assert handle.direct.remote().result(timeout_s=10) == "c"


@pytest.mark.parametrize("how", ["__call__", "gather", "task"])
def test_a_client_that_leaves_ends_a_chain_with_sync_code_in_its_middle(
    deploy: Deploy, instance: Instance, notes: Notes, gate: Gate, how: str
) -> None:
    handle = deploy(tree(notes, gate))
    with sent(instance, f"/a1/{how}"):
        until(lambda: notes.has("C begins"))
    until(lambda: {line[:1] for line in notes.read() if GONE in line} == {"A", "B", "C"})
    assert notes.has(f"A: CancelledError: {GONE}")
    assert notes.has(f"B: RequestCancelledError: {GONE}")
    assert notes.has(f"C: CancelledError: {GONE}") and notes.has("C says: the client disconnected")
    until(lambda: notes.has("B later: RequestCancelledError", 2))
    all_is_free(handle, gate)


def test_time_that_is_over_ends_the_chain(deploy: Deploy, notes: Notes, gate: Gate) -> None:
    handle = deploy(tree(notes, gate))
    with pytest.raises(CallTimeoutError):
        handle.options(timeout_s=0.3).direct.remote().result()
    until(lambda: notes.has("B later: CallTimeoutError", 2))
    lines = "\n".join(notes.read())
    assert "B: CallTimeoutError" in lines and "C: CancelledError: timed_out the time of the request is over" in lines
    until(lambda: any(line.startswith("A: ") for line in notes.read()))
    all_is_free(handle, gate)


def test_cancel_of_a_response_ends_the_chain(deploy: Deploy, notes: Notes, gate: Gate) -> None:
    handle = deploy(tree(notes, gate))
    response = handle.direct.remote()
    until(lambda: notes.has("C begins"))
    response.cancel()
    with pytest.raises(RequestCancelledError) as raised:
        response.result()
    assert raised.value.cause == "cancelled"
    said = "cancelled its caller called cancel()"
    ends = [f"A: CancelledError: {said}", f"B: RequestCancelledError: {said}", f"C: CancelledError: {said}"]
    until(lambda: all(notes.has(end) for end in ends))
    all_is_free(handle, gate)


def test_a_replica_that_ends_says_so_below(deploy: Deploy, notes: Notes, gate: Gate) -> None:
    @serve.deployment
    class Below:
        async def __call__(self) -> None:
            try:
                notes.add("begins")
                await gate.passed()
            except asyncio.CancelledError:
                notes.add(cause_here())
                raise

    @serve.deployment(graceful_shutdown_timeout_s=0.1)
    class Above:
        def __init__(self, below: Any) -> None:
            self.below = below

        async def __call__(self) -> None:
            await self.below.remote()

    handle = deploy(Above.bind(Below.bind()))
    handle.remote()
    until(lambda: notes.has("begins"))
    serve.delete("a1")
    until(lambda: any(line.startswith("shutting_down the replica was shut down") for line in notes.read()))


@pytest.mark.parametrize("how", ["computes", "in_a_thread"])
def test_code_that_computes_can_ask(deploy: Deploy, instance: Instance, notes: Notes, gate: Gate, how: str) -> None:
    handle = deploy(tree(notes, gate))
    with sent(instance, f"/a1/{how}"):
        until(lambda: notes.has("B computes"))
    until(lambda: notes.has(f"B: RequestCancelledError: {GONE}"))
    all_is_free(handle, gate)


def test_a_def_call_that_waits_for_its_thread_never_starts(deploy: Deploy, notes: Notes, gate: Gate) -> None:
    @serve.deployment
    class OneThread:
        def first(self) -> None:
            notes.add("first")
            gate.wait()

        def second(self) -> None:
            notes.add("second")

        async def third(self) -> str:
            return "third"

    handle = deploy(OneThread.bind())
    first = handle.first.remote()
    until(lambda: notes.has("first"))
    second = handle.second.remote()
    assert handle.third.remote().result() == "third"  # the second has come, too
    second.cancel()
    with pytest.raises(RequestCancelledError):
        second.result()
    assert handle.third.remote().result() == "third"  # what was said before has come, too
    gate.open()
    first.result()
    assert handle.third.remote().result() == "third" and notes.read() == ["first"]


@pytest.mark.parametrize("leave", ["cancel", "drop"])
def test_a_stream_that_nobody_reads_ends_on_every_floor(deploy: Deploy, notes: Notes, gate: Gate, leave: str) -> None:
    deploy(tree(notes, gate))
    stream = serve.get_deployment_handle("B", "a1").options(stream=True).items.remote()
    assert next(stream) == 0
    if leave == "cancel":
        stream.cancel()
    del stream
    until(lambda: any(line.startswith("C: CancelledError: cancelled ") for line in notes.read()))
    until(lambda: any(line.startswith("B: ") for line in notes.read()))
    assert calls().open == 0


def test_a_client_that_leaves_in_the_middle_of_a_stream(
    deploy: Deploy, instance: Instance, notes: Notes, gate: Gate
) -> None:
    @serve.deployment
    class Below:
        async def __call__(self) -> Any:
            try:
                yield "first"
                await gate.passed()
            except asyncio.CancelledError:
                notes.add(f"below: {cause_here()}")
                raise

    @serve.deployment
    class Middle:
        def __init__(self, below: Any) -> None:
            self.below = below.options(stream=True)

        def __call__(self) -> Any:
            try:
                yield from self.below.remote()
            except RequestCancelledError as error:
                notes.add(f"middle: {error.cause} {cause_here()}")
                raise

    @serve.deployment
    class Door:
        def __init__(self, middle: Any) -> None:
            self.middle = middle.options(stream=True)

        async def __call__(self, request: Request) -> Any:
            try:
                async for item in self.middle.remote():
                    yield item
            except asyncio.CancelledError:
                notes.add(f"door: {cause_here()}")
                raise

    deploy(Door.bind(Middle.bind(Below.bind())))
    with sent(instance, "/a1") as connection:
        while b"first" not in connection.recv(1000):
            pass
    ends = [f"door: {GONE}", f"middle: client_disconnected {GONE}", f"below: {GONE}"]
    until(lambda: all(notes.has(end) for end in ends))
    assert calls().open == 0


def test_a_websocket_client_that_leaves_ends_what_is_under_way_and_lets_the_handler_clean_up(
    deploy: Deploy, instance: Instance, notes: Notes, gate: Gate
) -> None:
    app = FastAPI()

    @serve.deployment
    class Below:
        async def __call__(self) -> None:
            try:
                notes.add("begins")
                await gate.passed()
            except asyncio.CancelledError as error:
                notes.add(f"below: {error.args[0]}")
                raise

        async def save(self) -> str:
            return "saved"

    @serve.deployment
    @serve.ingress(app)
    class Door:
        def __init__(self, below: Any) -> None:
            self.below = below

        @app.websocket("/wait")
        async def wait(self, socket: WebSocket) -> None:
            await socket.accept()
            try:
                await self.below.remote()
            except RequestCancelledError as error:
                notes.add(f"door: {error.cause}")
                notes.add(await self.below.save.remote())

        @app.websocket("/talk")
        async def talk(self, socket: WebSocket) -> None:
            await socket.accept()
            try:
                while True:
                    await socket.send_text("x")
                    await asyncio.sleep(0)
            finally:
                notes.add("talk ends")

    deploy(Door.bind(Below.bind()))
    with connect(f"ws://127.0.0.1:{instance.port}/a1/wait", proxy=None):
        until(lambda: notes.has("begins"))
    until(lambda: notes.has("saved"), limit_s=5)  # long before the grace of a handler is over
    assert notes.has("below: the client disconnected") and notes.has("door: client_disconnected")
    with connect(f"ws://127.0.0.1:{instance.port}/a1/talk", proxy=None) as talking:
        talking.recv()
    until(lambda: notes.has("talk ends"), limit_s=5)  # it only sends: the next send says that nobody is there
    assert calls().open == 0


def test_the_time_that_is_left_is_known_on_every_floor(deploy: Deploy) -> None:
    @serve.deployment
    class Below:
        def __call__(self) -> Any:
            return serve.get_request_context().remaining_s

    @serve.deployment
    class Above:
        def __init__(self, below: Any) -> None:
            self.below = below

        async def __call__(self) -> Any:
            return serve.get_request_context().remaining_s, await self.below.remote()

    handle = deploy(Above.bind(Below.bind()))
    assert handle.remote().result() == (None, None)
    above, below = handle.options(timeout_s=60).remote().result()
    assert 0 < below <= above <= 60


def test_one_line_of_the_log_names_a_request_that_was_given_up(script: Callable[..., Any]) -> None:
    run = script(
        """
os.environ["SKATE_INSTANCE"] = "log"

class Slow:
    async def __call__(self, request):
        print("begins", flush=True)
        await asyncio.sleep(30)

import socket
serve.start(http_options={"port": 0})
serve.run(serve.deployment(Slow).bind())
(proxy,) = serve.status().proxies.values()
host, _, port = proxy.address.rpartition(":")
with socket.create_connection((host, int(port))) as line:
    line.sendall(b"GET / HTTP/1.1\\r\\nhost: x\\r\\nx-request-id: rid-7\\r\\n\\r\\n")
    while serve.status().calls.open != 1:
        time.sleep(0.005)
while serve.status().calls.cancelled != 1:
    time.sleep(0.005)
"""
    )
    run.ends()
    lines = [line for line in run.errors.read_text().splitlines() if "rid-7" in line]
    assert len(lines) == 1 and "given up after" in lines[0] and "the client disconnected" in lines[0]


def test_a_client_that_leaves_its_upload(deploy: Deploy, instance: Instance, notes: Notes) -> None:
    @serve.deployment
    class Reads:
        async def __call__(self, request: Request) -> None:
            try:
                async for piece in request.stream():
                    notes.add(f"took {len(piece)}")
            finally:
                notes.add(cause_here())

    deploy(Reads.bind())
    with socket.create_connection(("127.0.0.1", instance.port), timeout=10) as connection:
        connection.sendall(b"POST /a1 HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        until(lambda: notes.has("took 3"))
    until(lambda: any(line.startswith("client_disconnected") for line in notes.read()))
    with client(instance.url) as http:
        assert http.post("/a1", content=b"x").status_code == 200
