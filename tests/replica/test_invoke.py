from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, StreamingResponse

from skate.core import context
from skate.core.clock import ManualClock
from skate.core.context import ReplicaContext
from skate.core.errors import (
    BackPressureError,
    CallTimeoutError,
    CodeError,
    MethodNotFoundError,
    RemoteError,
    RemoteTraceback,
    ReplicaDiedError,
    RequestCancelledError,
    StreamMismatchError,
)
from skate.dataplane.replica.outflow import TURN_S
from tests.replica.line import Line, line_to, until


def run(code: Any, scenario: Callable[[Line], Coroutine[Any, Any, None]], *args: Any, **more: Any) -> None:
    async def main() -> None:
        async with line_to(code, *args, **more) as line:
            await scenario(line)
            await line.idle()

    asyncio.run(main())


# -- Python calls -------------------------------------------------------------------------------


class Model:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, request: Request) -> str:
        return f"{request.method} {request.url.path}"

    async def add(self, a: int, b: int = 1) -> int:
        await asyncio.sleep(0)
        return a + b

    def add_sync(self, a: int, b: int = 1) -> int:
        return a + b

    def thread(self) -> str:
        return threading.current_thread().name

    async def numbers(self, n: int) -> Any:
        for i in range(n):
            yield i

    def numbers_sync(self, n: int) -> Any:
        yield from range(n)

    def returns_generator(self, n: int) -> Any:
        return (i for i in range(n))

    async def returns_async_generator(self, n: int) -> Any:
        return self.numbers(n)

    def returns_coroutine(self, a: int) -> Any:
        return self.add(a)

    async def returns_task(self, a: int) -> Any:
        return asyncio.ensure_future(self.add(a))

    async def lambda_(self) -> Any:
        return lambda: 7

    async def lock(self) -> Any:
        return threading.Lock()

    async def fail(self, kind: type[BaseException], *args: Any) -> None:
        raise kind(*args)

    def fail_sync(self, kind: type[BaseException], *args: Any) -> None:
        raise kind(*args)


def test_values_come_back_whatever_kind_of_method() -> None:
    async def scenario(line: Line) -> None:
        assert await line.python("add", 1, b=2).value() == 3
        assert await line.python("add_sync", 1, b=2).value() == 3
        assert (await line.python("thread").value()).startswith("skate-handler")
        assert await line.python("returns_coroutine", 1).value() == 2
        assert await line.python("returns_task", 1).value() == 2
        assert (await line.python("lambda_").value())() == 7
        asked = line.python("add", 1)
        await asked.value()
        assert asked.frames == 1 and line.done == 7 and line.invoker.ongoing == 0

    run(Model, scenario)


def test_a_payload_may_come_in_pieces() -> None:
    async def scenario(line: Line) -> None:
        from skate.authoring.code import dumps
        from skate.dataplane.wire.head import PYTHON, CallHead

        payload = dumps((("a" * 1000,), {"b": "b"}))
        for method in ("add", "add_sync"):
            asked = line._open(CallHead(PYTHON, method, "r"), payload[:10], False)
            asked.send(payload[10:500])
            asked.send(payload[500:], last=True)
            assert await asked.value() == "a" * 1000 + "b"

    run(Model, scenario)


def test_a_call_with_nothing_gets_an_empty_request_where_one_is_needed() -> None:
    async def one(request: Request) -> Any:
        return [request.method, request.url.path, await request.body()]

    def none() -> str:
        return "none"

    def optional(x: Any = 3) -> Any:
        return x

    async def scenario(line: Line) -> None:
        assert await line.python("__call__").value() == "GET /"
        with pytest.raises(TypeError, match="missing 1 required positional argument"):
            await line.python("add").value()  # only __call__ is lenient

    run(Model, scenario)
    for function, value in ((one, ["GET", "/", b""]), (none, "none"), (optional, 3)):

        async def call(line: Line, value: Any = value) -> None:
            assert await line.python("__call__").value() == value
            assert await line.python("").value() == value

        run(function, call)


