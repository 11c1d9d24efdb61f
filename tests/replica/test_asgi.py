from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from tests.replica.line import Line, line_to, until


class View:
    def __init__(self) -> None: ...
    async def plain(self, x: int) -> int:
        return x


def serve(app: Any, scenario: Callable[[Line], Coroutine[Any, Any, None]], state: Any = None) -> None:
    async def main() -> None:
        async with line_to(View, asgi=app, state=state) as line:
            await scenario(line)
            await line.idle()

    asyncio.run(main())


def starlette(*routes: tuple[str, Any], **more: Any) -> Starlette:
    return Starlette(routes=[Route(path, endpoint, methods=["GET", "POST"]) for path, endpoint in routes], **more)


def test_a_whole_answer_is_one_frame() -> None:
    async def hello(request: Request) -> Response:
        return JSONResponse({"body": (await request.body()).decode(), "root": request.scope["root_path"]}, 201)

    async def scenario(line: Line) -> None:
        got = line.http("/api/hello", "POST", b"abc", root_path="/api")
        assert await got.body() == b'{"body":"abc","root":"/api"}'
        assert got.head is not None and got.head.status == 201 and got.frames == 1
        assert got.header("content-type") == "application/json" and got.header("content-length") == "28"
        missing = line.http("/api/nothing", root_path="/api")
        assert await missing.body() == b"Not Found"
        assert missing.head is not None and missing.head.status == 404
        pieces = line.http("/api/hello", "POST", b"a", root_path="/api", complete=False)
        pieces.send(b"b")
        pieces.send(b"c", last=True)
        assert await pieces.body() == b'{"body":"abc","root":"/api"}'

    serve(starlette(("/hello", hello)), scenario)


def test_no_content_is_one_frame_too() -> None:
    async def nothing(request: Request) -> Response:
        return Response(status_code=204)

    async def scenario(line: Line) -> None:
        got = line.http("/")
        assert await got.body() == b""
        assert got.head is not None and got.head.status == 204 and got.frames == 1

    serve(starlette(("/", nothing)), scenario)


def test_a_stream_leaves_before_it_is_finished_and_its_head_before_it_begins() -> None:
    gates = [asyncio.Event() for _ in range(3)]

    async def stream(request: Request) -> Response:
        async def chunks() -> Any:
            for gate, chunk in zip(gates, ("a", "b", "c"), strict=True):
                await gate.wait()
                yield chunk

        return StreamingResponse(chunks(), 418, media_type="text/x")

    async def scenario(line: Line) -> None:
        got = line.http("/")
        await until(lambda: got.head)
        assert got.head is not None and got.head.status == 418 and got.chunks == []
        for n, gate in enumerate(gates, 1):
            gate.set()
            await until(lambda n=n: len(got.chunks) == n)
        assert await got.body() == b"abc"

    serve(starlette(("/", stream)), scenario)


