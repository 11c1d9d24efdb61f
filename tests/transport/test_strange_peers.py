"""The contract against who keeps none: silence, garbage, other versions, half a connection, one who never reads."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from skate.core.errors import CallTimeoutError, NotRunningError, SkateError, WireError
from skate.dataplane.transport import exchange as exchanges
from skate.dataplane.transport import framed
from skate.dataplane.transport.exchange import Exchange
from skate.dataplane.transport.peers import connect, listen
from skate.dataplane.wire import frames as f
from skate.dataplane.wire.connection import Connection
from skate.dataplane.wire.head import Hello, encode_head
from tests.transport.conftest import Run
from tests.transport.world import Heard, dial, head, raw_callee, until

HELLO = Connection("caller").hello("raw")
OTHER_VERSION = f.pack(f.HELLO, 0, 0, 0, encode_head(Hello(99, "x")))
LONG_HELLO = f.pack(f.HELLO, 0, 0, 0, bytes(100_000))
BAD = {
    "http": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "does not speak this protocol"),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(9), "does not speak this protocol"),
    "version": (OTHER_VERSION, "version 99"),
    "long": (LONG_HELLO, "above the limit"),
    "no hello": (f.pack(f.CHUNK, 1, 0, 0, b"x"), "does not speak this protocol"),
    "unreadable": (f.pack(f.HELLO, 0, 0, 0, b"\x91" * 200), "hello"),
}
LATER = {
    "garbage": (b"\xff" * 64, "unknown frame kind"),
    "too long": (f.HEADER.pack(f.FRAME_MAX + 1, 1, f.CHUNK, 0, 0), "above the limit"),
    "second hello": (HELLO, "HELLO"),
    "not opened": (f.pack(f.CHUNK, 9, 0, 0, b"x"), "never opened"),
    "bad head": (f.pack(f.CALL, 1, f.HEADED | f.LAST, 0, f.join_head(b"\xc1", b"")), "head"),
}


async def answers(address: str) -> None:
    """Whoever listens there serves others as ever."""
    peer = await connect(address, "caller")
    assert await peer.ask("x", b"y") == b"y"
    peer.close()


def echo(exchange: Exchange) -> None:
    exchange.reply(exchange.body)


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize("what", [*BAD, *(f"later: {name}" for name in LATER)])
def test_who_breaks_the_protocol_is_closed_and_nobody_else(
    run: Run, address: str, what: str, bytewise: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        listener = await listen(address, echo, "callee")
        data, words = LATER[what[7:]] if what.startswith("later") else BAD[what]
        raw = await dial(listener.address)
        if what.startswith("later"):
            raw.say(HELLO)
        for start in range(0, min(len(data), 300), 1) if bytewise else (0,):
            raw.say(data[start : start + 1] if bytewise else data)
        await until(lambda: raw.lost)
        await until(lambda: not listener.listening.sessions)
        assert any(words in record.getMessage() for record in caplog.records), caplog.text
        assert raw.frames("caller") == []  # beside our hello nothing was said
        await answers(listener.address)
        await listener.close()

    run(test())


@pytest.mark.parametrize("what", BAD)
def test_a_caller_learns_what_is_wrong_with_the_other_side(run: Run, address: str, what: str) -> None:
    async def test() -> None:
        data, words = BAD[what]
        async with raw_callee(address) as (at, raw):
            connecting = asyncio.ensure_future(connect(at, "caller"))
            await until(lambda: raw.transport is not None)
            raw.say(data)
            with pytest.raises(WireError, match=words):
                await connecting
            await until(lambda: raw.lost)

    run(test())


def test_a_callee_that_breaks_the_protocol_loses_its_calls(run: Run, address: str) -> None:
    async def test() -> None:
        async with raw_callee(address) as (at, raw):
            connecting = asyncio.ensure_future(connect(at, "caller"))
            await until(lambda: raw.transport is not None)
            raw.say(Connection("callee").hello("raw"))
            peer = await connecting
            first, second = Heard(peer).open(), Heard(peer).open()
            await until(lambda: len(raw.frames("callee")) == 2)
            raw.say(f.pack(f.CHUNK, first.id, f.LAST, 0, b"x"))
            assert await first.ends() == "last"
            raw.say(f.pack(f.CALL, 1, 0, 0, b""))
            assert await second.ends() == "lost"
            await until(lambda: raw.lost)

    run(test())


@pytest.mark.parametrize("said", [b"", HELLO[:5], HELLO[:-1]])
def test_who_never_says_hello_is_closed(
    run: Run, address: str, said: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(exchanges, "HELLO_S", 0.05)

    async def test() -> None:
        listener = await listen(address, echo, "callee")
        silent = await dial(listener.address)
        polite = await dial(listener.address)
        polite.say(HELLO)
        if said:
            silent.say(said)
        await until(lambda: silent.lost)
        assert "no hello within 0.05 s" in caplog.text
        assert len(listener.listening.sessions) == 1 and not polite.lost
        await answers(listener.address)
        await listener.close()
        await until(lambda: polite.lost)

    run(test())


def test_a_callee_that_never_says_hello_is_given_up(run: Run, address: str) -> None:
    async def test() -> None:
        async with raw_callee(address) as (at, raw):
            with pytest.raises(CallTimeoutError, match="hello"):
                await connect(at, "caller", timeout_s=0.05)
            await until(lambda: raw.lost)

    run(test())


def test_a_callee_that_hangs_up_before_its_hello_is_no_callee(run: Run, address: str) -> None:
    async def test() -> None:
        async with raw_callee(address) as (at, raw):
            connecting = asyncio.ensure_future(connect(at, "caller"))
            await until(lambda: raw.transport is not None)
            raw.transport.close()
            with pytest.raises((WireError, NotRunningError)):
                await connecting

    run(test())


def test_nobody_listens(run: Run, address: str) -> None:
    async def test() -> None:
        at = address.replace(":0", ":1")  # nothing listens on port 1
        with pytest.raises(NotRunningError, match="nobody listens"):
            await connect(at, "caller")

    run(test())


def test_a_caller_that_sends_no_more_is_gone(run: Run, sockets: str) -> None:
    """One half of a connection is none: nothing could be cancelled, no credit could come."""

    async def test() -> None:
        reasons: list[str] = []
        taken: list[Exchange] = []

        def accept(exchange: Exchange) -> None:
            exchange.on_cancel = lambda reason, *cause: reasons.append(reason)
            taken.append(exchange)

        listener = await listen(sockets, accept, "callee")
        raw = await dial(listener.address)
        raw.say(HELLO + f.pack(f.CALL, 1, f.HEADED | f.LAST, 0, f.join_head(head(), b"")))
        await until(lambda: taken)
        raw.transport.write_eof()
        await until(lambda: reasons and not listener.listening.sessions and raw.lost)
        assert "gone" in reasons[0]
        await listener.close()

    run(test())


def test_a_callee_that_sends_no_more_is_gone(run: Run, sockets: str) -> None:

    async def test() -> None:
        async with raw_callee(sockets) as (at, raw):
            connecting = asyncio.ensure_future(connect(at, "caller"))
            await until(lambda: raw.transport is not None)
            raw.say(Connection("callee").hello("raw"))
            peer = await connecting
            heard = Heard(peer).open()
            raw.say(f.pack(f.CHUNK, heard.id, 0, 0, b"half"))
            await until(lambda: heard.chunks)
            raw.transport.write_eof()
            assert await heard.ends() == "lost"
            await until(lambda: raw.lost)

    run(test())


def test_a_caller_that_calls_and_never_reads_fills_no_memory(
    run: Run, sockets: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Last chunks need no credit; so its calls are no longer read while it leaves their answers lying."""
    monkeypatch.setattr(exchanges, "HOLD_MAX", 5_000_000)
    calls, size = 400, 200_000

    async def test() -> None:
        listener = await listen(sockets, lambda exchange: exchange.reply(bytes(size)), "callee")
        raw = await dial(listener.address)
        raw.transport.pause_reading()
        raw.say(HELLO)
        await until(lambda: [session for session in listener.listening.sessions if session.wire.peer_name])
        (session,) = listener.listening.sessions
        for call in range(1, calls + 1):
            raw.say(f.pack(f.CALL, call, f.HEADED | f.LAST, 0, f.join_head(head(), bytes(10_000))))
            await asyncio.sleep(0)
        await until(lambda: session._holding)
        for _ in range(100):
            await asyncio.sleep(0)
        assert session.transport is not None
        # what it held when it stopped, and the answers to one read
        assert session.transport.get_write_buffer_size() < 5_000_000 + 30 * size + framed.WRITE_HIGH
        raw.transport.resume_reading()  # and all of it comes when it reads again
        await until(lambda: len(raw.heard) >= calls * (size + f.HEADER_SIZE))
        await until(lambda: not session.exchanges)
        answered = sum(kind == f.CHUNK for kind, *_ in frames_of(bytes(raw.heard)))
        assert answered == calls and not session._holding
        raw.transport.abort()
        await listener.close()

    run(test())


