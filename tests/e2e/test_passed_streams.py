"""Streams that a deployment passes on, by returning them or item by item; small items in many to a frame."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from skate import serve
from skate.core import context
from skate.core.errors import RequestCancelledError
from tests.e2e.conftest import Deploy
from tests.e2e.notes import Gate, Notes
from tests.e2e.world import calls, until


class OnlyHere:
    """Can be unpickled only where a test allows it."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __setstate__(self, state: dict[str, Any]) -> None:
        here = context.replica_context()
        if here is not None and here.deployment == "Door":
            raise AssertionError("a stream that is only passed on was opened")
        self.__dict__.update(state)


def chain(notes: Notes, gate: Gate) -> Any:
    @serve.deployment
    class Source:
        async def numbers(self, n: int) -> Any:
            for number in range(n):
                yield number

        async def mixed(self) -> Any:
            yield 1
            yield {"a": [1, 2]}
            yield "text"
            yield b"x" * 100_000
            yield None
            yield 2.5

        async def objects(self) -> Any:
            for n in range(100):
                yield OnlyHere(n)

        async def fails(self) -> Any:
            yield 1
            raise KeyError("of the source")

        async def waits(self) -> Any:
            try:
                yield "first"
                await gate.passed()
                yield "second"
            except asyncio.CancelledError:
                notes.add("source cancelled")
                raise

        async def flood(self) -> Any:
            for n in range(2000):
                notes.add(n)
                yield b"x" * 50_000

    @serve.deployment
    class Door:
        def __init__(self, source: Any) -> None:
            self.source = source.options(stream=True)

        async def returned(self, method: str, *args: Any) -> Any:
            return self.source.options(method_name=method).remote(*args)

        def returned_sync(self, method: str, *args: Any) -> Any:
            return self.source.options(method_name=method).remote(*args)

        async def yielded(self, method: str, *args: Any) -> Any:
            async for item in self.source.options(method_name=method).remote(*args):
                yield item

        def yielded_sync(self, method: str, *args: Any) -> Any:
            yield from self.source.options(method_name=method).remote(*args)

        async def half_read(self, method: str, *args: Any) -> Any:
            stream = self.source.options(method_name=method).remote(*args)
            await anext(stream)
            return stream

        async def __call__(self, request: Request) -> Any:
            return self.source.options(method_name=request.query_params["of"]).remote()

    return Door.bind(Source.bind())


HOW = ["returned", "returned_sync", "yielded", "yielded_sync"]


@pytest.mark.parametrize("how", HOW)
def test_all_items_come_in_order(deploy: Deploy, notes: Notes, gate: Gate, how: str) -> None:
    door = deploy(chain(notes, gate)).options(stream=True, method_name=how)
    assert list(door.remote("numbers", 5000)) == list(range(5000))
    assert list(door.remote("numbers", 0)) == []
    assert list(door.remote("mixed")) == [1, {"a": [1, 2]}, "text", b"x" * 100_000, None, 2.5]


@pytest.mark.parametrize("how", ["returned", "returned_sync"])
def test_a_stream_that_is_returned_is_not_opened(deploy: Deploy, notes: Notes, gate: Gate, how: str) -> None:
    door = deploy(chain(notes, gate)).options(stream=True, method_name=how)
    assert [item.n for item in door.remote("objects")] == list(range(100))


def test_one_that_was_begun_goes_on_where_it_was(deploy: Deploy, notes: Notes, gate: Gate) -> None:
    door = deploy(chain(notes, gate)).options(stream=True, method_name="half_read")
    assert list(door.remote("numbers", 1000)) == list(range(1, 1000))


@pytest.mark.parametrize("how", HOW)
def test_errors_come_through_with_the_traceback_of_the_source(
    deploy: Deploy, notes: Notes, gate: Gate, how: str
) -> None:
    stream = deploy(chain(notes, gate)).options(stream=True, method_name=how).remote("fails")
    assert next(stream) == 1
    with pytest.raises(KeyError, match="of the source") as raised:
        next(stream)
    assert 'raise KeyError("of the source")' in str(raised.value.__cause__)


@pytest.mark.parametrize("how", HOW)
def test_the_first_item_comes_at_once_and_cancellation_goes_through(
    deploy: Deploy, notes: Notes, gate: Gate, how: str
) -> None:
    stream = deploy(chain(notes, gate)).options(stream=True, method_name=how).remote("waits")
    assert next(stream) == "first"
    stream.cancel()
    with pytest.raises(RequestCancelledError):
        next(stream)
    until(lambda: notes.has("source cancelled"))
    assert calls().open == 0


@pytest.mark.parametrize("how", HOW)
def test_a_slow_reader_holds_the_source_back(deploy: Deploy, notes: Notes, gate: Gate, how: str) -> None:
    stream = deploy(chain(notes, gate)).options(stream=True, method_name=how).remote("flood")
    next(stream)
    until(lambda: standing(notes))
    assert len(notes.read()) < 400  # 20 MB of 100
    assert sum(len(item) for item in stream) == 1999 * 50_000


def standing(notes: Notes) -> bool:
    before = len(notes.read())
    return all(len(notes.read()) == before for _ in range(50))


def test_over_http(deploy: Deploy, http: httpx.Client, notes: Notes, gate: Gate) -> None:
    deploy(chain(notes, gate))
    with http.stream("GET", "/a1?of=waits") as answer:
        pieces = answer.iter_text()
        assert next(pieces) == "first"
        gate.open()
        assert "".join(pieces) == "second"
    with pytest.raises(httpx.RemoteProtocolError):
        http.get("/a1?of=fails")
    assert http.get("/a1?of=mixed").text.startswith('1\n{"a":[1,2]}\ntext')
