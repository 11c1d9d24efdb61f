"""WebSockets through the proxy to a FastAPI ingress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import websockets
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from websockets.sync.client import ClientConnection, connect

from skate import serve
from tests.e2e.conftest import Deploy
from tests.e2e.notes import Notes
from tests.e2e.world import Instance, until

PRELOAD = ("fastapi",)


def application(notes: Notes) -> Any:
    app = FastAPI()

    @serve.deployment(max_ongoing_requests=2)
    @serve.ingress(app)
    class Talker:
        greeting = "hello"

        @app.websocket("/echo")
        async def echo(self, socket: WebSocket) -> None:
            await socket.accept(subprotocol="chat.v2" if "chat.v2" in socket.scope["subprotocols"] else None)
            await socket.send_text(f"{self.greeting} {socket.query_params.get('name', '')} {socket.url.path}")
            try:
                while True:
                    message = await socket.receive()
                    if message["type"] == "websocket.disconnect":
                        notes.add(f"left {message['code']}")
                        return
                    if message.get("text") == "close":
                        return await socket.close(4001, "as you like")
                    if message.get("text") == "fail":
                        raise ValueError("bad word")
                    if message.get("text") is not None:
                        await socket.send_text(message["text"])
                    else:
                        await socket.send_bytes(message["bytes"])
            finally:
                notes.add("over")

        @app.websocket("/refuse")
        async def refuse(self, socket: WebSocket) -> None:
            await socket.close(4003)

        @app.websocket("/typed/{n}")
        async def typed(self, socket: WebSocket, n: int) -> None:
            await socket.accept()
            try:
                while True:
                    await socket.send_json(n + (await socket.receive_json()))
            except WebSocketDisconnect as gone:
                notes.add(f"gone {gone.code}")

        @app.get("/")
        async def plain(self) -> str:
            return "plain"

    return Talker.bind()


@contextmanager
def talking(instance: Instance, path: str, **more: Any) -> Iterator[ClientConnection]:
    with connect(f"ws://127.0.0.1:{instance.port}{path}", proxy=None, **more) as socket:
        yield socket


def test_echo_of_text_and_bytes(deploy: Deploy, instance: Instance, notes: Notes) -> None:
    deploy(application(notes))
    with talking(instance, "/a1/echo?name=Ada") as socket:
        assert socket.recv() == "hello Ada /a1/echo"
        big = "ä" * 300_000
        for message in ("one", b"\x00\x01", "", big):
            socket.send(message)
            assert socket.recv() == message


def test_the_subprotocol_is_negotiated(deploy: Deploy, instance: Instance, notes: Notes) -> None:
    deploy(application(notes))
    with talking(instance, "/a1/echo", subprotocols=["chat.v1", "chat.v2"]) as socket:
        assert socket.subprotocol == "chat.v2"
    with talking(instance, "/a1/echo", subprotocols=None) as socket:
        assert socket.subprotocol is None


def test_close_codes_pass_both_ways(deploy: Deploy, instance: Instance, notes: Notes) -> None:
    deploy(application(notes))
    with talking(instance, "/a1/echo") as socket:
        socket.recv()
        socket.send("close")
        with pytest.raises(websockets.ConnectionClosedError) as closed:
            socket.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "as you like")
    with talking(instance, "/a1/echo") as socket:
        socket.recv()
        socket.close(4321, "enough")
    until(lambda: notes.has("left 4321"))
    with talking(instance, "/a1/typed/40") as socket:
        socket.send("2")
        assert socket.recv() == "42"
    until(lambda: notes.has("gone 1000"))


def test_a_handler_that_fails_closes_with_1011(deploy: Deploy, instance: Instance, notes: Notes) -> None:
    deploy(application(notes))
    with talking(instance, "/a1/echo") as socket:
        socket.recv()
        socket.send("fail")
        with pytest.raises(websockets.ConnectionClosedError) as closed:
            socket.recv()
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1011
        assert "ValueError" in closed.value.rcvd.reason and "bad word" not in closed.value.rcvd.reason


def test_what_cannot_be_opened_says_why(deploy: Deploy, instance: Instance, notes: Notes) -> None:
    deploy(application(notes))
    for path, status in (("/a1/refuse", 403), ("/a1/none", 403), ("/nowhere", 404)):
        with pytest.raises(websockets.InvalidStatus) as refused, talking(instance, path):
            pass
        assert (path, refused.value.response.status_code) == (path, status)


def test_a_plain_handler_has_no_websocket(deploy: Deploy, instance: Instance) -> None:
    @serve.deployment
    def plain() -> str:
        return "plain"

    deploy(plain.bind())
    with pytest.raises(websockets.InvalidStatus) as refused, talking(instance, "/a1"):
        pass
    assert refused.value.response.status_code == 500
    assert b"WebSocket" in (refused.value.response.body or b"")


def test_a_connection_takes_a_slot_until_it_closes(deploy: Deploy, instance: Instance, notes: Notes) -> None:
    handle = deploy(application(notes))
    with talking(instance, "/a1/echo") as one, talking(instance, "/a1/echo") as two:
        one.recv(), two.recv()
        waiting = handle.plain.remote()
        with pytest.raises(TimeoutError):
            waiting.result(timeout_s=0.1)
        one.close()
        assert waiting.result(timeout_s=5) == "plain"


def test_a_client_that_vanishes_is_told_to_the_handler(deploy: Deploy, instance: Instance, notes: Notes) -> None:
    deploy(application(notes))
    with talking(instance, "/a1/echo", close_timeout=0.1) as socket:
        socket.recv()
        socket.socket.shutdown(2)
    until(lambda: notes.has("over"))


def test_deleting_the_application_ends_its_connections(deploy: Deploy, instance: Instance, notes: Notes) -> None:
    app = FastAPI()

    @serve.deployment(graceful_shutdown_timeout_s=0.2)
    @serve.ingress(app)
    class Talker:
        @app.websocket("/")
        async def echo(self, socket: WebSocket) -> None:
            await socket.accept()
            await socket.send_text(await socket.receive_text())
            await socket.receive_text()

    deploy(Talker.bind())
    with talking(instance, "/a1/") as socket:
        socket.send("here")
        assert socket.recv() == "here"
        serve.delete("a1")
        with pytest.raises(websockets.ConnectionClosedError) as closed:
            socket.recv(timeout=5)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012