def test_too_many_arguments_are_the_callers_fault(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(line: Line) -> None:
        with pytest.raises(TypeError, match="takes 0 positional arguments but 1 was given") as caught:
            await line.python("__call__", 1).value()
        assert caught.value.__cause__ is None

    run(lambda: 1, scenario)
    assert [r.levelname for r in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("method", ["numbers", "numbers_sync", "returns_generator", "returns_async_generator"])
def test_streams_bring_one_item_a_chunk(method: str) -> None:
    async def scenario(line: Line) -> None:
        assert await line.python(method, 5, stream=True).items() == [0, 1, 2, 3, 4]
        assert await line.python(method, 0, stream=True).items() == []
        assert await line.python(method, 300, stream=True).items() == list(range(300))
        with pytest.raises(StreamMismatchError, match=rf"'{method}' of deployment 'Dep' is a generator.*stream=True"):
            await line.python(method, 5).value()

    run(Model, scenario)


@pytest.mark.parametrize("method", ["add", "add_sync"])
def test_stream_true_with_something_else(method: str) -> None:
    async def scenario(line: Line) -> None:
        with pytest.raises(StreamMismatchError, match="returned int, not a generator"):
            await line.python(method, 5, stream=True).items()

    run(Model, scenario)


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_items_leave_before_the_stream_ends_and_an_error_comes_after_them(kind: str) -> None:
    gate = threading.Event()

    class Sync:
        def stream(self) -> Any:
            yield 1
            gate.wait(5)
            yield 2
            raise ValueError("three")

    class Async:
        async def stream(self) -> Any:
            yield 1
            await asyncio.to_thread(gate.wait, 5)
            yield 2
            raise ValueError("three")

    async def scenario(line: Line) -> None:
        asked = line.python("stream", stream=True)
        await until(lambda: len(asked.chunks) == 1)
        gate.set()
        with pytest.raises(ValueError, match="three"):
            await asked.items()
        assert len(asked.chunks) == 2

    run(Async if kind == "async" else Sync, scenario)


def test_a_stream_that_never_waits_still_lets_its_items_go() -> None:
    seen: list[int] = []

    class Busy:
        async def stream(self) -> Any:
            for i in range(4):
                until_then = time.perf_counter() + 2 * TURN_S
                while time.perf_counter() < until_then:
                    pass
                seen.append(len(asked[0].chunks))
                yield i

    asked: list[Any] = []

    async def scenario(line: Line) -> None:
        asked.append(line.python("stream", stream=True))
        assert await asked[0].items() == [0, 1, 2, 3]

    run(Busy, scenario)
    assert seen[0] == 0 and seen[-1] >= 1  # the first was with its caller before the last was made


@pytest.mark.parametrize("method", ["numbers", "numbers_sync"])
def test_a_reader_that_reads_nothing_stops_the_writer(method: str) -> None:
    made: list[int] = []
    closed: list[bool] = []

    class Endless:
        async def numbers(self) -> Any:
            try:
                while True:
                    made.append(1)
                    yield b"x" * 10_000
            finally:
                closed.append(True)

        def numbers_sync(self) -> Any:
            try:
                while True:
                    made.append(1)
                    yield b"x" * 10_000
            finally:
                closed.append(True)

    async def scenario(line: Line) -> None:
        asked = line.python(method, stream=True, credit=False)
        count = -1
        while count != len(made):
            count = len(made)
            await asyncio.sleep(0.05)
        assert 0 < count < 5000
        asked.cancel()
        await line.idle()
        assert closed == [True]

    run(Endless, scenario)


def test_unknown_methods_and_unsendable_results(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(line: Line) -> None:
        with pytest.raises(MethodNotFoundError, match="'nothing'"):
            await line.python("nothing").value()
        with pytest.raises(CodeError, match="lock"):
            await line.python("lock").value()

    run(Model, scenario)
    assert [r.levelname for r in caplog.records] == ["WARNING", "WARNING"]


class OddError(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a}/{b}")
        self.a = a

    def __reduce__(self) -> Any:
        return OddError, (self.a, 0)


@pytest.mark.parametrize("method", ["fail", "fail_sync"])
def test_errors_arrive_as_themselves_with_the_users_part_of_the_traceback(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(line: Line) -> None:
        with pytest.raises(OddError, match="1/0") as caught:
            await line.python(method, OddError, 1, 2).value()
        cause = caught.value.__cause__
        assert isinstance(cause, RemoteTraceback)
        assert f"in {method}" in cause.text
        assert "in _run_python" not in cause.text and "replica/threads.py" not in cause.text
        for kind in (SystemExit, GeneratorExit, StopAsyncIteration, KeyError):
            with pytest.raises((kind, RuntimeError, RemoteError)):  # what is no Exception comes as RemoteError
                await line.python(method, kind, "x").value()
        with pytest.raises(BackPressureError):
            await line.python(method, BackPressureError, "full").value()
        assert await line.python("add", 1).value() == 2  # the replica lives on

    run(Model, scenario)
    first = caplog.records[0]
    assert (first.name, first.levelname) == ("skate.replica", "ERROR")
    assert "request rid-1 to app/Dep failed" in first.getMessage()
    assert sum("OddError: 1/2" in r.getMessage() for r in caplog.records) == 1


# -- threads and order --------------------------------------------------------------------------


@pytest.mark.parametrize("max_threads", [1, 3])
def test_def_handlers_run_in_order_and_never_more_than_allowed(max_threads: int) -> None:
    order: list[int] = []
    most = [0, 0]
    lock = threading.Lock()

    def handler(n: int) -> int:
        with lock:
            order.append(n)
            most[0] += 1
            most[1] = max(most)
        time.sleep(0.002)
        with lock:
            most[0] -= 1
        return n

    async def scenario(line: Line) -> None:
        asked = [line.python("__call__", n) for n in range(12)]
        assert [await a.value() for a in asked] == list(range(12))

    run(handler, scenario, max_threads=max_threads)
    assert most[1] <= max_threads
    if max_threads == 1:
        assert order == list(range(12))


def test_async_handlers_go_on_beside_a_blocking_one() -> None:
    gate = threading.Event()

    class Both:
        def block(self) -> str:
            gate.wait(5)
            return "done"

        async def quick(self) -> str:
            return "quick"

    async def scenario(line: Line) -> None:
        slow = line.python("block")
        await until(lambda: slow.started)
        assert await line.python("quick").value() == "quick"
        gate.set()
        assert await slow.value() == "done"

    run(Both, scenario)


# -- context, deadlines, cancellation -----------------------------------------------------------


def _context() -> Any:
    request, replica = context.request.get(), context.replica.get()
    assert request is not None and replica is not None
    return [request.request_id, request.app, request.deployment, request.route, request.deadline, replica.replica_id]


class Contexts:
    async def __call__(self) -> Any:
        return _context()

    def sync(self) -> Any:
        return _context()

    async def stream(self) -> Any:
        yield _context()

    def stream_sync(self) -> Any:
        yield _context()


def test_every_call_knows_its_request_and_its_replica() -> None:
    async def scenario(line: Line) -> None:
        want = ["rid-1", "app", "Dep", "", 102.5, "rep"]
        assert await line.python("__call__", timeout_s=2.5).value() == want
        assert await line.python("sync", timeout_s=2.5).value() == want
        assert await line.python("stream", stream=True, timeout_s=2.5).items() == [want]
        assert await line.python("stream_sync", stream=True, timeout_s=2.5).items() == [want]
        assert await line.python("sync").value() == [*want[:4], None, "rep"]
        assert b'"/api"' in await line.http("/api", root_path="/api").body()
        assert context.request.get() is None

    async def main() -> None:
        context.replica.set(ReplicaContext("app", "Dep", "rep"))
        async with line_to(Contexts, clock=ManualClock(100.0)) as line:
            await scenario(line)

    asyncio.run(main())


def test_work_whose_time_is_over_before_it_begins_is_dropped() -> None:
    gate, ran = threading.Event(), []
    clock = ManualClock(10.0)

    class Slow:
        def block(self) -> None:
            gate.wait(5)

        def sync(self) -> None:
            ran.append("sync")

        async def quick(self) -> None:
            ran.append("async")

        def __call__(self) -> None:
            ran.append("http")

    async def scenario(line: Line) -> None:
        for late in (line.python("quick", timeout_s=0.0), line.python("sync", timeout_s=-1.0)):
            with pytest.raises(CallTimeoutError, match="rid-1 ran out of time before 'Dep' began"):
                await late.value()
        slow, queued, http = line.python("block"), line.python("sync", timeout_s=1.0), line.http(timeout_s=1.0)
        await until(lambda: http.started)
        clock.advance(1.5)
        gate.set()
        await slow.value()
        for late in (queued, http):
            with pytest.raises(CallTimeoutError):
                await late.value()
        assert ran == []

    run(Slow, scenario, clock=clock)


class Child:
    def __init__(self) -> None:
        self.cancelled: list[str] = []

    def cancel(self, reason: str, cause: str) -> None:
        self.cancelled.append(reason)


def test_cancelling_reaches_the_handler_and_the_calls_under_it() -> None:
    seen: list[Any] = []
    child = Child()

    class Slow:
        async def wait(self) -> None:
            request = context.request.get()
            assert request is not None
            request.children.add(child)
            seen.append("in")
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                seen.append(("cancelled", request.cancel_reason))
                raise

        async def stubborn(self) -> str:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                await asyncio.sleep(0.001)
                seen.append("cleaned")
            return "whatever"

    async def scenario(line: Line) -> None:
        asked = line.python("wait")
        await until(lambda: seen)
        asked.cancel("changed my mind")
        await line.idle()
        assert seen == ["in", ("cancelled", "changed my mind")]
        assert child.cancelled == ["changed my mind"]
        asked = line.python("stubborn")
        await until(lambda: asked.started)
        asked.cancel()
        await line.idle()
        assert seen[-1] == "cleaned" and line.done == 2

    run(Slow, scenario)


def test_a_lost_connection_cancels_all_its_calls() -> None:
    seen: list[str] = []

    class Slow:
        async def __call__(self) -> None:
            try:
                await asyncio.sleep(60)
            finally:
                seen.append("out")

    async def scenario(line: Line) -> None:
        asked = [line.python("__call__") for _ in range(3)]
        await until(lambda: all(a.started for a in asked))
        await asyncio.sleep(0)
        line.peer.close()
        await line.idle()
        assert seen == ["out"] * 3 and line.done == 3

    run(Slow, scenario)


def test_what_is_cancelled_before_it_began_never_begins() -> None:
    gate, began, ran = threading.Event(), threading.Event(), []

    class Slow:
        def block(self) -> None:
            began.set()
            gate.wait(5)
            ran.append("block")

        def sync(self) -> None:
            ran.append("sync")

        async def quick(self) -> None:
            ran.append("async")

    async def scenario(line: Line) -> None:
        line.python("quick").cancel()  # call and cancel arrive together
        slow, queued = line.python("block"), line.python("sync")
        await until(lambda: queued.started and began.is_set())
        queued.cancel()
        await until(lambda: line.invoker.ongoing == 1)
        slow.cancel()
        await asyncio.sleep(0.01)
        assert line.invoker.ongoing == 1  # its code runs on, so its slot is not free
        gate.set()
        await line.idle()
        assert ran == ["block"] and line.done == 3

    run(Slow, scenario)


def test_a_handler_that_raises_cancelled_error_itself_ends_its_call() -> None:
    class Odd:
        async def __call__(self) -> None:
            raise asyncio.CancelledError

    async def scenario(line: Line) -> None:
        with pytest.raises(RequestCancelledError, match="nobody had cancelled"):
            await line.python("__call__").value()

    run(Odd, scenario)


# -- plain HTTP ---------------------------------------------------------------------------------


@pytest.mark.parametrize("returned", ["str", None, b"x", {"a": 1}], ids=str)
@pytest.mark.parametrize("kind", ["async", "sync"])
def test_http_answers_of_plain_handlers(returned: Any, kind: str) -> None:
    async def handle(request: Request) -> Any:
        return returned

    def handle_sync(request: Request) -> Any:
        return returned

    async def scenario(line: Line) -> None:
        asked = line.http("/a", "GET", b"body of a GET")
        body = {"str": b"str", "None": b"", "b'x'": b"x"}.get(str(returned), b'{"a":1}')
        assert await asked.body() == body and asked.frames == 1
        assert asked.header("content-length") == str(len(body))

    run(handle if kind == "async" else handle_sync, scenario)


def test_a_target_without_parameters_is_called_with_nothing() -> None:
    async def scenario(line: Line) -> None:
        assert await line.http().body() == b"1"

    run(lambda: 1, scenario)

    class Quiet:
        async def __call__(self) -> int:
            return 1

    run(Quiet, scenario)


@pytest.mark.parametrize("kind", ["async", "sync", "returned", "returned async"])
def test_http_generators_stream(kind: str) -> None:
    gate = threading.Event()

    async def numbers(request: Request) -> Any:
        yield "1"
        await asyncio.to_thread(gate.wait, 5)
        yield "2"

    def numbers_sync(request: Request) -> Any:
        yield "1"
        gate.wait(5)
        yield "2"

    async def returned(request: Request) -> Any:
        return numbers_sync(request)

    def returned_async(request: Request) -> Any:
        return numbers(request)

    async def scenario(line: Line) -> None:
        asked = line.http()
        await until(lambda: asked.chunks)
        assert asked.header("content-type") == "text/plain; charset=utf-8" and asked.chunks == [b"1"]
        gate.set()
        assert await asked.body() == b"12"

    which = {"async": numbers, "sync": numbers_sync, "returned": returned, "returned async": returned_async}
    run(which[kind], scenario)


def test_http_streams_of_values_are_lines_and_empty_ones_are_empty() -> None:
    def values(request: Request) -> Any:
        yield from ({"n": n} for n in range(int(request.query_params["n"])))

    async def scenario(line: Line) -> None:
        asked = line.http(query=b"n=2")
        assert await asked.body() == b'{"n":0}\n{"n":1}\n'
        assert asked.header("content-type") == "application/x-ndjson"
        asked = line.http(query=b"n=0")
        assert await asked.body() == b"" and asked.head is not None and asked.head.status == 200
        failing = line.http(query=b"n=x")
        with pytest.raises(ValueError, match="invalid literal"):
            await failing.body()
        assert failing.head is None  # an error before the first item is an error, not a broken answer

    run(values, scenario)


def test_responses_pass_through_with_all_that_belongs_to_them(tmp_path: Any) -> None:
    file = tmp_path / "file.txt"
    file.write_bytes(b"content of the file")
    ran: list[str] = []
    gate = asyncio.Event()

    async def later() -> None:
        await gate.wait()
        ran.append("later")
        raise ValueError("too late to matter")

    async def chunks() -> Any:
        yield "1"
        yield b"2"
        yield "3"

    class Many:
        async def __call__(self, request: Request) -> Any:
            if request.url.path == "/stream":
                return StreamingResponse(chunks(), 418, media_type="text/plain")
            if request.url.path == "/sync-stream":
                return StreamingResponse(iter(["a", "b"]))
            if request.url.path == "/file":
                return FileResponse(file)
            response = PlainTextResponse("made", 201, {"x-a": "b"}, background=BackgroundTask(later))
            response.set_cookie("c", "d")
            return response

    async def scenario(line: Line) -> None:
        asked = line.http("/")
        assert await asked.body() == b"made" and asked.frames == 1
        assert asked.head is not None and asked.head.status == 201
        assert asked.header("x-a") == "b" and "c=d" in (asked.header("set-cookie") or "")
        assert not ran
        gate.set()
        await line.idle()
        assert ran == ["later"]
        asked = line.http("/stream")
        assert await asked.body() == b"123"
        assert asked.head is not None and asked.head.status == 418
        assert await line.http("/sync-stream").body() == b"ab"
        assert await line.http("/file").body() == b"content of the file"
        part = line.http("/file", headers=[(b"range", b"bytes=0-6")])
        assert await part.body() == b"content"
        assert part.head is not None and part.head.status == 206

    run(Many, scenario)


def test_what_cannot_be_written_as_json_is_an_error_of_the_handler() -> None:
    async def scenario(line: Line) -> None:
        with pytest.raises(TypeError, match="cannot be written as JSON"):
            await line.http().body()

    run(lambda: [object()], scenario)


def test_a_class_without_call_over_http() -> None:
    class Quiet:
        def exists(self) -> None: ...

    async def scenario(line: Line) -> None:
        with pytest.raises(MethodNotFoundError, match=r"\['exists'\]"):
            await line.http().body()

    run(Quiet, scenario)


def test_a_handler_can_ask_whether_its_client_is_still_there() -> None:
    seen: list[bool] = []

    async def handler(request: Request) -> None:
        seen.append(await request.is_disconnected())
        try:
            await asyncio.sleep(60)
        finally:
            seen.append(await request.is_disconnected())

    async def scenario(line: Line) -> None:
        asked = line.http()
        await until(lambda: seen)
        asked.cancel()
        await line.idle()
        assert seen == [False, True]

    run(handler, scenario)


# -- the end ------------------------------------------------------------------------------------


def test_closing_lets_calls_finish_refuses_new_ones_and_cancels_the_late() -> None:
    gate = asyncio.Event()
    seen: list[str] = []

    class Slow:
        async def gated(self) -> str:
            await gate.wait()
            return "finished"

        async def never(self) -> None:
            try:
                await asyncio.sleep(600)
            finally:
                seen.append("cleaned up")

    clock = ManualClock()

    async def scenario(line: Line) -> None:
        good, late = line.python("gated"), line.python("never")
        await until(lambda: late.started)
        closing = asyncio.create_task(line.invoker.close(5.0))
        await asyncio.sleep(0)
        refused = await line.python("gated").end()
        assert refused.refused
        gate.set()
        assert await good.value() == "finished"
        assert not closing.done()
        await until(lambda: clock._sleepers)
        clock.advance(5.0)
        with pytest.raises(ReplicaDiedError, match="grace period of 5 s is over"):
            await late.value()
        await closing
        assert seen == ["cleaned up"] and line.done == 3

    run(Slow, scenario, clock=clock)


def test_closing_an_idle_invoker_is_immediate_and_a_hanging_thread_does_not_stop_it() -> None:
    gate = threading.Event()

    def hang() -> None:
        gate.wait(5)

    clock = ManualClock()

    async def main() -> None:
        async with line_to(Model) as line:
            await line.invoker.close(1000.0)
        async with line_to(hang, clock=clock) as line:
            asked = line.python("__call__")
            await until(lambda: asked.started)
            await asyncio.sleep(0)
            closing = asyncio.create_task(line.invoker.close(1.0))
            await until(lambda: clock._sleepers)
            clock.advance(1.0)
            with pytest.raises(ReplicaDiedError):
                await asked.value()
            await until(lambda: clock._sleepers)
            clock.advance(1.0)
            await closing
            gate.set()
            await line.idle()

    asyncio.run(main())


# -- odd ends -----------------------------------------------------------------------------------


class Unspeakable(Exception):
    @property
    def __notes__(self) -> list[str]:
        raise ValueError("not even this")

    def __str__(self) -> str:
        raise ValueError("no words")


class Odd:
    def __init__(self) -> None:
        self.ended: list[str] = []

    async def surrogate(self) -> None:
        raise ValueError("cannot read \udcff")

    async def unspeakable(self) -> None:
        raise Unspeakable

    async def exit(self) -> None:
        raise SystemExit(3)

    def exit_sync(self) -> None:
        raise SystemExit(3)

    async def group(self) -> None:
        raise BaseExceptionGroup("g", [KeyboardInterrupt()])

    def stop_sync(self) -> None:
        raise StopIteration

    async def stubborn(self) -> Any:
        """Swallows its cancellation and goes on."""
        try:
            while True:
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError:
                    self.ended.append("swallowed")
                yield 1
        finally:
            self.ended.append("closed")


@pytest.mark.parametrize("method", ["surrogate", "unspeakable", "exit", "exit_sync", "group", "stop_sync"])
def test_every_exception_ends_its_call_and_the_replica_lives_on(method: str) -> None:
    async def scenario(line: Line) -> None:
        for _ in range(2):
            with pytest.raises(Exception) as raised:
                await line.python(method).value()
            assert not isinstance(raised.value, TimeoutError)

    run(Odd, scenario)


def test_a_generator_that_swallows_its_cancellation_is_closed() -> None:
    async def scenario(line: Line) -> None:
        asked = line.python("stubborn", stream=True)
        await until(lambda: asked.chunks)
        asked.cancel()
        await line.idle()
        assert line.target.instance.ended[-1] == "closed"

    run(Odd, scenario)


def test_a_call_that_has_ended_keeps_nothing_in_a_circle() -> None:
    """Else large bodies would stay until the next full collection."""

    async def scenario(line: Line) -> None:
        seen: list[weakref.ref[Any]] = []
        run_one = line.invoker.run

        def noting(exchange: Any, done: Any) -> None:
            run_one(exchange, done)
            (invocation,) = line.invoker._running
            seen.append(weakref.ref(invocation.task))

        line.invoker.run = noting  # type: ignore[method-assign]
        await line.python("add", 1).value()
        await line.idle()
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                await line.python("add", 1).value()
                await line.idle()
            await until(lambda: [ref() for ref in seen].count(None) >= 5)
        finally:
            gc.enable()

    run(Model, scenario)