def test_middleware_that_wraps_everything() -> None:
    class Header(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            response = await call_next(request)
            response.headers["x-seen"] = request.url.path
            return response  # type: ignore[no-any-return]

    async def hello(request: Request) -> Response:
        return PlainTextResponse((await request.body()).decode())

    async def scenario(line: Line) -> None:
        got = line.http("/x", "POST", b"in")
        assert await got.body() == b"in" and got.header("x-seen") == "/x"

    serve(starlette(("/x", hello), middleware=[Middleware(Header)]), scenario)


def test_lifespan_state_is_copied_for_each_request() -> None:
    async def hello(request: Request) -> Response:
        request.state.mine = 1
        return JSONResponse([request.state.model, sorted(request.scope["state"])])

    state = {"model": "m"}

    async def scenario(line: Line) -> None:
        for _ in range(2):
            assert await line.http("/").body() == b'["m",["mine","model"]]'
        assert state == {"model": "m"}

    serve(starlette(("/", hello)), scenario, state)


def test_an_error_of_the_application_names_itself(caplog: pytest.LogCaptureFixture) -> None:
    async def bad(request: Request) -> Response:
        raise ZeroDivisionError("my fault")

    async def scenario(line: Line) -> None:
        got = line.http("/")
        with pytest.raises(ZeroDivisionError, match="my fault"):
            await got.body()
        assert got.head is None

    serve(starlette(("/", bad)), scenario)
    assert [r.levelname for r in caplog.records if r.name == "skate.replica"] == ["ERROR"]
    assert "rid-1" in caplog.text and caplog.text.count("ZeroDivisionError: my fault") == 1


def test_a_handler_for_all_errors_has_its_say(caplog: pytest.LogCaptureFixture) -> None:
    async def bad(request: Request) -> Response:
        raise ZeroDivisionError("my fault")

    async def say(request: Request, error: Exception) -> Response:
        return PlainTextResponse(f"sorry, {error}", 500)

    async def own(request: Request) -> Response:
        return PlainTextResponse("Internal Server Error", 500)

    async def scenario(line: Line) -> None:
        assert await line.http("/").body() == b"sorry, my fault"
        assert await line.http("/own").body() == b"Internal Server Error"

    serve(starlette(("/", bad), ("/own", own), exception_handlers={Exception: say}), scenario)
    assert "ZeroDivisionError: my fault" in caplog.text


def test_an_error_in_the_middle_cuts_the_answer() -> None:
    async def stream(request: Request) -> Response:
        async def chunks() -> Any:
            yield b"a"
            raise RuntimeError("half way")

        return StreamingResponse(chunks())

    async def scenario(line: Line) -> None:
        got = line.http("/")
        with pytest.raises(RuntimeError, match="half way"):
            await got.body()
        assert got.head is not None and got.head.status == 200

    serve(starlette(("/", stream)), scenario)


def test_a_client_that_goes_away_cancels_the_application() -> None:
    seen: list[str] = []

    async def slow(request: Request) -> Response:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        return Response()

    async def scenario(line: Line) -> None:
        got = line.http("/")
        await until(lambda: got.started)
        await asyncio.sleep(0)
        got.cancel()
        await line.idle()
        assert seen == ["cancelled"] and line.done == 1

    serve(starlette(("/", slow)), scenario)


def test_whoever_listens_for_the_disconnect_hears_of_it() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def listen() -> None:
            while (message := await receive())["type"] != "http.disconnect":
                seen.append(message)
            seen.append(message)

        listener = asyncio.ensure_future(listen())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})
        await listener

    async def scenario(line: Line) -> None:
        assert await line.http("/", "POST", b"in").body() == b"ok"
        await line.idle()
        assert seen == [{"type": "http.request", "body": b"in", "more_body": False}, {"type": "http.disconnect"}]

    serve(app, scenario)


