from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from benchmarks import clients

# -- order ----------------------------------------------------------------------------------------


def test_in_order_nobody_is_overtaken() -> None:
    rows = [(at / 100, at / 100 + 1) for at in range(50)]
    assert clients.inversions(rows) == {"overtaken %": 0.0, "overtakers, most": 0}


def test_one_that_waits_for_all_others_is_overtaken_by_all_of_them() -> None:
    rows = [(0.0, 9.0)] + [(at / 100, at / 100 + 1) for at in range(1, 10)]
    assert clients.inversions(rows) == {"overtaken %": 10.0, "overtakers, most": 9}


def test_what_was_sent_at_about_the_same_time_has_no_order() -> None:
    assert clients.inversions([(0.0, 2.0), (0.0005, 1.0)])["overtaken %"] == 0
    assert clients.inversions([(0.0, 2.0), (0.0015, 1.0)])["overtaken %"] == 50
    assert clients.inversions([(0.0, 1.0005), (0.5, 1.0)])["overtaken %"] == 0


def test_of_nothing_nothing_is_overtaken() -> None:
    assert clients.inversions([])["overtaken %"] == 0


# -- arrivals -------------------------------------------------------------------------------------


def test_arrivals_without_a_seed_are_even() -> None:
    assert clients.arrivals(4, 1.0, None) == [0, 0.25, 0.5, 0.75]


@given(some.floats(1, 500), some.floats(0.1, 5), some.integers(0, 1000))
def test_arrivals_with_a_seed_are_the_same_again_and_in_order(rate: float, seconds: float, seed: int) -> None:
    found = clients.arrivals(rate, seconds, seed)
    assert found == sorted(found) == clients.arrivals(rate, seconds, seed)
    assert all(0 <= at < seconds for at in found)


# -- against a server on the same loop ------------------------------------------------------------

Client = Callable[[int], Awaitable[dict[str, Any]]]


def _against(answers: Callable[[bytes], bytes], client: Client) -> dict[str, Any]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                writer.write(answers(head))
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    async def main() -> dict[str, Any]:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            return await client(server.sockets[0].getsockname()[1])

    return asyncio.run(main())


def _answer(status: str, body: bytes = b"ok", head: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n{head}\r\n".encode() + body


def test_a_load_that_does_not_wait_tells_answers_from_refusals() -> None:
    seen = _against(
        lambda head: _answer("200 OK") if b"/good" in head else _answer("503 No", head="Retry-After: 1\r\n"),
        lambda port: clients.offered(port, ["/good", "/bad"], rate=200, seconds=0.1, connections=2),
    )
    assert (seen["answered"], seen["refused/s"], seen["offered/s"]) == (10, 100, 200)
    assert 0 < seen["good/s"] <= 100
    assert seen["refusal"]["status"] == "503"
    assert seen["refusal"]["retry-after"] == "1"
    assert (seen["others"], seen["unanswered"]) == ({}, 0)
    assert seen["admitted p99 ms"] > 0


def test_a_load_that_does_not_wait_counts_what_is_neither() -> None:
    seen = _against(
        lambda head: _answer("500 Bad"),
        lambda port: clients.offered(port, ["/"], rate=100, seconds=0.05, seed=1, connections=1),
    )
    assert list(seen["others"]) == ["status 500"]
    assert "admitted p99 ms" not in seen


def test_callers_in_a_circle_read_when_each_began() -> None:
    def answers(head: bytes) -> bytes:
        return _answer("200 OK", repr(clients.monotonic()).encode())

    seen = _against(answers, lambda port: clients.order(port, "/", connections=2, seconds=0.05))
    assert seen["requests/s"] > 0
    assert seen["not answered"] == 0
    assert "overtaken %" in seen


@pytest.mark.parametrize("echo", [True, False])
def test_a_websocket_client_takes_nothing_but_its_echo(echo: bool) -> None:
    frame = bytes([0x81, len(clients.MESSAGE)]) + (clients.MESSAGE if echo else bytes(len(clients.MESSAGE)))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 101 Switching\r\n\r\n")
            while await reader.readexactly(len(frame) + 4):  # the mask
                writer.write(frame)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    async def main() -> dict[str, Any]:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await clients.websocket(port, "/", connections=2, seconds=0.02)

    if echo:
        assert asyncio.run(main())["messages/s"] > 0
    else:
        with pytest.raises(clients.ClientError, match="another message"):
            asyncio.run(main())


def test_a_websocket_client_says_when_there_is_none() -> None:
    with pytest.raises(clients.ClientError, match="no WebSocket"):
        _against(
            lambda head: _answer("403 Forbidden"),
            lambda port: clients.websocket(port, "/", connections=1, seconds=0.05),
        )


def test_slow_readers_read_and_go_away() -> None:
    body = bytes(1 << 20)
    seen = _against(
        lambda head: _answer("200 OK", body), lambda port: clients.slow_readers(port, "/", connections=2, seconds=0.05)
    )
    assert seen["readers that got something"] == 2
    assert 0 < seen["read MB"] < 2
