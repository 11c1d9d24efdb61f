"""Answers that come piece by piece: the first one is there before the last one is made."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import StreamingResponse

from skate import serve
from tests.e2e.conftest import Deploy
from tests.e2e.notes import Gate, Notes
from tests.e2e.world import Instance, client, until

PRELOAD = ("fastapi",)
MakeGate = Callable[[object], Gate]


def sync_pieces(gate: Gate) -> Iterator[str]:
    yield "first"
    gate.wait()
    yield "second"


async def async_pieces(gate: Gate) -> AsyncIterator[str]:
    yield "first"
    await gate.passed()
    yield "second"


def applications(gate: Gate) -> dict[str, Any]:
    @serve.deployment
    class SyncGenerator:
        def __call__(self, request: Request) -> Any:
            yield "first"
            gate.wait()
            yield "second"

    @serve.deployment
    class AsyncGenerator:
        async def __call__(self, request: Request) -> Any:
            yield "first"
            await gate.passed()
            yield "second"

    @serve.deployment
    async def returns_async_generator(request: Request) -> Any:
        return async_pieces(gate)

    @serve.deployment
    def returns_sync_generator(request: Request) -> Any:
        return sync_pieces(gate)

    @serve.deployment
    class SyncResponse:
        def __call__(self, request: Request) -> Any:
            return StreamingResponse(sync_pieces(gate), status_code=202, headers={"x-own": "1"})

    @serve.deployment
    class AsyncResponse:
        async def __call__(self, request: Request) -> Any:
            return StreamingResponse(async_pieces(gate), media_type="text/event-stream")

    app = FastAPI()

    @serve.deployment
    @serve.ingress(app)
    class Fast:
        @app.get("/")
        async def stream(self) -> StreamingResponse:
            return StreamingResponse(async_pieces(gate))

    @serve.deployment
    class Source:
        async def __call__(self) -> Any:
            yield "first"
            await gate.passed()
            yield "second"

    @serve.deployment
    class Nested:
        def __init__(self, source: Any) -> None:
            self.source = source.options(stream=True)

        async def __call__(self, request: Request) -> Any:
            async for item in self.source.remote():
                yield item

    nodes = [
        SyncGenerator,
        AsyncGenerator,
        returns_async_generator,
        returns_sync_generator,
        SyncResponse,
        AsyncResponse,
    ]
    bound = {node.name: node.bind() for node in nodes}
    return bound | {"Fast": Fast.bind(), "Nested": Nested.bind(Source.bind())}


KINDS = sorted(applications(Gate.__new__(Gate)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_piece_comes_before_the_last_is_made(
    deploy: Deploy, instance: Instance, gate: Gate, kind: str
) -> None:
    deploy(applications(gate)[kind])
    with client(instance.url) as http, http.stream("GET", "/a1/") as answer:
        pieces = answer.iter_text()
        assert next(pieces) == "first"
        gate.open()
        assert "".join(pieces) == "second"
        assert answer.status_code == (202 if kind == "SyncResponse" else 200)
        if kind == "AsyncResponse":
            assert answer.headers["content-type"].startswith("text/event-stream")
        assert "x-request-id" in answer.headers


def test_items_that_are_no_text_are_lines_of_json(deploy: Deploy, http: httpx.Client) -> None:
    @serve.deployment
    class Lines:
        def __call__(self, request: Request) -> Any:
            yield {"n": 1}
            yield [2]

    deploy(Lines.bind())
    answer = http.get("/a1")
    assert answer.text == '{"n":1}\n[2]\n'
    assert answer.headers["content-type"] == "application/x-ndjson"


def test_a_long_stream_is_whole_and_in_order(deploy: Deploy, http: httpx.Client) -> None:
    @serve.deployment
    class Long:
        def __call__(self, request: Request) -> Any:
            for n in range(5000):
                yield f"{n},"

    deploy(Long.bind())
    assert http.get("/a1").text == "".join(f"{n}," for n in range(5000))


def test_an_error_before_the_first_piece_is_500_and_later_cuts(deploy: Deploy, instance: Instance, gate: Gate) -> None:
    @serve.deployment
    class Breaks:
        async def __call__(self, request: Request) -> Any:
            if request.query_params["when"] == "early":
                raise ValueError("early")
            yield "first"
            await gate.passed()
            raise ValueError("late")

    deploy(Breaks.bind())
    with client(instance.url) as http:
        early = http.get("/a1?when=early")
        assert early.status_code == 500 and "ValueError" in early.text
        with http.stream("GET", "/a1?when=late") as late:
            pieces = late.iter_text()
            assert (late.status_code, next(pieces)) == (200, "first")
            gate.open()
            with pytest.raises(httpx.RemoteProtocolError):
                next(pieces)
        assert http.get("/a1?when=early").status_code == 500


def test_a_slow_client_holds_the_generator_back(deploy: Deploy, instance: Instance, notes: Notes) -> None:
    piece = b"x" * 100_000

    @serve.deployment
    class Flood:
        async def __call__(self, request: Request) -> Any:
            for n in range(1000):  # 100 MB
                notes.add(n)
                yield piece

    deploy(Flood.bind())
    with client(instance.url) as http, http.stream("GET", "/a1") as answer:
        pieces = answer.iter_raw()
        next(pieces)
        until(lambda: standing(notes))
        assert len(notes.read()) < 300  # buffers of sockets, and about a megabyte of ours on each line
        assert sum(len(data) for data in pieces) > 90_000_000


def standing(notes: Notes) -> bool:
    """Whether nothing was added between two looks; a look takes longer than a piece that is not held back."""
    before = len(notes.read())
    return all(len(notes.read()) == before for _ in range(20))


def test_upload_and_answer_at_once(deploy: Deploy, instance: Instance, gates: MakeGate) -> None:
    @serve.deployment
    class Upper:
        async def __call__(self, request: Request) -> Any:
            async for chunk in request.stream():
                if chunk:
                    yield chunk.upper()

    deploy(Upper.bind())
    with client(instance.url) as http:
        answer = http.post("/a1", content=iter([b"abc", b"def" * 50_000, b"ghi"]))
        assert answer.content == b"ABC" + b"DEF" * 50_000 + b"GHI"
