"""The server: real clients at it, its address, its end, and the entry of its process."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest

from skate.core.clock import SystemClock
from skate.core.errors import AddressInUseError
from skate.core.specs import DeploymentTarget, HttpOptions, ProxyConfig, ProxyReport, ReplicaTarget, Route, Snapshot
from skate.dataplane.proxy import server as proxy_server
from skate.dataplane.proxy.address import bind, reserve
from skate.dataplane.transport.exchange import Exchange
from skate.dataplane.transport.peers import listen
from skate.dataplane.wire.head import ReplyHead, decode_http
from skate.engine.base import Life
from tests.proxy.conftest import Run
from tests.proxy.world import LIMIT_S, TEXT, Replica, dial, echo, forever, hello, served, until


@asynccontextmanager
async def client(port: int) -> Any:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S, trust_env=False) as made:
        yield made


def test_requests_of_all_kinds(run: Run) -> None:
    async def test() -> None:
        async with served({"/": echo, "/h": hello}) as made, client(made.port) as web:
            assert (await web.get("/h")).text == "hello"
            assert (await web.post("/", content=b"abc")).content == b"abc"
            big = b"x" * 3_000_000
            assert (await web.post("/", content=big)).content == big

            async def pieces() -> Any:
                for _ in range(5):
                    yield b"y" * 70_000

            assert (await web.post("/", content=pieces())).content == b"y" * 350_000
            for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
                answer = await web.request(method, "/", content=b"q")
                assert (answer.status_code, answer.content) == (200, b"q")
            head = await web.head("/h")
            assert (head.headers["content-length"], head.content) == ("5", b"")
            assert json.loads((await web.get("/-/routes")).text) == {"/": "app/", "/h": "app/h"}
            http = decode_http(made.replicas["/"].exchanges[0].head.http)
            assert http.client is not None
            assert (http.server, http.http_version, http.scheme) == (("127.0.0.1", made.port), "1.1", "http")
            assert made.balanced()

    run(test())


def test_a_stream_arrives_as_it_is_made(run: Run) -> None:
    async def test() -> None:
        seen = [asyncio.Event() for _ in range(4)]

        async def pieces(exchange: Exchange) -> None:
            await exchange.start_http(ReplyHead(200, [TEXT]))
            for number in range(4):
                await exchange.send(b"%d" % number)
                await seen[number].wait()
            exchange.end()

        async with served({"/": pieces}) as made, client(made.port) as web:
            async with asyncio.timeout(LIMIT_S), web.stream("GET", "/") as answer:
                number = 0
                async for piece in answer.aiter_raw():
                    assert piece == b"%d" % number
                    seen[number].set()
                    number += 1
            assert number == 4
            assert made.balanced()

    run(test())


def test_the_end_waits_for_requests_in_flight(run: Run) -> None:
    async def test() -> None:
        go = asyncio.Event()

        async def slow(exchange: Exchange) -> None:
            await go.wait()
            exchange.reply_http(ReplyHead(200, [TEXT]), b"late")

        async with client(0) as web:
            async with served({"/": slow}) as made:
                request = asyncio.ensure_future(web.get(f"http://127.0.0.1:{made.port}/"))
                await until(lambda: made.replicas["/"].exchanges)
                asyncio.get_running_loop().call_later(0.05, go.set)
            assert (await request).text == "late"

    run(test())


def test_a_stream_goes_on_while_the_server_ends(run: Run) -> None:
    async def test() -> None:
        go = asyncio.Event()

        async def pieces(exchange: Exchange) -> None:
            await exchange.start_http(ReplyHead(200, [TEXT]), b"0")
            await go.wait()
            for number in range(1, 4):
                await exchange.send(b"%d" % number)
                await asyncio.sleep(0.01)
            exchange.end()

        async with client(0) as web:
            async with served({"/": pieces}) as made:
                request = asyncio.ensure_future(web.get(f"http://127.0.0.1:{made.port}/"))
                await until(lambda: made.replicas["/"].exchanges)
                asyncio.get_running_loop().call_later(0.05, go.set)
            assert (await request).text == "0123"

    run(test())


def test_a_request_on_its_way_when_the_server_ends_is_answered(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_server, "LAST_REQUEST_S", LIMIT_S)  # it ends before, with the last connection

    async def test() -> None:
        async with served({"/": hello}) as made, dial(made) as idle:
            await idle.ask()
            with socket.create_connection(("127.0.0.1", made.port)) as unaccepted:  # the loop has not turned since
                unaccepted.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
                assert made.server is not None
                ending = asyncio.ensure_future(proxy_server.drain(made.front, made.server))
                await until(lambda: made.front.draining)
                reply = await idle.ask()
                assert (reply.status, reply.text, reply.header(b"connection")) == (200, "hello", [b"close"])
                await ending
                assert unaccepted.recv(65536).startswith(b"HTTP/1.1 200")

    run(test())


def test_the_end_cuts_what_takes_too_long(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with client(0) as web:
            async with served({"/": forever}, drain_s=0.05) as made:
                request = asyncio.ensure_future(web.get(f"http://127.0.0.1:{made.port}/"))
                await until(lambda: made.replicas["/"].exchanges)
            answer = await request
            assert answer.status_code == 503
            assert "being stopped" in answer.text
            assert made.balanced()

    run(test())
    assert "1 requests are cut" in caplog.text


def test_a_port_in_use_is_one_clear_sentence() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(AddressInUseError, match=rf"127\.0\.0\.1:{port}: another process uses this port; stop"):
            bind("127.0.0.1", port)
        with pytest.raises(AddressInUseError, match="another process"):
            bind("127.0.0.1", port, share=True)
    bind("127.0.0.1", port).close()


def test_other_addresses_that_cannot_be_had() -> None:
    with pytest.raises(AddressInUseError, match=r"host 'no\.such\.host\.invalid': the name leads to no address"):
        bind("no.such.host.invalid", 0)
    with pytest.raises(AddressInUseError, match="choose an address of this machine"):
        bind("192.0.2.1", 0)
    with pytest.raises(AddressInUseError, match="port 99999: choose one from 0"):
        bind("127.0.0.1", 99_999)


def test_a_name_and_a_shared_port_are_bound() -> None:
    with bind("localhost", 0, share=True) as first:
        host, port = first.getsockname()[:2]
        assert host == "127.0.0.1"
        bind("localhost", port, share=True).close()


def test_a_port_can_be_had_again_while_its_connections_linger() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            first.setblocking(True)
            first.accept()[0].close()  # ours closes first: the connection lives on without us
            first.close()
            bind("127.0.0.1", port).close()


def test_a_reserved_port_is_for_those_who_share_it() -> None:
    with reserve("127.0.0.1") as reserved:
        port = reserved.getsockname()[1]
        with pytest.raises(AddressInUseError, match="another process"):
            bind("127.0.0.1", port)
        with bind("127.0.0.1", port, share=True), socket.create_connection(("127.0.0.1", port)):
            pass


class FakeController:
    """Answers the reports of a proxy and gives it one snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.reports: list[ProxyReport] = []

    async def handle(self, exchange: Exchange) -> None:
        if exchange.head.method == "snapshots":
            await exchange.send(msgspec.msgpack.encode(self.snapshot))
            await asyncio.Event().wait()
        elif exchange.head.method == "report_proxy":
            self.reports.append(msgspec.msgpack.decode(exchange.body, type=ProxyReport))
        exchange.reply(b"")


