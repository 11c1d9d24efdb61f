from __future__ import annotations

import asyncio
import copy
import inspect
import json
import pickle
import timeit
from typing import Any

import msgspec
import pytest
import starlette.requests

from skate.authoring.code import dumps, loads
from skate.core.errors import CodeError
from skate.dataplane.handle import _resolved
from skate.dataplane.replica.request import Request, needs_body
from skate.dataplane.wire.head import HttpHead, encode_http
from tests.replica.line import line_to

JSON = json.dumps({"name": "Corey", "deep": {"list": [1, 2, 3]}}).encode()


class Caller:
    """The caller's side of a call, by hand."""

    def __init__(self, body: bytes = b"", *rest: bytes, whole: bool | None = None) -> None:
        self.body = body
        self.whole = not rest if whole is None else whole
        self.cancel_reason: str | None = None
        self.complete = self.whole
        self._rest = list(rest)
        self.over = asyncio.Event()

    async def receive(self) -> bytes | None:
        await asyncio.sleep(0)
        return self._rest.pop(0) if self._rest else None

    async def gone(self) -> None:
        await self.over.wait()


def head(method: str = "POST", path: str = "/api/items", headers: Any = (), query: bytes = b"a=b&c=d") -> msgspec.Raw:
    all_headers = [(b"host", b"skate.test"), (b"cookie", b"k=v"), *headers]
    client, server = ("10.0.0.1", 7), ("h", 80)
    return encode_http(HttpHead(method, "http", path, path.encode(), query, "/api", all_headers, client, server))


def request(*chunks: bytes, **more: Any) -> Request:
    return Request.of(head(**more), Caller(*(chunks or (b"",))))


def test_it_is_a_starlette_request_that_shows_the_full_path() -> None:
    r = request(JSON)
    assert isinstance(r, starlette.requests.Request)
    assert r.method == "POST"
    assert str(r.url) == "http://skate.test/api/items?a=b&c=d"
    assert r.url.path == "/api/items" and r.scope["path"] == "/api/items" and r.scope["root_path"] == "/api"
    assert dict(r.query_params) == {"a": "b", "c": "d"}
    assert r.headers["host"] == "skate.test" and r.cookies == {"k": "v"}
    assert r.client == ("10.0.0.1", 7)
    assert str(r.base_url) == "http://skate.test/api/"
    r.state.user = "me"
    assert r.state.user == "me" and r["type"] == "http" and len(r) > 5
    assert {r: 1}[r] == 1


@pytest.mark.parametrize("chunks", [(JSON,), (JSON[:10], JSON[10:]), (b"", JSON)])
def test_json_can_be_subscripted_before_and_after_the_await(chunks: tuple[bytes, ...]) -> None:
    async def main() -> None:
        r = request(*chunks)
        assert await r.json()["name"] == "Corey"
        assert (await r.json())["name"] == "Corey"
        assert await r.json()["deep"]["list"][1] == 2
        assert await asyncio.gather(r.json(), r.json()["name"]) == [json.loads(JSON), "Corey"]
        assert await asyncio.create_task(r.json()["name"]) == "Corey"
        assert await asyncio.wait_for(r.json(), 1) == json.loads(JSON)
        lazy = r.json()
        assert await lazy == await lazy
        assert inspect.isawaitable(lazy)
        with pytest.raises(KeyError):
            await r.json()["nobody"]
        assert await r.body() == JSON

    asyncio.run(main())


def test_json_that_nobody_awaits_is_no_warning() -> None:
    request(JSON).json()["name"]


def test_bad_json_raises_when_awaited() -> None:
    with pytest.raises(json.JSONDecodeError):
        asyncio.run(_awaited(request(b"{").json()["x"]))


async def _awaited(value: Any) -> Any:
    return await value


def test_two_readers_at_once_both_get_the_whole_body() -> None:
    async def main() -> None:
        r = request(b"ab", b"cd", b"ef")
        assert await asyncio.gather(r.body(), r.body(), r.body()) == [b"abcdef"] * 3

    asyncio.run(main())


def test_the_body_streams_in_the_pieces_in_which_it_came() -> None:
    async def main() -> None:
        assert [c async for c in request(b"ab", b"cd").stream()] == [b"ab", b"cd", b""]
        whole = request(b"abcd")
        for _ in range(2):  # a body in hand streams as often as one likes
            assert b"".join([c async for c in whole.stream()]) == b"abcd"

    asyncio.run(main())


def test_a_client_that_leaves_in_the_middle_of_its_body() -> None:
    async def main() -> None:
        caller = Caller(b"half", whole=False)
        caller.cancel_reason = "gone"
        caller.over.set()
        with pytest.raises(starlette.requests.ClientDisconnect):
            await Request.of(head(), caller).body()

    asyncio.run(main())


def test_is_disconnected_asks_the_call() -> None:
    async def main() -> None:
        caller = Caller(JSON)
        r = Request.of(head(), caller)
        assert not await r.is_disconnected()
        caller.cancel_reason = "client left"
        assert await r.is_disconnected()
        assert not await Request.empty().is_disconnected()

    asyncio.run(main())


