"""The proxy as an ASGI application: by hand-driven requests, with a real router and fake replicas."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Coroutine
from typing import Any

import pytest

from skate.core.errors import BackPressureError, DeploymentUnavailableError, MethodNotFoundError, RemoteError
from skate.core.specs import DeploymentTarget, HttpOptions, ReplicaTarget, Snapshot
from skate.dataplane.transport.exchange import Exchange
from skate.dataplane.wire.head import HTTP, ReplyHead
from tests.proxy.world import TEXT, Client, Handler, World, echo, forever, hello, until, whole_body, world


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


async def answered(made: World, client: Client) -> Client:
    await client.run(made.proxy)
    assert made.balanced()
    return client


def body_headers(size: int) -> list[tuple[bytes, bytes]]:
    return [(b"content-length", b"%d" % size)]


def test_a_request_becomes_a_call_and_its_reply_the_answer() -> None:
    async def test() -> None:
        async with world({"/": hello, "/a": hello}, HttpOptions(root_path="/api/")) as made:
            headers = [(b"x", b"1"), (b"x", b"2")]
            client = await answered(made, Client("/a/ü", "PUT", headers, query_string=b"q=1", http_version="1"))
            assert (client.status, client.text, len(client.sent)) == (200, "hello", 2)
            assert client.header(b"content-length") == [b"5"]
            head = made.replicas["/a"].exchanges[0].head
            assert (head.kind, head.app, head.route, head.method) == (HTTP, "app/a", "/a", "__call__")
            assert head.http is not None
            assert (head.http.method, head.http.path, head.http.root_path) == ("PUT", "/api/a/ü", "/api/a")
            assert (head.http.raw_path, head.http.query) == ("/api/a/ü".encode(), b"q=1")
            assert (head.http.client, head.http.http_version) == (("127.0.0.1", 4711), "1.0")
            assert head.http.headers == [*headers, (b"x-request-id", head.request_id.encode())]

    run(test())


def test_a_path_that_still_has_the_root_path_is_routed_the_same() -> None:
    async def test() -> None:
        async with world({"/a": hello}, HttpOptions(root_path="/api")) as made:
            for path in ("/a/x", "/api/a/x"):
                assert (await answered(made, Client(path))).status == 200
            paths = [exchange.head.http.path for exchange in made.replicas["/a"].exchanges if exchange.head.http]
            assert paths == ["/api/a/x", "/api/a/x"]
            assert json.loads((await answered(made, Client("/api/-/routes"))).body) == {"/a": "app/a"}
            assert (await answered(made, Client("/apia/x"))).status == 404

    run(test())


def test_the_proxys_own_pages() -> None:
    async def test() -> None:
        async with world() as made:
            for path in ("/-/healthz", "/-/routes", "/x"):
                early = await answered(made, Client(path))
                assert (early.status, early.text) == (503, "No application has been deployed yet.")
            await made.mount({"/": hello, "/b": hello})
            assert (await answered(made, Client("/-/healthz"))).text == "success"
            routes = await answered(made, Client("/-/routes"))
            assert json.loads(routes.body) == {"/": "app/", "/b": "app/b"}
            assert routes.header(b"content-type") == [b"application/json"]
            assert (await answered(made, Client("/-/other"))).status == 404
            made.proxy.draining = True
            drained = await answered(made, Client("/-/healthz"))
            assert (drained.status, drained.text) == (503, "This proxy is being stopped.")
            assert (await answered(made, Client("/b"))).status == 200

    run(test())


def test_an_unknown_path_is_named_and_shortened() -> None:
    async def test() -> None:
        async with world({"/a": hello}) as made:
            for path in ("/b", "/ab", "", "*"):
                client = await answered(made, Client(path))
                assert client.status == 404
                assert repr(path) in client.text
                assert "/-/routes" in client.text
            assert len((await answered(made, Client("/" + "x" * 9000))).text) < 400

    run(test())


def test_the_request_id_is_echoed_in_every_answer() -> None:
    async def test() -> None:
        async with world({"/a": hello}) as made:
            sent = [(b"x-request-id", b"my-id")]
            for path in ("/a", "/nowhere", "/-/healthz"):
                assert (await answered(made, Client(path, headers=sent))).header(b"x-request-id") == [b"my-id"]
            assert made.replicas["/a"].exchanges[0].head.request_id == "my-id"
            bad = await answered(made, Client("/a", headers=[*sent, (b"x-request-timeout-seconds", b"soon")]))
            assert (bad.status, bad.header(b"x-request-id")) == (400, [b"my-id"])
            two = [await answered(made, Client("/a")) for _ in range(2)]
            assert two[0].header(b"x-request-id") != two[1].header(b"x-request-id")

    run(test())


def test_small_bodies_go_with_the_call() -> None:
    async def test() -> None:
        async with world({"/": echo}) as made:
            whole = Client("/", "POST", body_headers(3))
            whole.put(b"abc", more=True)  # as Granian does it: the end is a message of its own
            assert (await answered(made, whole)).body == b"abc"
            parts = Client("/", "POST", body_headers(6))
            for part in (b"ab", b"cd", b"ef"):
                parts.put(part, more=True)
            assert (await answered(made, parts)).body == b"abcdef"
            assert [exchange.complete for exchange in made.replicas["/"].exchanges] == [True, True]
            assert made.replicas["/"].exchanges[1].body == b"abcdef"

    run(test())


def test_long_bodies_follow_the_call() -> None:
    async def test() -> None:
        async with world({"/": echo}) as made:
            for headers in (body_headers(300_000), [(b"transfer-encoding", b"chunked")]):
                client = Client("/", "POST", headers)
                for _ in range(3):
                    client.put(b"x" * 100_000, more=True)
                client.put(b"")
                assert (await answered(made, client)).body == b"x" * 300_000
            assert [len(exchange.body) for exchange in made.replicas["/"].exchanges] == [100_000] * 2

    run(test())


def test_a_reader_that_does_not_read_stops_the_client() -> None:
    async def test() -> None:
        async with world({"/": forever}) as made:
            client = Client("/", "POST", [(b"transfer-encoding", b"chunked")])
            for _ in range(500):
                client.put(b"x" * 65_536, more=True)
            running = asyncio.ensure_future(client.run(made.proxy))
            await until(lambda: client.inbox.qsize() < 500)
            before = -1
            while before != client.inbox.qsize():
                before = client.inbox.qsize()
                await asyncio.sleep(0.02)
            assert before > 400
            client.scope.clear()
            made.proxy.end(made.proxy.open, "stop")
            await running
            assert client.status == 503

    run(test())


def test_an_answer_may_come_before_the_body_is_read() -> None:
    async def test() -> None:
        async with world({"/": hello}) as made:
            client = Client("/", "POST", [(b"transfer-encoding", b"chunked")])
            client.put(b"x", more=True)
            assert (await answered(made, client)).text == "hello"

    run(test())


def test_a_body_above_the_limit_is_413_as_soon_as_it_is_known() -> None:
    async def test() -> None:
        async with world({"/": forever}, HttpOptions(max_body_bytes=1000)) as made:
            announced = await answered(made, Client("/", "POST", body_headers(1001)))
            assert announced.status == 413
            assert "1001 bytes" in announced.text
            assert "1000" in announced.text
            assert not made.replicas["/"].exchanges
            counted = Client("/", "POST", [(b"transfer-encoding", b"chunked")])
            counted.put(b"x" * 600, more=True)
            running = asyncio.ensure_future(answered(made, counted))
            await until(lambda: made.replicas["/"].exchanges)
            counted.put(b"x" * 600, more=True)
            assert (await running).status == 413
            await until(lambda: made.replicas["/"].cancelled)
            first = Client("/", "POST", [(b"transfer-encoding", b"chunked")])
            first.put(b"x" * 1200, more=True)
            assert (await answered(made, first)).status == 413
            assert len(made.replicas["/"].exchanges) == 1

    run(test())


def test_a_client_that_leaves_cancels_its_call() -> None:
    async def test() -> None:
        async with world({"/": forever}) as made:
            running_body = Client("/", "POST", body_headers(3))
            running_body.put(b"abc", more=True)
            running_body.put(b"")
            uploading = Client("/", "POST", [(b"transfer-encoding", b"chunked")])
            uploading.put(b"abc", more=True)
            replica = made.replicas["/"]
            for number, client in enumerate([Client("/"), running_body, uploading], start=1):
                running = asyncio.ensure_future(client.run(made.proxy))
                await until(lambda n=number: len(replica.exchanges) == n)
                client.leave()
                await running
                await until(lambda n=number: len(replica.cancelled) == n)
                assert made.balanced()
            assert replica.cancelled == ["the client disconnected"] * 3
            assert made.router.ledger.report().cancelled == 3

    run(test())


def test_a_client_that_leaves_while_its_call_is_queued_never_reaches_a_replica() -> None:
    async def test() -> None:
        async with world({"/": forever}, max_ongoing_requests=1) as made:
            first = asyncio.ensure_future(Client("/").run(made.proxy))
            await until(lambda: made.replicas["/"].exchanges)
            queued = Client("/")
            running = asyncio.ensure_future(queued.run(made.proxy))
            await until(lambda: made.router.ledger.accepted == 2)
            queued.leave()
            await running
            assert len(made.replicas["/"].exchanges) == 1
            made.proxy.end(made.proxy.open, "stop")
            await first

    run(test())


def test_a_body_that_breaks_off_reaches_no_replica() -> None:
    async def test() -> None:
        async with world({"/": echo}) as made:
            for size in (10, 100_000):
                client = Client("/", "POST", body_headers(size))
                client.put(b"x", more=True) if size == 10 else None
                client.leave()
                assert (await answered(made, client)).status == 400
            assert made.router.ledger.accepted == 0

    run(test())


def test_a_stream_is_passed_on_piece_by_piece() -> None:
    async def test() -> None:
        go = asyncio.Event()

        async def pieces(exchange: Exchange) -> None:
            await exchange.start_http(ReplyHead(201, [TEXT]))
            for number in range(3):
                await exchange.send(b"%d" % number)
                await go.wait()
            exchange.end(b"!")

        async with world({"/": pieces}) as made:
            client = Client("/")
            running = asyncio.ensure_future(client.run(made.proxy))
            await until(lambda: client.body == b"0")
            assert not client.complete
            go.set()
            await running
            assert (client.status, client.body, client.complete) == (201, b"012!", True)
            assert client.header(b"content-length") == []
            assert made.balanced()

    run(test())


def test_a_client_that_reads_slowly_stops_the_replica() -> None:
    async def test() -> None:
        sent = 0

        async def pieces(exchange: Exchange) -> None:
            nonlocal sent
            await exchange.start_http(ReplyHead(200, [TEXT]))
            for _ in range(400):
                await exchange.send(b"x" * 65_536)
                sent += 1
            exchange.end()

        async with world({"/": pieces}) as made:
            client = Client("/")
            client.gate.clear()
            running = asyncio.ensure_future(client.run(made.proxy))
            before = -1
            while before != sent or not sent:
                before = sent
                await asyncio.sleep(0.02)
            assert sent < 200
            client.gate.set()
            await running
            assert (len(client.body), client.complete) == (400 * 65_536, True)

    run(test())


@pytest.mark.parametrize("blocked", [False, True])
def test_after_the_first_byte_a_timeout_cuts_the_connection(blocked: bool) -> None:
    async def test() -> None:
        async def pieces(exchange: Exchange) -> None:
            await exchange.start_http(ReplyHead(200, [TEXT]), b"first")
            await asyncio.Event().wait()

        async with world({"/": pieces}, HttpOptions(request_timeout_s=0.1)) as made:
            client = Client("/")
            real = client.send

            async def send(message: Any) -> None:
                if message["type"] == "http.response.body" and blocked:
                    await asyncio.Event().wait()  # a client that takes nothing
                await real(message)

            client.send = send  # type: ignore[method-assign]
            await client.run(made.proxy)
            assert client.status == 200
            assert not client.complete
            assert made.router.ledger.report().timed_out == 1
            assert made.balanced()

    run(test())


def test_a_stream_that_breaks_is_cut() -> None:
    async def test() -> None:
        async def pieces(exchange: Exchange) -> None:
            await exchange.start_http(ReplyHead(200, [TEXT]), b"first")
            await asyncio.sleep(0.01)
            exchange.fail(ValueError("broken"), "trace")

        async with world({"/": pieces}) as made:
            client = await answered(made, Client("/"))
            assert (client.body, client.complete) == (b"first", False)

    run(test())


def test_a_client_that_leaves_a_stream_cancels_it() -> None:
    async def test() -> None:
        async def pieces(exchange: Exchange) -> None:
            await exchange.start_http(ReplyHead(200, [TEXT]), b"first")
            while True:
                await exchange.send(b"x")
                await asyncio.sleep(0.001)

        async with world({"/": pieces}) as made:
            client = Client("/")
            running = asyncio.ensure_future(client.run(made.proxy))
            await until(lambda: client.body)
            client.leave()
            await running
            await until(lambda: made.replicas["/"].cancelled)
            assert made.balanced()

    run(test())


def test_timeouts_answer_408_with_id_and_seconds() -> None:
    async def test() -> None:
        async with world({"/": forever}, HttpOptions(request_timeout_s=30.0), max_ongoing_requests=1) as made:
            headers = [(b"x-request-timeout-seconds", b"0.05"), (b"x-request-id", b"late")]
            for _ in range(2):  # the first one runs, the second one is queued behind one without a limit
                client = await answered(made, Client("/", headers=headers))
                assert client.status == 408
                assert "late" in client.text
                assert re.search(r"after 0\.0[5-9]\d* s", client.text)
                endless = Client("/", headers=[(b"x-request-timeout-seconds", b"0")])
                running = asyncio.ensure_future(endless.run(made.proxy))
                await until(lambda: made.router.ledger.open == 1)
                made.proxy.end(made.proxy.open, "next")
                await running
            assert made.replicas["/"].exchanges[0].head.timeout_s == pytest.approx(0.05, abs=0.05)

    run(test())


def test_a_body_that_does_not_come_in_time_is_408() -> None:
    async def test() -> None:
        async with world({"/": echo}, HttpOptions(request_timeout_s=0.05)) as made:
            client = await answered(made, Client("/", "POST", body_headers(10)))
            assert client.status == 408
            assert "body did not arrive" in client.text
            assert made.router.ledger.accepted == 0

    run(test())


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
        (BackPressureError("the queue is full"), 503, ["The queue is full."], []),
        (DeploymentUnavailableError("it failed to start"), 503, ["It failed to start."], [b"1"]),
        (MethodNotFoundError("no method 'x'"), 500, ["no method 'x'", "the-id"], []),
    ],
)
def test_errors_become_statuses_and_short_texts(
    error: BaseException, status: int, words: list[str], retry_after: list[bytes]
) -> None:
    async def test() -> None:
        async with world({"/": failing(error, "Traceback: secret")}) as made:
            client = await answered(made, Client("/", headers=[(b"x-request-id", b"the-id")]))
            assert client.status == status
            assert all(word.lower() in client.text.lower() for word in words)
            assert "secret" not in client.text
            assert client.header(b"retry-after") == retry_after
            assert client.header(b"content-type") == [b"text/plain; charset=utf-8"]
            assert client.header(b"x-request-id") == [b"the-id"]

    run(test())


def test_the_traceback_is_shown_only_when_asked_for() -> None:
    async def test() -> None:
        handler = failing(ZeroDivisionError("division"), "Traceback:\n  line 7")
        async with world({"/": handler}, HttpOptions(show_traceback=True)) as made:
            client = await answered(made, Client("/"))
            assert "Traceback:\n  line 7" in client.text

    run(test())


def test_a_full_queue_is_refused_and_says_so() -> None:
    async def test() -> None:
        limits = {"max_ongoing_requests": 1, "max_queued_requests": 1}
        async with world({"/": forever}, **limits, backpressure_status=429, retry_after_s=1.5) as made:
            running = asyncio.ensure_future(Client("/").run(made.proxy))
            await until(lambda: made.replicas["/"].exchanges)
            waiting = asyncio.ensure_future(Client("/").run(made.proxy))
            await until(lambda: made.router.ledger.open == 2)
            refused = Client("/")
            await refused.run(made.proxy)
            assert (refused.status, refused.header(b"retry-after")) == (429, [b"2"])
            made.proxy.end(made.proxy.open, "stop")
            await asyncio.gather(running, waiting)

    run(test())


def test_a_replica_that_dies_ends_its_requests_at_once() -> None:
    async def test() -> None:
        async def die(exchange: Exchange) -> None:
            await asyncio.sleep(0.01)
            exchange.session.transport.abort()

        async with world({"/": die}) as made:
            client = await answered(made, Client("/"))
            assert client.status == 500
            assert "died" in client.text

    run(test())


def test_a_deployment_that_cannot_start_is_503() -> None:
    async def test() -> None:
        async with world({"/": hello}) as made:
            target = DeploymentTarget("app/", "D", 1, -1, (), "its constructor raised ValueError")
            made.router.apply(Snapshot(2, False, {"app//D": target}))
            client = await answered(made, Client("/"))
            assert client.status == 503
            assert "constructor raised ValueError" in client.text
            gone = Snapshot(3, False, {"app//D": None})
            made.router.apply(gone)
            assert (await answered(made, Client("/"))).status == 503

    run(test())


@pytest.mark.parametrize("status", [0, 99, 101, 1000, -1])
def test_an_impossible_status_is_the_applications_fault(status: int) -> None:
    async def test() -> None:
        async def odd(exchange: Exchange) -> None:
            exchange.reply_http(ReplyHead(status, []), b"")

        async with world({"/": odd}) as made:
            client = await answered(made, Client("/"))
            assert client.status == 500
            assert str(status) in client.text

    run(test())


def test_head_and_empty_answers() -> None:
    async def test() -> None:
        async def sized(exchange: Exchange) -> None:
            exchange.reply_http(ReplyHead(200, [(b"content-length", b"99")]), b"")

        async def nothing(exchange: Exchange) -> None:
            exchange.reply_http(ReplyHead(204, []), b"")

        async with world({"/": sized, "/n": nothing}) as made:
            assert (await answered(made, Client("/", "HEAD"))).header(b"content-length") == [b"99"]
            assert (await answered(made, Client("/", "GET"))).header(b"content-length") == [b"0"]
            assert (await answered(made, Client("/n"))).header(b"content-length") == []

    run(test())


def test_replaced_replicas_are_used_without_a_pause() -> None:
    async def test() -> None:
        async with world({"/": hello}) as made:
            assert (await answered(made, Client("/"))).text == "hello"
            await made.mount({"/": echo})
            client = Client("/", "POST", body_headers(2))
            client.put(b"ab")
            assert (await answered(made, client)).text in ("ab", "hello")
            assert ReplicaTarget("r", made.replicas["/"].address)

    run(test())
