"""HTTP with options of the instance: a limit for time and one for bodies, tracebacks shown, a root path."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from starlette.requests import Request

from skate import serve
from tests.e2e.conftest import Deploy
from tests.e2e.notes import Gate, Notes
from tests.e2e.world import Instance, calls, client, until

HTTP_OPTIONS = {"request_timeout_s": 0.5, "max_body_bytes": 100_000, "show_traceback": True, "root_path": "/api"}


def test_before_the_first_application_nothing_is_ready(http: httpx.Client) -> None:
    for path in ("/api/-/healthz", "/api/x"):
        answer = http.get(path)
        assert answer.status_code == 503, path
        assert "application" in answer.text
    assert http.get("/api/-/routes").status_code == 503


def test_a_request_that_runs_too_long_is_408(deploy: Deploy, http: httpx.Client, notes: Notes, gate: Gate) -> None:
    @serve.deployment
    class Child:
        async def __call__(self) -> None:
            try:
                notes.add("child")
                await gate.passed()
            finally:
                notes.add("child over")

    @serve.deployment
    class Parent:
        def __init__(self, child: Any) -> None:
            self.child = child

        async def __call__(self, request: Request) -> None:
            try:
                await self.child.remote()
            finally:
                notes.add("parent over")

    deploy(Parent.bind(Child.bind()))
    answer = http.get("/api/a1")
    assert answer.status_code == 408
    # the child has the same deadline: whose error comes first is a matter of microseconds
    assert re.search(r"timed out after 0\.(4[89]|5)\d* s while running", answer.text), answer.text
    assert answer.elapsed.total_seconds() < 1.5
    until(lambda: notes.has("child over") and notes.has("parent over"))
    assert calls().open == 0


def test_a_queued_request_is_408_and_never_runs(deploy: Deploy, instance: Instance, notes: Notes, gate: Gate) -> None:
    @serve.deployment(max_ongoing_requests=1)
    class Slow:
        async def __call__(self, request: Request) -> str:
            notes.add(request.query_params["n"])
            await gate.passed()
            return "done"

    deploy(Slow.bind())
    with ThreadPoolExecutor() as pool, client(instance.url) as own:
        running = pool.submit(own.get, "/api/a1?n=first", headers={"X-Request-Timeout-Seconds": "0"})
        until(lambda: notes.has("first"))
        answer = own.get("/api/a1?n=second")
        assert answer.status_code == 408
        assert "waiting" in answer.text
        gate.open()
        assert running.result().text == "done"
    assert notes.read() == ["first"]
    assert calls().timed_out >= 1


def test_a_stream_that_runs_too_long_is_cut(deploy: Deploy, instance: Instance, notes: Notes, gate: Gate) -> None:
    @serve.deployment
    class Streams:
        async def __call__(self, request: Request) -> Any:
            try:
                yield "first"
                await gate.passed()
                yield "second"
            finally:
                notes.add("over")

    deploy(Streams.bind())
    with client(instance.url) as own, own.stream("GET", "/api/a1") as answer:
        assert answer.status_code == 200
        received = []
        try:
            for piece in answer.iter_text():
                received.append(piece)
            complete = True
        except httpx.RemoteProtocolError:
            complete = False
    assert (received, complete) == (["first"], False)
    until(lambda: notes.has("over"))


def test_a_body_too_large_is_413(deploy: Deploy, http: httpx.Client, instance: Instance) -> None:
    @serve.deployment
    async def size(request: Request) -> int:
        return len(await request.body())

    deploy(size.bind())
    assert http.post("/api/a1", content=b"x" * 100_000).text == "100000"
    for content in (b"x" * 100_001, iter([b"x" * 60_000] * 2)):
        with client(instance.url) as own:
            answer = own.post("/api/a1", content=content)
        assert answer.status_code == 413
        assert "100000" in answer.text.replace(",", "").replace("_", "")
    assert http.post("/api/a1", content=b"ok").text == "2"


def test_tracebacks_are_shown_when_asked_for(deploy: Deploy, http: httpx.Client) -> None:
    @serve.deployment
    class Fails:
        def __call__(self, request: Request) -> float:
            return 1 / 0

    deploy(Fails.bind())
    answer = http.get("/api/a1")
    assert answer.status_code == 500
    assert "Traceback" in answer.text and "return 1 / 0" in answer.text and "ZeroDivisionError" in answer.text


def test_the_root_path_is_in_front_of_everything(deploy: Deploy, http: httpx.Client) -> None:
    @serve.deployment
    async def look(request: Request) -> Any:
        return [request.scope["root_path"], request.url.path]

    deploy(look.bind())
    assert http.get("/api/a1/x").json() == ["/api/a1", "/api/a1/x"]
    assert http.get("/api/-/routes").json() == {"/a1": "a1"}
