"""``/-/metrics`` of the proxy: for this machine only, and never in the way of a request."""

from __future__ import annotations

import asyncio

import pytest

from skate.core.errors import NotRunningError
from skate.dataplane.proxy import front as fronts
from skate.dataplane.proxy.address import is_local
from tests.proxy.conftest import Run
from tests.proxy.world import ask, dial, hello, served, until

LINES = b"# TYPE x counter\nx 1\n"


async def known() -> bytes:
    return LINES


def test_they_are_said_as_the_controller_says_them(run: Run) -> None:
    async def test() -> None:
        async with served({"/": hello}) as made:
            made.front.metrics = known
            async with dial(made) as client:
                for _ in range(2):  # on one connection
                    reply = await client.ask("/-/metrics")
                    assert (reply.status, reply.body) == (200, LINES)
                    assert reply.header(b"content-type") == [b"text/plain; version=0.0.4; charset=utf-8"]
                assert (await client.ask("/-/metrics", "HEAD")).header(b"content-length") == [b"%d" % len(LINES)]
                assert (await client.ask("/")).body == b"hello"
            assert made.router.ledger.accepted == 1

    run(test())


def test_before_the_first_application_too(run: Run) -> None:
    async def test() -> None:
        async with served(None) as made:
            made.front.metrics = known
            assert (await ask(made, "/-/metrics")).body == LINES

    run(test())


@pytest.mark.parametrize("header", [b"X-Forwarded-For", b"Forwarded", b"Via", b"X-Real-IP"])
def test_whom_a_proxy_in_front_speaks_for_sees_nothing(run: Run, header: bytes) -> None:
    async def test() -> None:
        async with served({"/": hello}) as made:
            made.front.metrics = known
            nothing = await ask(made, "/-/nothing")
            reply = await ask(made, "/-/metrics", headers=[(header, b"1.2.3.4")])
            assert reply.status == nothing.status == 404
            assert reply.text == nothing.text.replace("nothing", "metrics")
            assert (await ask(made, "/-/metrics", "POST", b"x")).status == 404

    run(test())


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True), ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False), ("fe80::1%eth0", False), ("0.0.0.0", False), ("not an address", False),
    ],
)  # fmt: skip
def test_who_is_local(host: str, local: bool) -> None:
    assert is_local((host, 1)) is local
    assert not is_local(None)


def test_without_a_controller_it_is_503_and_requests_go_on(run: Run) -> None:
    async def away() -> bytes:
        raise NotRunningError("away")

    async def test() -> None:
        async with served({"/": hello}) as made:
            made.front.metrics = away
            reply = await ask(made, "/-/metrics")
            assert (reply.status, reply.header(b"retry-after")) == (503, [b"1"])
            assert (await ask(made)).body == b"hello"

    run(test())


def test_a_slow_controller_holds_back_a_few_and_no_more(run: Run) -> None:
    asked: list[asyncio.Event] = []

    async def slow() -> bytes:
        asked.append(asyncio.Event())
        await asked[-1].wait()
        return LINES

    async def test() -> None:
        async with served({"/": hello}) as made, dial(made) as waiting, dial(made) as leaving:
            made.front.metrics = slow
            waiting.request("/-/metrics")
            waiting.request("/")  # waits behind it
            leaving.request("/-/metrics")
            await until(lambda: len(asked) == 2)
            leaving.leave()
            others = [asyncio.ensure_future(ask(made, "/-/metrics")) for _ in range(fronts.METRICS_MAX - 2)]
            await until(lambda: len(asked) == fronts.METRICS_MAX)
            assert (await ask(made, "/-/metrics")).status == 503
            for event in asked:
                event.set()
            assert (await waiting.reply()).body == LINES and (await waiting.reply()).body == b"hello"
            assert [reply.status for reply in await asyncio.gather(*others)] == [200] * len(others)

    run(test())
