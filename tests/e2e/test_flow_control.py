"""A slow reader stops the writer, whichever way the bytes go and whatever they are, and nobody beside it waits for it.

What is counted is what a writer could get rid of before it stood still. Each case would move 100 MB or more.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from starlette.requests import Request
from starlette.responses import StreamingResponse
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from skate import serve
from tests.e2e.conftest import Deploy
from tests.e2e.notes import Gate, Notes
from tests.e2e.world import Instance, client, until

PRELOAD = ("fastapi",)
PIECE = 100_000  # bytes
PIECES = 1000
HELD_BACK = 250  # pieces that may leave before everybody stands still: windows of ours, and buffers of the kernel
STILL_S = 0.3  # without a byte taken


def standing(notes: Notes) -> bool:
    """Whether nothing was added between many looks; a look takes longer than a piece that is not held back."""
    before = len(notes.read())
    return before > 0 and all(len(notes.read()) == before for _ in range(50))


def application(notes: Notes, gate: Gate) -> Any:
    app = FastAPI()
    piece = b"x" * PIECE

    async def pieces() -> Any:
        for n in range(PIECES):
            notes.add(n)
            yield piece

    @serve.deployment(max_ongoing_requests=100)
    class Source:
        async def items(self) -> Any:
            for n in range(PIECES):
                notes.add(n)
                yield piece

        def sync_items(self) -> Any:
            for n in range(PIECES):
                notes.add(n)
                yield piece

        async def small(self) -> Any:
            for n in range(10_000_000):
                if n % 10_000 == 0:
                    notes.add(n)
                yield n

    @serve.deployment
    class Reader:
        def __init__(self, source: Any) -> None:
            self.source = source.options(stream=True)

        async def reads(self, method: str) -> int:
            return await self._count(self.source.options(method_name=method).remote())

        async def _count(self, stream: Any) -> int:
            size = 0
            async for item in stream:
                if not size:
                    await gate.passed()
                size += len(item)
            return size

        def reads_sync(self, method: str) -> int:
            size = 0
            for item in self.source.options(method_name=method).remote():
                if not size:
                    gate.wait()
                size += len(item)
            return size

    @serve.deployment(max_ongoing_requests=100)
    class Plain:
        async def __call__(self, request: Request) -> Any:
            if request.method == "GET":
                return pieces() if "large" not in request.query_params else self._large()
            size = 0
            async for chunk in request.stream():
                if not size:
                    notes.add("reads")
                    await gate.passed()
                size += len(chunk)
            return size

        async def _large(self) -> Any:
            for n in range(20):
                notes.add(n)
                yield b"x" * 5_000_000

    @serve.deployment(max_ongoing_requests=100)
    @serve.ingress(app)
    class Fast:
        def __init__(self, plain: Any, reader: Any) -> None:
            pass

        @app.get("/")
        async def get(self) -> Any:
            return StreamingResponse(pieces())

        @app.post("/")
        async def post(self, request: Request) -> int:
            size = 0
            async for chunk in request.stream():
                if not size:
                    notes.add("reads")
                    await gate.passed()
                size += len(chunk)
            return size

        @app.websocket("/sends")
        async def sends(self, socket: WebSocket) -> None:
            await socket.accept()
            async for piece in pieces():
                await socket.send_bytes(piece)

        @app.websocket("/receives")
        async def receives(self, socket: WebSocket) -> None:
            await socket.accept()
            size = len(await socket.receive_bytes())
            await gate.passed()
            while size < PIECES * PIECE:
                size += len(await socket.receive_bytes())
            await socket.send_text(str(size))

    return Fast.bind(Plain.bind(), Reader.bind(Source.bind())), Plain.bind()


@contextmanager
def asked(instance: Instance, path: str) -> Iterator[socket.socket]:
    """A client that has sent its request and reads nothing."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        connection.connect(("127.0.0.1", instance.port))
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        yield connection


# -- HTTP ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["fast", "plain"])
def test_a_slow_client_stops_a_stream(deploy: Deploy, instance: Instance, notes: Notes, gate: Gate, which: str) -> None:
    deploy(application(notes, gate)[which == "plain"])
    with client(instance.url) as http, http.stream("GET", "/a1/") as answer:
        taken = answer.iter_raw()
        size = len(next(taken))
        until(lambda: standing(notes))
        assert len(notes.read()) < HELD_BACK
        assert size + sum(len(data) for data in taken) == PIECES * PIECE