def test_the_entry_serves_until_it_is_told_to_stop_and_reports(run: Run) -> None:
    async def test() -> None:
        replica = Replica(hello, 5)
        replica.listener = await listen(replica.address, replica.accept, "replica")
        target = DeploymentTarget("a", "D", 5, -1, (ReplicaTarget("r", replica.address),))
        controller = FakeController(Snapshot(1, True, {"a/D": target}, (Route("/", "a", "D"),)))
        listener = Replica(controller.handle, 100)
        listener.listener = await listen(listener.address, listener.accept, "controller")
        config = ProxyConfig("0", listener.address, HttpOptions(port=0))
        life = Life(SystemClock(), inline=True)
        running = asyncio.ensure_future(proxy_server.run(msgspec.msgpack.encode(config), life))
        await until(lambda: controller.reports)
        report = controller.reports[0]
        assert (report.phase, report.host) == ("ready", "127.0.0.1")
        async with client(report.port) as web:
            assert (await web.get("/x")).text == "hello"

        taken = ProxyConfig("1", listener.address, HttpOptions(port=report.port))
        async with asyncio.timeout(LIMIT_S):
            await proxy_server.run(msgspec.msgpack.encode(taken), Life(SystemClock(), inline=True))
        assert (controller.reports[1].id, controller.reports[1].phase) == ("1", "failed")
        assert "another process uses this port" in controller.reports[1].message

        life.stopping.set()
        async with asyncio.timeout(LIMIT_S):
            await running
        with pytest.raises(OSError, match=r"refused|Connect"):
            await asyncio.open_connection("127.0.0.1", report.port)
        await listener.close()
        await replica.close()
        assert len(asyncio.all_tasks()) == 1

    run(test())


def test_the_logging_of_the_process_is_left_alone(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler()
    before = (list(logging.root.handlers), logging.root.level)

    async def test() -> None:
        async with served({"/": hello}) as made, client(made.port) as web:
            await web.get("/")

    run(test())
    assert (list(logging.root.handlers), logging.root.level) == before
    assert any(reference() is handler for reference in logging._handlerList)  # a full dictConfig would drop it
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