def test_background_tasks_run_after_the_answer_and_hold_the_slot() -> None:
    gate, ran = asyncio.Event(), []

    async def later() -> None:
        await gate.wait()
        ran.append(1)

    async def hello(request: Request) -> Response:
        return PlainTextResponse("ok", background=BackgroundTask(later))

    async def scenario(line: Line) -> None:
        assert await line.http("/").body() == b"ok"
        assert line.invoker.ongoing == 1 and not ran
        gate.set()
        await line.idle()
        assert ran == [1]

    serve(starlette(("/", hello)), scenario)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "without an answer"),
        ([{"type": "http.response.start", "status": 200, "headers": []}], "in the middle"),
        ([{"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]}], "without an answer"),
        ([{"type": "http.response.body", "body": b""}], "out of turn"),
        ([{"type": "http.response.start", "status": 200, "headers": []}] * 2, "out of turn"),
    ],
)
def test_an_application_that_breaks_the_protocol(messages: list[Any], words: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    async def scenario(line: Line) -> None:
        with pytest.raises(RuntimeError, match=words):
            await line.http("/").body()

    serve(app, scenario)


def test_methods_stay_callable_by_handle_beside_the_application() -> None:
    async def scenario(line: Line) -> None:
        assert await line.python("plain", 41).value() == 41

    serve(starlette(), scenario)


# -- WebSocket ----------------------------------------------------------------------------------


async def echo(websocket: WebSocket) -> None:
    await websocket.accept(websocket.scope["subprotocols"][0], [(b"x-a", b"1")])
    async for text in websocket.iter_text():
        if text == "bytes":
            await websocket.send_bytes(b"\x00")
        elif text == "close":
            await websocket.close(4001, "enough")
            return
        elif text == "raise":
            raise ValueError("inside")
        else:
            await websocket.send_text(f"{text}!")


async def deaf(websocket: WebSocket) -> None:
    await websocket.accept()
    while True:
        await websocket.receive_text()


async def refuse(websocket: WebSocket) -> None:
    await websocket.close(4003)


async def fall(websocket: WebSocket) -> None:
    raise ValueError("before")


async def leave(websocket: WebSocket) -> None:
    await websocket.accept()


SOCKETS = Starlette(
    routes=[WebSocketRoute(f"/{e.__name__}", e) for e in (echo, deaf, refuse, fall, leave)],
)


def test_a_websocket_talks_and_is_closed_by_the_application() -> None:
    async def scenario(line: Line) -> None:
        got = line.websocket("/echo", ["chat", "other"])
        await until(lambda: got.chunks)
        assert got.messages[0] == {"type": "websocket.accept", "subprotocol": "chat", "headers": [[b"x-a", b"1"]]}
        got.say("websocket.receive", text="hi")
        await until(lambda: len(got.chunks) == 2)
        got.say("websocket.receive", text="bytes")
        got.say("websocket.receive", text="close")
        await got.end()
        assert [m.get("text") or m.get("bytes") for m in got.messages[1:3]] == ["hi!", b"\x00"]
        assert got.messages[3] == {"type": "websocket.close", "code": 4001, "reason": "enough"}
        assert got.error is None

    serve(SOCKETS, scenario)


@pytest.mark.parametrize("path", ["/echo", "/deaf"])
def test_a_websocket_whose_client_closes(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(line: Line) -> None:
        for orderly in (True, False):
            got = line.websocket(path, ["chat"])
            await until(lambda got=got: got.chunks)
            assert line.invoker.ongoing == 1  # a connection is a call as long as it lasts
            if orderly:
                got.say("websocket.disconnect", code=1001, reason="bye")
            got.send(b"", last=True)
            await got.end()
            assert got.error is None and len(got.chunks) == 1
            await line.idle()

    serve(SOCKETS, scenario)
    assert not caplog.records


def test_a_websocket_whose_line_breaks_cancels_the_handler() -> None:
    async def scenario(line: Line) -> None:
        got = line.websocket("/deaf")
        await until(lambda: got.chunks)
        got.cancel()
        await line.idle()

    serve(SOCKETS, scenario)


def test_a_websocket_that_is_not_accepted_fails_or_is_left() -> None:
    async def scenario(line: Line) -> None:
        refused = await line.websocket("/refuse").end()
        assert refused.messages == [{"type": "websocket.close", "code": 4003, "reason": ""}]
        nowhere = await line.websocket("/nowhere").end()
        assert [m["type"] for m in nowhere.messages] == ["websocket.close"]
        fallen = await line.websocket("/fall").end()
        assert isinstance(fallen.error, ValueError) and not fallen.chunks
        left = await line.websocket("/leave").end()
        assert left.messages[1] == {"type": "websocket.close", "code": 1000, "reason": ""}
        broken = line.websocket("/echo", ["chat"])
        broken.say("websocket.receive", text="raise")
        await broken.end()
        assert isinstance(broken.error, ValueError)

    serve(SOCKETS, scenario)


def test_a_websocket_for_a_deployment_without_application() -> None:
    async def main() -> None:
        async with line_to(View) as line:
            got = await line.websocket("/").end()
            assert "no WebSocket route" in str(got.error)

    asyncio.run(main())
