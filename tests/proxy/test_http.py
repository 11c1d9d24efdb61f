"""Requests and answers through a real socket, with a real router and fake replicas: what becomes of what."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from msgspec.structs import replace

from skate.core.errors import BackPressureError, DeploymentUnavailableError, MethodNotFoundError, RemoteError
from skate.core.specs import DeploymentTarget, HttpOptions, ReplicaTarget, Route, Snapshot
from skate.dataplane.proxy import connection as proxy_connection
from skate.dataplane.transport.exchange import Exchange
from skate.dataplane.wire.head import HTTP, ReplyHead, decode_http
from tests.proxy.conftest import Run
from tests.proxy.world import (
    TEXT,
    Client,
    Handler,
    Reply,
    World,
    ask,
    dial,
    echo,
    forever,
    hello,
    served,
    until,
    whole_body,
)

CHUNKED = [(b"Transfer-Encoding", b"chunked")]


async def answered(made: World, *args: Any, **more: Any) -> Reply:
    reply = await ask(made, *args, **more)
    await until(made.balanced)
    return reply


def giving(status: int, headers: list[tuple[bytes, bytes]], body: bytes = b"") -> Handler:
    async def give(exchange: Exchange) -> None:
        exchange.reply_http(ReplyHead(status, headers), body)

    return give


def pieces_of(*pieces: bytes, gate: asyncio.Event | None = None, headers: Any = (TEXT,)) -> Handler:
    async def give(exchange: Exchange) -> None:
        await exchange.start_http(ReplyHead(200, list(headers)))
        for piece in pieces:
            await exchange.send(piece)
            if gate is not None:
                await gate.wait()
            else:
                await asyncio.sleep(0.001)
        exchange.end()

    return give


# -- requests ---------------------------------------------------------------------------------------


def test_a_request_becomes_a_call_and_its_reply_the_answer(run: Run) -> None:
    async def test() -> None:
        async with served({"/": hello, "/a": hello}, HttpOptions(root_path="/api/")) as made:
            headers = [(b"X", b"1"), (b"x", b"2 \t"), (b"Empty", b"")]
            async with dial(made) as client:
                reply = await client.ask("/a/%C3%BC?q=%201#no", "PUT", headers=headers)
                own = client.writer.get_extra_info("sockname")
            assert (reply.status, reply.text) == (200, "hello")
            assert reply.header(b"content-length") == [b"5"]
            assert reply.header(b"server") == []
            assert re.fullmatch(rb"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", reply.header(b"date")[0])
            head = made.replicas["/a"].exchanges[0].head
            assert (head.kind, head.app, head.route, head.method) == (HTTP, "app/a", "/a", "__call__")
            http = decode_http(head.http)
            assert (http.method, http.scheme, http.path, http.root_path) == ("PUT", "http", "/api/a/ü", "/api/a")
            assert (http.raw_path, http.query) == (b"/api/a/%C3%BC", b"q=%201")
            assert (http.client, http.server, http.http_version) == (tuple(own), ("127.0.0.1", made.port), "1.1")
            sent = [(b"host", b"test"), (b"x", b"1"), (b"x", b"2"), (b"empty", b"")]
            assert http.headers == [*sent, (b"x-request-id", head.request_id.encode())]

    run(test())


def test_a_path_that_still_has_the_root_path_is_routed_the_same(run: Run) -> None:
    async def test() -> None:
        async with served({"/a": hello}, HttpOptions(root_path="/api")) as made:
            for path in ("/a/x", "/api/a/x", f"http://127.0.0.1:{made.port}/a/x"):
                assert (await answered(made, path)).status == 200
            paths = [decode_http(exchange.head.http).path for exchange in made.replicas["/a"].exchanges]
            assert paths == ["/api/a/x"] * 3
            assert json.loads((await answered(made, "/api/-/routes")).body) == {"/a": "app/a"}
            assert (await answered(made, "/apia/x")).status == 404

    run(test())


def test_the_proxys_own_pages(run: Run) -> None:
    async def test() -> None:
        async with served(None) as made:
            for path in ("/-/healthz", "/-/routes", "/x"):
                early = await answered(made, path)
                assert (early.status, early.text) == (503, "No application has been deployed yet.")
            await made.mount({"/": hello, "/b": hello})
            assert (await answered(made, "/-/healthz")).text == "success"
            routes = await answered(made, "/-/routes")
            assert json.loads(routes.body) == {"/": "app/", "/b": "app/b"}
            assert routes.header(b"content-type") == [b"application/json"]
            assert (await answered(made, "/-/other")).status == 404
            made.front.draining = True
            drained = await answered(made, "/-/healthz")
            assert (drained.status, drained.text) == (503, "This proxy is being stopped.")
            assert drained.header(b"connection") == [b"close"]
            assert (await answered(made, "/b")).status == 200

    run(test())


def test_a_proxy_is_ready_while_no_replica_is_wanted_because_a_request_starts_one(run: Run) -> None:
    async def test() -> None:
        async with served(None) as made:
            none = DeploymentTarget("app", "D", 5, -1)
            made.router.apply(Snapshot(1, True, {"app/D": none}, (Route("/", "app", "D"),)))
            assert (await answered(made, "/-/healthz")).status == 503  # its first replica is on its way
            made.router.apply(Snapshot(2, False, {"app/D": replace(none, asleep=True)}))
            assert (await answered(made, "/-/healthz")).status == 200
            made.router.apply(Snapshot(3, False, {"app/D": none}))
            assert (await answered(made, "/-/healthz")).status == 200

    run(test())


def test_an_unknown_path_is_named_and_shortened(run: Run) -> None:
    async def test() -> None:
        async with served({"/a": hello}) as made:
            for path in ("/b", "/ab", "*"):
                reply = await answered(made, path, "OPTIONS")
                assert reply.status == 404
                assert repr(path) in reply.text
                assert "/-/routes" in reply.text
            assert len((await answered(made, "/" + "x" * 9000)).text) < 400

    run(test())


def test_all_methods_are_passed_on(run: Run) -> None:
    async def test() -> None:
        async with served({"/": echo}) as made, dial(made) as client:
            methods = ["GET", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "PURGE", "QUERY"]
            for method in methods:
                assert (await client.ask("/", method, b"q")).body == b"q"
            seen = [decode_http(exchange.head.http).method for exchange in made.replicas["/"].exchanges]
            assert seen == methods

    run(test())


def test_the_request_id_is_echoed_in_every_answer(run: Run) -> None:
    async def test() -> None:
        async with served({"/a": hello}) as made:
            sent = [(b"X-Request-Id", b"my-id")]
            for path in ("/a", "/nowhere", "/-/healthz"):
                assert (await answered(made, path, headers=sent)).header(b"x-request-id") == [b"my-id"]
            assert made.replicas["/a"].exchanges[0].head.request_id == "my-id"
            bad = await answered(made, "/a", headers=[*sent, (b"X-Request-Timeout-Seconds", b"soon")])
            assert (bad.status, bad.header(b"x-request-id")) == (400, [b"my-id"])
            two = [await answered(made, "/a") for _ in range(2)]
            assert two[0].header(b"x-request-id") != two[1].header(b"x-request-id")

    run(test())


# -- bodies -----------------------------------------------------------------------------------------


def test_small_bodies_go_with_the_call(run: Run) -> None:
    async def test() -> None:
        async with served({"/": echo}) as made, dial(made) as client:
            assert (await client.ask("/", "POST", b"abc")).body == b"abc"
            client.request("/", "POST", b"ab", [(b"Content-Length", b"6")])
            for part in (b"cd", b"ef"):
                await asyncio.sleep(0.005)
                client.send(part)
            assert (await client.reply()).body == b"abcdef"
            client.request("/", "POST", b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n", CHUNKED)
            assert (await client.reply()).body == b"abcdef"
            assert [exchange.complete for exchange in made.replicas["/"].exchanges] == [True] * 3
            assert [exchange.body for exchange in made.replicas["/"].exchanges] == [b"abc", b"abcdef", b"abcdef"]

    run(test())


def test_long_bodies_follow_the_call(run: Run) -> None:
    async def test() -> None:
        async with served({"/": echo}) as made, dial(made) as client:
            for _ in range(2):
                assert (await client.ask("/", "POST", b"x" * 3_000_000)).body == b"x" * 3_000_000
                client.request("/", "POST", headers=CHUNKED)
                for number in range(300):
                    client.chunk(b"%d" % (number % 10) * 1000)
                client.send(b"0\r\nTrailer: dropped\r\n\r\n")
                assert len((await client.reply()).body) == 300_000
            assert all(len(exchange.body) < 1_000_000 for exchange in made.replicas["/"].exchanges)

    run(test())


def test_a_reader_that_does_not_read_stops_the_client(run: Run) -> None:
    async def test() -> None:
        go = asyncio.Event()

        async def late(exchange: Exchange) -> None:
            await go.wait()
            exchange.reply_http(ReplyHead(200, [TEXT]), b"%d" % len(await whole_body(exchange)))

        async with served({"/": late}) as made, dial(made) as client:
            client.request("/", "POST", headers=[(b"Content-Length", b"16000000")])
            for _ in range(16):
                client.send(b"x" * 1_000_000)
            await until(lambda: made.replicas["/"].exchanges)
            before = -1
            while before != client.writer.transport.get_write_buffer_size():
                before = client.writer.transport.get_write_buffer_size()
                await asyncio.sleep(0.02)
            assert before > 5_000_000
            go.set()
            assert (await client.reply()).body == b"16000000"
            assert (await client.ask("/", "POST", b"abc")).body == b"3"  # the connection goes on

    run(test())


def test_an_answer_may_come_before_the_body_is_read(run: Run) -> None:
    async def test() -> None:
        async with served({"/": hello}) as made, dial(made) as client:
            client.request("/", "POST", headers=CHUNKED)
            client.chunk(b"x")
            reply = await client.reply()
            assert (reply.text, reply.header(b"connection")) == ("hello", [b"close"])
            client.chunk(b"y" * 100_000)  # is heard and dropped, so that no reset overtakes the answer
            assert await client.closed() == b""
            await until(made.balanced)

    run(test())


def test_an_upload_and_its_answer_at_the_same_time(run: Run) -> None:
    async def test() -> None:
        async def both(exchange: Exchange) -> None:
            await exchange.start_http(ReplyHead(200, [TEXT]), exchange.body)
            while (chunk := await exchange.receive()) is not None:
                await exchange.send(chunk.upper())
            exchange.end()

        async with served({"/": both}) as made, dial(made) as client:
            client.request("/", "POST", headers=CHUNKED)
            await client.head()
            for word in (b"one", b"two"):
                client.chunk(word)
                assert await client.piece() == word.upper()
            client.send(b"0\r\n\r\n")
            assert await client.closed() == b"0\r\n\r\n"

    run(test())


def test_a_body_above_the_limit_is_413_as_soon_as_it_is_known(run: Run) -> None:
    async def test() -> None:
        async with served({"/": forever}, HttpOptions(max_body_bytes=1000)) as made:
            announced = await answered(made, "/", "POST", headers=[(b"Content-Length", b"1001")])
            assert announced.status == 413
            assert "1001 bytes" in announced.text
            assert "1000" in announced.text
            first = await answered(made, "/", "POST", b"4b0\r\n" + b"x" * 1200 + b"\r\n0\r\n\r\n", CHUNKED)
            assert first.status == 413
            assert not made.replicas["/"].exchanges
            async with dial(made) as client:
                client.request("/", "POST", headers=CHUNKED)
                client.chunk(b"x" * 600)
                await until(lambda: made.replicas["/"].exchanges)
                client.chunk(b"x" * 600)
                assert (await client.reply()).status == 413
                await until(lambda: made.replicas["/"].cancelled)
                await until(made.balanced)

    run(test())


def test_a_client_that_waits_before_its_body_is_told_to_go_on(run: Run) -> None:
    async def test() -> None:
        async with served({"/a": echo}, HttpOptions(max_body_bytes=1000)) as made:
            expect = [(b"Expect", b"100-continue")]
            async with dial(made) as client:
                client.request("/a", "POST", headers=[*expect, (b"Content-Length", b"3")])
                assert (await client.reply()).status == 100
                client.send(b"abc")
                assert (await client.reply()).body == b"abc"
            for target, length, status in (("/a", b"2000", 413), ("/b", b"3", 404)):
                reply = await answered(made, target, "POST", headers=[*expect, (b"Content-Length", length)])
                assert reply.status == status

    run(test())


def test_a_body_that_breaks_off_is_400(run: Run) -> None:
    async def test() -> None:
        async with served({"/": echo}) as made:
            for size in (10, 100_000):
                async with dial(made) as client:
                    client.request("/", "POST", b"x", [(b"Content-Length", b"%d" % size)])
                    client.end()
                    assert (await client.reply()).status == 400
                    assert await client.closed() == b""
                await until(made.balanced)
            assert all(not exchange.complete for exchange in made.replicas["/"].exchanges)

    run(test())


def test_a_request_that_asks_for_another_protocol_is_served_in_this_one(run: Run) -> None:
    async def test() -> None:
        async with served({"/": echo}) as made, dial(made) as client:
            headers = [
                (b"Connection", b"Upgrade, HTTP2-Settings"),
                (b"Upgrade", b"h2c"),
                (b"HTTP2-Settings", b"AAMAAABk"),
                (b"X-Own", b"1"),
            ]
            for _ in range(2):
                assert (await client.ask("/", "POST", b"body", headers)).body == b"body"
            http = decode_http(made.replicas["/"].exchanges[0].head.http)
            assert [name for name, _ in http.headers] == [b"host", b"x-own", b"content-length", b"x-request-id"]

    run(test())


# -- answers ----------------------------------------------------------------------------------------


def test_a_whole_answer_in_several_frames_of_one_moment_has_a_length(run: Run) -> None:
    async def test() -> None:
        async def at_once(exchange: Exchange) -> None:
            await exchange.start_http(ReplyHead(201, [TEXT]))
            await exchange.send(b"ab")
            await exchange.send(b"cd")
            exchange.end()

        async with served({"/": at_once}) as made:
            reply = await answered(made)
            assert (reply.status, reply.body, reply.header(b"content-length")) == (201, b"abcd", [b"4"])

    run(test())


def test_a_stream_is_passed_on_piece_by_piece(run: Run) -> None:
    async def test() -> None:
        go = asyncio.Event()
        async with served({"/": pieces_of(b"0", b"", b"1", b"2" * 100_000, gate=go)}) as made:
            async with dial(made) as client:
                client.request()
                head = await client.head()
                assert head.header(b"transfer-encoding") == [b"chunked"]
                assert head.header(b"content-length") == []
                assert await client.piece() == b"0"
                go.set()
                assert [await client.piece(), await client.piece()] == [b"1", b"2" * 100_000]
                assert await client.piece() == b""
                assert (await client.ask()).complete  # kept alive
            await until(made.balanced)

    run(test())


def test_old_clients_get_a_stream_up_to_the_end_of_the_connection(run: Run) -> None:
    async def test() -> None:
        async def breaks(exchange: Exchange) -> None:
            await exchange.start_http(ReplyHead(200, [TEXT]), b"first")
            await asyncio.sleep(0.01)
            exchange.fail(ValueError("broken"), "trace")

        async with served({"/": pieces_of(b"ab", b"cd"), "/h": hello, "/b": breaks}) as made:
            async with dial(made) as client:
                client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
                reply = await client.reply()
                assert (reply.body, reply.header(b"transfer-encoding")) == (b"abcd", [])
                assert reply.header(b"connection") == [b"close"]
            async with dial(made) as client:
                for _ in range(2):
                    client.send(b"GET /h HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
                    reply = await client.reply()
                    assert (reply.body, reply.header(b"connection")) == (b"hello", [b"keep-alive"])
                client.send(b"GET /h HTTP/1.0\r\n\r\n")
                assert (await client.closed()).endswith(b"\r\nconnection: close\r\n\r\nhello")
            async with dial(made) as client:  # a broken one must not look complete
                client.send(b"GET /b HTTP/1.0\r\n\r\n")
                await client.head()
                with pytest.raises(ConnectionResetError):
                    await client.reader.read(-1)
            http = decode_http(made.replicas["/"].exchanges[0].head.http)
            assert http.http_version == "1.0"

    run(test())


def test_a_client_that_reads_slowly_stops_the_replica(run: Run) -> None:
    async def test() -> None:
        sent = 0

        async def pieces(exchange: Exchange) -> None:
            nonlocal sent
            await exchange.start_http(ReplyHead(200, [TEXT]))
            for _ in range(400):
                await exchange.send(b"x" * 65_536)
                sent += 1
            exchange.end()

        async with served({"/": pieces}) as made, dial(made) as client:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.request()
            before = -1
            while before != sent or not sent:
                before = sent
                await asyncio.sleep(0.05)
            assert sent < 250
            (held,) = made.front.connections
            assert held.transport.get_write_buffer_size() < 2_000_000
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            reply = await client.reply()
            assert (len(reply.body), reply.complete) == (400 * 65_536, True)

    run(test())


def test_a_client_that_takes_nothing_gets_no_further_answers_and_is_cut(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_connection, "STALL_S", 0.3)

    async def test() -> None:
        big = giving(200, [TEXT], b"x" * 3_000_000)
        async with served({"/": big}, HttpOptions(keep_alive_timeout_s=0.4)) as made, dial(made) as client:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            for _ in range(50):
                client.request()
            await until(lambda: any(connection.stuck for connection in made.front.connections))
            (held,) = made.front.connections
            assert held.transport.get_write_buffer_size() < 7_000_000
            assert made.router.ledger.accepted < 10
            await until(lambda: not made.front.connections)

    run(test())


def test_a_length_that_the_application_got_wrong_does_not_reach_the_next_answer(run: Run) -> None:
    async def test() -> None:
        wrong = giving(200, [(b"content-length", b"3"), (b"transfer-encoding", b"chunked")], b"abcdef")
        length = [(b"content-length", b"9")]
        apps = {
            "/": wrong,
            "/s": pieces_of(b"abc", headers=length),
            "/l": pieces_of(b"abcdef", b"ghijkl", headers=length),
        }
        async with served(apps) as made, dial(made) as client:
            for _ in range(3):
                assert (await client.ask()).text == "abcdef"
            assert (await client.ask("/l")).text == "abcdefghi"
            short = await client.ask("/s")
            assert (short.body, short.complete) == (b"abc", False)
            await until(made.balanced)

    run(test())


@pytest.mark.parametrize("name", [b"x-bad", b"x bad", b"x:bad", b"", b"x\r\n", b"x\xff"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_header_that_http_does_not_allow_is_a_500(run: Run, name: bytes, stream: bool) -> None:
    async def test() -> None:
        value = b"a\r\nset-cookie: b" if name == b"x-bad" else b"v"
        bad = pieces_of(b"x", headers=[(name, value)]) if stream else giving(200, [(name, value)], b"x")
        async with served({"/": bad, "/h": hello}) as made, dial(made) as client:
            reply = await client.ask()
            assert reply.status == 500
            assert "a header that HTTP does not allow" in reply.text
            assert reply.header(b"set-cookie") == []
            assert (await client.ask("/h")).text == "hello"
            await until(made.balanced)

    run(test())


@pytest.mark.parametrize("status", [0, 99, 101, 1000, -1])
def test_an_impossible_status_is_the_applications_fault(run: Run, status: int) -> None:
    async def test() -> None:
        async with served({"/": giving(status, [])}) as made:
            reply = await answered(made)
            assert reply.status == 500
            assert str(status) in reply.text

    run(test())


def test_head_and_empty_answers(run: Run) -> None:
    async def test() -> None:
        apps = {
            "/": giving(200, [(b"content-length", b"99")]),
            "/b": giving(200, [], b"body"),
            "/n": giving(204, [(b"content-length", b"3")], b"no!"),
            "/m": giving(304, [], b"no!"),
            "/r": giving(205, [], b"no!"),
            "/s": pieces_of(b"a", b"b"),
            "/odd": giving(799, [], b"x"),
        }
        async with served(apps) as made, dial(made) as client:
            for target, length in (("/", [b"99"]), ("/b", [b"4"]), ("/s", []), ("/-/healthz", [b"7"])):
                assert (await client.ask(target, "HEAD")).header(b"content-length") == length
            assert (await client.ask("/")).header(b"content-length") == [b"0"]
            for target in ("/n", "/m"):
                assert (await client.ask(target)).header(b"content-length") == []
            assert (await client.ask("/r")).header(b"content-length") == [b"0"]
            assert ((await client.ask("/odd")).status, (await client.ask("/b")).body) == (799, b"body")
            await until(made.balanced)

    run(test())


def test_large_answers(run: Run) -> None:
    async def test() -> None:
        async with served({"/": giving(200, [], b"y" * 5_000_000)}) as made, dial(made) as client:
            for _ in range(2):
                assert (await client.ask()).body == b"y" * 5_000_000

    run(test())


# -- ends -------------------------------------------------------------------------------------------


def test_a_client_that_leaves_cancels_its_call(run: Run) -> None:
    async def test() -> None:
        async with served({"/": forever}) as made:
            replica = made.replicas["/"]
            upload = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
            plain = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
            for number, data in enumerate([plain, plain + plain, upload, plain.replace(b"1.1", b"1.0")], start=1):
                async with dial(made) as client:
                    client.send(data)
                    await until(lambda n=number: len(replica.exchanges) == n)
                await until(lambda n=number: len(replica.cancelled) == n)
                await until(made.balanced)
            assert made.router.ledger.report().cancelled == 4

    run(test())


def test_a_client_that_leaves_while_its_call_is_queued_never_reaches_a_replica(run: Run) -> None:
    async def test() -> None:
        async with served({"/": forever}, max_ongoing_requests=1) as made, dial(made) as first:
            first.request()
            await until(lambda: made.replicas["/"].exchanges)
            async with dial(made) as queued:
                queued.request()
                await until(lambda: made.router.ledger.accepted == 2)
            await until(lambda: made.router.ledger.report().cancelled == 1)
            assert len(made.replicas["/"].exchanges) == 1
            made.front.cut()

    run(test())


def test_a_client_that_leaves_a_stream_cancels_it(run: Run) -> None:
    async def test() -> None:
        async def pieces(exchange: Exchange) -> None:
            await exchange.start_http(ReplyHead(200, [TEXT]), b"first")
            while True:
                await exchange.send(b"x")
                await asyncio.sleep(0.001)

        async def silent(exchange: Exchange) -> None:
            await exchange.start_http(ReplyHead(200, [TEXT]), b"first")
            await asyncio.Event().wait()

        async with served({"/": pieces, "/s": silent}) as made:
            for path in ("/", "/s"):
                async with dial(made) as client:
                    client.request(path)
                    await client.head()
                await until(lambda path=path: made.replicas[path].cancelled)
                await until(made.balanced)

    run(test())


async def final(client: Client) -> Reply:
    """The next answer; a slow machine is asked whether it is there in front of any."""
    while (reply := await client.reply()).status == 100:
        pass
    return reply


def test_a_client_that_only_stops_sending_gets_its_answers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_connection, "PROBE_AFTER_S", 0.02)

    async def test() -> None:
        go = asyncio.Event()

        async def slow(exchange: Exchange) -> None:
            await go.wait()
            exchange.reply_http(ReplyHead(200, [TEXT]), b"late")

        async def late(exchange: Exchange) -> None:
            await exchange.start_http(ReplyHead(200, [TEXT]), b"first")
            await go.wait()
            exchange.end(b"last")

        async with served({"/": hello, "/s": slow, "/l": late, "/p": pieces_of(b"a", b"b")}) as made:
            async with dial(made) as client:
                for path in ("/", "/p", "/"):
                    client.request(path)
                client.end()
                assert [(await final(client)).body for _ in range(3)] == [b"hello", b"ab", b"hello"]
                assert await client.closed() == b""
            async with dial(made) as client:
                client.request("/s")
                client.end()
                assert (await client.reply()).status == 100  # asked whether it is there
                asyncio.get_running_loop().call_later(0.1, go.set)
                assert (await final(client)).body == b"late"
                assert await client.closed() == b""
            go.clear()
            async with dial(made) as client:
                client.request("/l")
                client.end()
                await client.head()
                assert await client.piece() == b"first"
                asyncio.get_running_loop().call_later(0.1, go.set)
                assert await client.closed() == b"04\r\nlast\r\n0\r\n\r\n"
            await until(made.balanced)
            assert made.router.ledger.report().cancelled == 0

    run(test())


@pytest.mark.parametrize("blocked", [False, True])
def test_after_the_first_byte_a_timeout_cuts_the_connection(run: Run, blocked: bool) -> None:
    async def test() -> None:
        async def pieces(exchange: Exchange) -> None:
            await exchange.start_http(ReplyHead(200, [TEXT]), b"first")
            while blocked:
                await exchange.send(b"x" * 60_000)
            await asyncio.Event().wait()

        async with served({"/": pieces}, HttpOptions(request_timeout_s=0.2)) as made, dial(made) as client:
            if blocked:
                client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.request()
            await until(lambda: made.router.ledger.report().timed_out == 1)
            await until(made.balanced)
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            reply = await client.reply()
            assert (reply.status, reply.complete) == (200, False)
            assert reply.body.startswith(b"first")

    run(test())


def test_a_stream_that_breaks_is_cut(run: Run) -> None:
    async def test() -> None:
        async def pieces(exchange: Exchange) -> None:
            await exchange.start_http(ReplyHead(200, [TEXT]), b"first")
            await asyncio.sleep(0.01)
            exchange.fail(ValueError("broken"), "trace")

        async with served({"/": pieces}) as made:
            reply = await answered(made)
            assert (reply.body, reply.complete) == (b"first", False)

    run(test())


def test_timeouts_answer_408_with_id_and_seconds(run: Run) -> None:
    async def test() -> None:
        async with served({"/": forever}, HttpOptions(request_timeout_s=30.0), max_ongoing_requests=1) as made:
            headers = [(b"x-request-timeout-seconds", b"0.05"), (b"x-request-id", b"late")]
            running = await answered(made, headers=headers)
            async with dial(made) as endless:
                endless.request(headers=[(b"x-request-timeout-seconds", b"0")])
                await until(lambda: made.router.ledger.open == 1)
                queued = await ask(made, headers=headers)
                made.front.cut()
            for reply in (running, queued):
                assert reply.status == 408
                assert "late" in reply.text
                assert re.search(r"after 0\.0[5-9]\d* s", reply.text)
            assert made.replicas["/"].exchanges[0].head.timeout_s == pytest.approx(0.05, abs=0.05)

    run(test())


def test_a_body_that_does_not_come_in_time_is_408(run: Run) -> None:
    async def test() -> None:
        async with served({"/": echo}, HttpOptions(request_timeout_s=0.05)) as made:
            reply = await answered(made, "/", "POST", headers=[(b"Content-Length", b"10")])
            assert reply.status == 408
            assert "body did not arrive" in reply.text
            assert made.router.ledger.accepted == 0

    run(test())


# -- errors -----------------------------------------------------------------------------------------


def failing(error: BaseException, traceback: str = "") -> Handler:
    async def fail(exchange: Exchange) -> None:
        await whole_body(exchange)
        exchange.fail(error, traceback)

    return fail


class SecretError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "status", "words", "retry_after"),
    [
        (ZeroDivisionError("secret"), 500, ["ZeroDivisionError", "the-id"], []),
        (SecretError("secret"), 500, ["SecretError", "the-id"], []),
        (RemoteError("pkg.OddError: secret"), 500, ["pkg.OddError", "the-id"], []),
        (BackPressureError("the queue is full", 503, 0.2), 503, ["The queue is full."], [b"1"]),
        (BackPressureError("the queue is full", 429, 2.1), 429, ["The queue is full."], [b"3"]),
        (BackPressureError("the queue is full"), 503, ["The queue is full."], [b"1"]),
        (DeploymentUnavailableError("it failed to start"), 503, ["It failed to start."], [b"1"]),
        (MethodNotFoundError("no method 'x'"), 500, ["no method 'x'", "the-id"], []),
    ],
)
def test_errors_become_statuses_and_short_texts(
    run: Run, error: BaseException, status: int, words: list[str], retry_after: list[bytes]
) -> None:
    async def test() -> None:
        async with served({"/": failing(error, "Traceback: secret")}) as made, dial(made) as client:
            for _ in range(2):  # on a connection that goes on
                reply = await client.ask(headers=[(b"x-request-id", b"the-id")])
                assert reply.status == status
                assert all(word.lower() in reply.text.lower() for word in words)
                assert "secret" not in reply.text
                assert reply.header(b"retry-after") == retry_after
                assert reply.header(b"content-type") == [b"text/plain; charset=utf-8"]
                assert reply.header(b"x-request-id") == [b"the-id"]

    run(test())


def test_the_traceback_is_shown_only_when_asked_for(run: Run) -> None:
    async def test() -> None:
        handler = failing(ZeroDivisionError("division"), "Traceback:\n  line 7")
        async with served({"/": handler}, HttpOptions(show_traceback=True)) as made:
            assert "Traceback:\n  line 7" in (await answered(made)).text

    run(test())


def test_a_full_queue_is_refused_and_says_so(run: Run) -> None:
    async def test() -> None:
        limits = {"max_ongoing_requests": 1, "max_queued_requests": 1}
        options: dict[str, Any] = {**limits, "backpressure_status": 429, "retry_after_s": 1.5}
        async with served({"/": forever}, **options) as made, dial(made) as running, dial(made) as waiting:
            running.request()
            await until(lambda: made.replicas["/"].exchanges)
            waiting.request()
            await until(lambda: made.router.ledger.open == 2)
            refused = await ask(made)
            assert (refused.status, refused.header(b"retry-after")) == (429, [b"2"])
            made.front.cut()
            assert [(await running.reply()).status, (await waiting.reply()).status] == [503, 503]

    run(test())


def test_a_replica_that_dies_ends_its_requests_at_once(run: Run) -> None:
    async def test() -> None:
        async def die(exchange: Exchange) -> None:
            await asyncio.sleep(0.01)
            exchange.session.transport.abort()

        async with served({"/": die}) as made:
            reply = await answered(made)
            assert reply.status == 500
            assert "died" in reply.text

    run(test())


def test_a_deployment_that_cannot_start_is_503(run: Run) -> None:
    async def test() -> None:
        async with served({"/": hello}) as made:
            target = DeploymentTarget("app/", "D", 1, -1, (), "its constructor raised ValueError")
            made.router.apply(Snapshot(2, False, {"app//D": target}))
            reply = await answered(made)
            assert reply.status == 503
            assert "constructor raised ValueError" in reply.text
            made.router.apply(Snapshot(3, False, {"app//D": None}))
            assert (await answered(made)).status == 503

    run(test())


def test_replaced_replicas_are_used_without_a_pause(run: Run) -> None:
    async def test() -> None:
        async with served({"/": hello}) as made:
            assert (await answered(made)).text == "hello"
            await made.mount({"/": echo})
            assert (await answered(made, "/", "POST", b"ab")).text in ("ab", "hello")
            assert ReplicaTarget("r", made.replicas["/"].address)

    run(test())


def test_a_fault_of_ours_ends_its_own_request_only(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> bytes:
        raise KeyError("ours")

    async def test() -> None:
        go = asyncio.Event()
        async with served({"/": hello, "/s": pieces_of(b"a", b"b", gate=go)}) as made:
            async with dial(made) as other, dial(made) as client:
                other.request("/s")
                await until(lambda: made.router.ledger.open == 1)
                await other.head()
                with monkeypatch.context() as patched:
                    patched.setattr("skate.dataplane.proxy.http_call.status_line", broken)
                    reply = await client.ask()
                    assert (reply.status, reply.header(b"connection")) == (500, [b"close"])
                    assert "Skate itself failed" in reply.text
                    assert len(caplog.records) == 1
                    patched.setattr("skate.dataplane.proxy.connection.read_request", broken)
                    assert (await ask(made)).status == 500
                go.set()
                assert [await other.piece(), await other.piece(), await other.piece()] == [b"a", b"b", b""]
                assert (await other.ask()).text == "hello"
            await until(made.balanced)

    run(test())