def frames_of(data: bytes) -> list[f.Frame]:
    return f.Cutter().feed(data)


@pytest.mark.parametrize("who", ["caller", "callee"])
def test_a_connection_whose_other_side_never_reads_again_can_be_closed(
    run: Run, sockets: str, who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(framed, "CLOSE_S", 0.05)

    async def test() -> None:
        if who == "callee":
            listener = await listen(sockets, lambda exchange: exchange.reply(os.urandom(20_000_000)), "callee")
            raw = await dial(listener.address)
            raw.transport.pause_reading()
            raw.say(HELLO + f.pack(f.CALL, 1, f.HEADED | f.LAST, 0, f.join_head(head(), b"")))
            await until(lambda: any(session.is_stuck for session in listener.listening.sessions))
            await listener.close()
            await until(lambda: not listener.listening.sessions)
            raw.transport.abort()
            return
        async with raw_callee(sockets) as (at, raw):
            connecting = asyncio.ensure_future(connect(at, "caller"))
            await until(lambda: raw.transport is not None)
            raw.say(Connection("callee").hello("raw"))
            peer = await connecting
            raw.transport.pause_reading()
            heard = Heard(peer).open(bytes(20_000_000))
            await asyncio.sleep(0)
            peer.close()
            assert await heard.ends() == "lost"

    run(test())


def test_a_full_line_holds_streams_back_and_goes_on(run: Run, address: str) -> None:
    """``pause_writing`` of the transport below counts as no credit, on both sides."""

    async def test() -> None:
        go = asyncio.Event()
        tasks: list[asyncio.Task[None]] = []

        async def flood(exchange: Exchange) -> None:
            await go.wait()
            for _ in range(20):
                await exchange.send(b"x" * 10_000)
            exchange.end()

        listener = await listen(address, lambda exchange: tasks.append(asyncio.ensure_future(flood(exchange))), "s")
        peer = await connect(listener.address, "caller")
        try:
            heard = Heard(peer).open(complete=False)
            await until(lambda: tasks)
            (session,) = listener.listening.sessions
            session.pause_writing()
            peer.pause_writing()
            go.set()
            for _ in range(50):
                await asyncio.sleep(0)
            assert not peer.may_send(heard.id) and not heard.chunks and not tasks[0].done()
            session.resume_writing()
            peer.resume_writing()
            assert peer.may_send(heard.id) and "credit" in heard.marks
            assert await heard.ends() == "last" and len(heard.chunks) == 21
        finally:
            peer.close()
            await listener.close()

    run(test())


def test_an_answer_whose_error_is_unreadable_ends_the_call(run: Run, address: str) -> None:
    async def test() -> None:
        async with raw_callee(address) as (at, raw):
            connecting = asyncio.ensure_future(connect(at, "caller"))
            await until(lambda: raw.transport is not None)
            raw.say(Connection("callee").hello("raw"))
            peer = await connecting
            asking = asyncio.ensure_future(peer.ask("x"))
            await until(lambda: raw.frames("callee"))
            raw.say(f.pack(f.ERROR, 1, 0, 0, b"\xff\xff"))
            with pytest.raises(SkateError, match="unreadable"):
                await asking
            peer.close()

    run(test())


def test_a_socket_file_of_a_dead_process_is_no_hindrance(run: Run, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/s"

    async def test() -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(f"{tmp_path}/s")
        with pytest.raises(NotRunningError):
            await connect(address, "caller")
        listener = await listen(address, echo, "callee")
        await answers(address)
        await listener.close()

    run(test())