def test_forms_and_uploads() -> None:
    async def main() -> None:
        urlencoded = [(b"content-type", b"application/x-www-form-urlencoded")]
        r = request(b"a=1&b=2", headers=urlencoded)
        assert dict(await r.form()) == {"a": "1", "b": "2"}
        assert await r.body() == b"a=1&b=2"
        multipart = b'--X\r\nContent-Disposition: form-data; name="f"; filename="n"\r\n\r\nDATA\r\n--X--\r\n'
        r = request(multipart[:20], multipart[20:], headers=[(b"content-type", b"multipart/form-data; boundary=X")])
        form = await r.form()
        assert await form["f"].read() == b"DATA"  # type: ignore[union-attr]
        await r.close()
        assert r.needs_body
        with pytest.raises(CodeError, match="was read as a stream"):
            pickle.dumps(r)

    asyncio.run(main())


def test_it_travels_many_times_and_reads_the_same_everywhere() -> None:
    async def main() -> None:
        r = request(JSON[:5], JSON[5:], method="GET")
        assert needs_body(r) and r.needs_body
        with pytest.raises(CodeError, match=r"await request.body\(\)"):
            pickle.dumps(r)
        await r.body()
        for _ in range(3):
            assert not needs_body(r)
            r = loads(dumps(r))
            assert type(r) is Request
            assert await r.json()["name"] == "Corey"
            assert b"".join([c async for c in r.stream()]) == JSON
            assert r.method == "GET" and r.url.path == "/api/items" and r.query_params["a"] == "b"
            assert not await r.is_disconnected()
        assert (await copy.deepcopy(r).json())["name"] == "Corey"
        assert (await r.receive())["body"] == JSON and (await r.receive())["type"] == "http.disconnect"

    asyncio.run(main())


def test_a_whole_body_needs_no_reading_first_and_a_form_keeps_it() -> None:
    async def main() -> None:
        r = request(b"a=1", headers=[(b"content-type", b"application/x-www-form-urlencoded")])
        assert not r.needs_body
        assert (await loads(dumps(r)).form())["a"] == "1"
        await r.form()
        assert await loads(dumps(r)).body() == b"a=1"

    asyncio.run(main())


def test_requests_of_starlette_and_fastapi_travel_too() -> None:
    async def main() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": JSON, "more_body": False}

        scope = {**request().scope, "app": main, "router": lambda: 0, "path_params": {"id": 7}, "state": {"x": main}}
        r = starlette.requests.Request(scope, receive)
        assert needs_body(r)
        with pytest.raises(CodeError):
            pickle.dumps(r)
        await r.body()
        sent = loads(dumps(r))
        assert await sent.json()["name"] == "Corey" and sent.path_params == {"id": 7}
        assert "app" not in sent.scope

    asyncio.run(main())


def test_a_handle_reads_the_body_of_a_request_that_is_its_argument() -> None:
    async def main() -> None:
        for kind in (Request, starlette.requests.Request):
            r: Any = request(JSON[:5], JSON[5:])
            if kind is not Request:
                r = starlette.requests.Request(r.scope, r.receive)
            assert needs_body(r)
            assert await _resolved(r) is r and not needs_body(r)
            assert await loads(dumps(r)).json()["name"] == "Corey"

    asyncio.run(main())


def test_needs_body_is_false_for_everything_else() -> None:
    assert not needs_body(None) and not needs_body("x") and not needs_body({"_body": 1})


def test_one_made_by_hand_like_starlettes() -> None:
    async def main() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        r = Request(request().scope, receive)
        assert r.url.path == "/api/items" and await r.is_disconnected()
        with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
            r.nonsense

    asyncio.run(main())


def test_the_empty_request() -> None:
    async def main() -> None:
        r = Request.empty()
        assert (r.method, r.url.path, await r.body(), dict(r.headers)) == ("GET", "/", b"", {})
        r.scope["x"] = 1
        assert "x" not in Request.empty().scope
        assert (await loads(dumps(r)).body()) == b""

    asyncio.run(main())


def test_building_one_costs_next_to_nothing() -> None:
    h, caller = head(), Caller()
    best = min(timeit.repeat(lambda: Request.of(h, caller), number=2000, repeat=5)) / 2000
    assert best < 20e-6  # the aim is 3 us; only a fault of another order fails here


def test_a_handler_reads_what_the_wire_brings() -> None:
    async def main() -> None:
        async def handler(request: starlette.requests.Request) -> Any:
            return [await request.json()["name"], request.method, request.url.path, request.scope["root_path"]]

        async with line_to(handler) as line:
            want = b'["Corey","GET","/api/x","/api"]'
            assert await line.http("/api/x", "GET", JSON, root_path="/api").body() == want
            slow = line.http("/api/x", "GET", JSON[:4], complete=False, root_path="/api")
            slow.send(JSON[4:9])
            slow.send(JSON[9:])
            slow.send(b"", last=True)
            assert await slow.body() == want

    asyncio.run(main())