def test_pieces_that_are_larger_than_a_window_do_not_wait_in_the_proxy(
    deploy: Deploy, instance: Instance, notes: Notes, gate: Gate
) -> None:
    deploy(application(notes, gate)[1])
    with asked(instance, "/a1?large") as connection:
        connection.recv(1000)
        until(lambda: standing(notes))
        assert len(notes.read()) <= 2  # 5 MB each: the second one waits in the replica


@pytest.mark.parametrize("which", ["fast", "plain"])
def test_a_slow_handler_stops_an_upload(
    deploy: Deploy, instance: Instance, notes: Notes, gate: Gate, which: str
) -> None:
    deploy(application(notes, gate)[which == "plain"])
    total = PIECES * PIECE
    with socket.create_connection(("127.0.0.1", instance.port), timeout=20) as connection:
        head = f"POST /a1/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {total}\r\n\r\n"
        connection.sendall(head.encode())
        sent = sent_until_still(connection, total)
        assert notes.has("reads") and sent < HELD_BACK * PIECE
        gate.open()
        connection.sendall(b"x" * (total - sent))
        answer = b""
        while data := connection.recv(10_000):
            answer += data
    assert answer.endswith(str(total).encode())


def sent_until_still(connection: socket.socket, most: int) -> int:
    """Sends until nothing more is taken for a while; how much was."""
    piece, sent = b"x" * PIECE, 0
    while sent < most and select.select([], [connection], [], STILL_S)[1]:
        sent += connection.send(piece[: most - sent])
    return sent


# -- WebSocket ----------------------------------------------------------------------------------


def test_a_slow_websocket_client_stops_the_handler(
    deploy: Deploy, instance: Instance, notes: Notes, gate: Gate
) -> None:
    deploy(application(notes, gate)[0])
    with connect(f"ws://127.0.0.1:{instance.port}/a1/sends", proxy=None, max_queue=1, max_size=None) as talking:
        size = len(talking.recv())
        until(lambda: standing(notes))
        assert len(notes.read()) < HELD_BACK
        for _ in range(PIECES - 1):
            size += len(talking.recv())
    assert size == PIECES * PIECE


def test_a_slow_handler_stops_a_websocket_client(deploy: Deploy, instance: Instance, notes: Notes, gate: Gate) -> None:
    deploy(application(notes, gate)[0])
    with connect(f"ws://127.0.0.1:{instance.port}/a1/receives", proxy=None) as talking:
        talking.socket.settimeout(STILL_S)
        sent = 0
        try:
            while sent < PIECES:
                talking.send(b"x" * PIECE)
                sent += 1
        except (OSError, ConnectionClosed):
            pass
        assert 0 < sent < HELD_BACK


# -- handles ------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["items", "sync_items"])
@pytest.mark.parametrize("reader", ["reads", "reads_sync"])
def test_a_slow_reader_stops_the_stream_of_another_deployment(
    deploy: Deploy, notes: Notes, gate: Gate, reader: str, source: str
) -> None:
    deploy(application(notes, gate)[0])
    reading = serve.get_deployment_handle("Reader", "a1").options(method_name=reader).remote(source)
    until(lambda: standing(notes))
    assert len(notes.read()) < HELD_BACK
    gate.open()
    assert reading.result() == PIECES * PIECE


def test_small_items_are_held_back_like_large_ones(deploy: Deploy, notes: Notes, gate: Gate) -> None:
    deploy(application(notes, gate)[0])
    stream = serve.get_deployment_handle("Source", "a1").options(stream=True).small.remote()
    assert next(stream) == 0
    until(lambda: standing(notes))
    assert len(notes.read()) < 100  # of 1000
    stream.cancel()


# -- beside each other --------------------------------------------------------------------------


def test_slow_readers_do_not_hold_up_fast_ones(deploy: Deploy, instance: Instance, notes: Notes, gate: Gate) -> None:
    """All of them share one connection from the proxy to the replica, and one from this process."""
    deploy(application(notes, gate)[1], name="plain")
    deploy(application(notes, gate)[0])
    source = serve.get_deployment_handle("Source", "a1").options(stream=True)
    with ExitStack() as slow, client(instance.url) as http:
        for _ in range(16):
            slow.enter_context(asked(instance, "/plain")).recv(100)
        held = [source.items.remote() for _ in range(8)]
        assert all(len(next(stream)) == PIECE for stream in held)
        until(lambda: standing(notes))
        assert len(http.get("/plain").content) == PIECES * PIECE
        assert sum(len(item) for item in source.items.remote()) == PIECES * PIECE
        for stream in held:
            stream.cancel()
