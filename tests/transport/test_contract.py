"""One contract for every transport: what a caller and a callee may rely on over memory, Unix sockets and TCP."""

from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import pytest

from skate.core.errors import CallTimeoutError, CancelCause, NotRunningError, RemoteTraceback, RequestCancelledError
from skate.dataplane.transport.exchange import Exchange
from skate.dataplane.transport.failure import decode_failure, rebuild
from skate.dataplane.transport.peers import connect, listen
from skate.dataplane.wire.connection import WINDOW
from skate.dataplane.wire.frames import ASKS
from tests.transport.world import LIMIT_S, Heard, Open, Play, head


def test_a_call_is_answered(play: Play) -> None:
    async def scene(open: Open) -> None:
        def accept(exchange: Exchange) -> None:
            assert exchange.head.request_id == "r1" and exchange.complete
            exchange.begin()
            asyncio.get_running_loop().call_soon(exchange.reply, exchange.body[::-1])

        _, peer = await open(accept)
        heard = Heard(peer)
        peer.open(heard, head(), b"abc", True, ASKS)
        assert await heard.end == "last"
        assert heard.chunks == [b"cba"] and heard.marks == ["started"]
        assert not peer.sinks and not peer.wire.calls

    play(scene)


def test_both_sides_know_each_other(play: Play) -> None:
    async def scene(open: Open) -> None:
        names: list[str] = []

        def accept(exchange: Exchange) -> None:
            names.append(exchange.session.peer_name)
            exchange.reply(b"")

        _, peer = await open(accept)
        heard = Heard(peer)
        peer.open(heard, head(), b"", True)
        await heard.end
        assert names == ["caller"] and peer.wire.peer_name == "callee"

    play(scene)


def test_a_large_body_arrives_whole_both_ways(play: Play) -> None:
    async def scene(open: Open) -> None:
        data = os.urandom(10 * 1024 * 1024)
        _, peer = await open(lambda exchange: exchange.reply(exchange.body))
        heard = Heard(peer)
        peer.open(heard, head(), data, True)
        await heard.end
        assert heard.chunks == [data]

    play(scene)


def test_input_and_output_stream_in_order(play: Play) -> None:
    async def scene(open: Open) -> None:
        tasks: list[asyncio.Task[None]] = []

        async def echo(exchange: Exchange) -> None:
            await exchange.send(exchange.body)
            while (chunk := await exchange.receive()) is not None:
                await exchange.send(chunk)
            exchange.end(b"end")

        _, peer = await open(lambda exchange: tasks.append(asyncio.ensure_future(echo(exchange))))
        heard = Heard(peer)
        heard.id = peer.open(heard, head(), b"0", False)
        for i in range(1, 100):
            peer.send(heard.id, str(i).encode(), i == 99)
        assert await heard.end == "last"
        assert heard.chunks == [str(i).encode() for i in range(100)] + [b"end"]

    play(scene)


def test_a_reader_that_takes_nothing_stops_the_writer(play: Play) -> None:
    async def scene(open: Open) -> None:
        sent = 0
        tasks: list[asyncio.Task[None]] = []

        async def flood(exchange: Exchange) -> None:
            nonlocal sent
            for _ in range(100):
                await exchange.send(b"x" * (WINDOW // 10))
                sent += 1
            exchange.end()

        _, peer = await open(lambda exchange: tasks.append(asyncio.ensure_future(flood(exchange))))
        heard = Heard(peer)
        take, peer.take = peer.take, lambda call, size: None  # type: ignore[method-assign]
        heard.id = peer.open(heard, head(), b"", True)
        while len(heard.chunks) < 10:
            await asyncio.sleep(0)
        for _ in range(200):
            await asyncio.sleep(0)
        assert sent <= 11 and not heard.end.done()
        peer.take = take  # type: ignore[method-assign]
        for chunk in heard.chunks:
            peer.take(heard.id, len(chunk))
        assert await heard.end == "last"
        assert sent == 100

    play(scene)


def test_refused_and_failed(play: Play) -> None:
    async def scene(open: Open) -> None:
        answers = [lambda e: e.refuse(), lambda e: e.fail(KeyError("k"), "remote trace")]
        _, peer = await open(lambda exchange: answers.pop(0)(exchange))
        first, second = Heard(peer), Heard(peer)
        peer.open(first, head(), b"", True)
        assert await first.end == "refused"
        peer.open(second, head(), b"", True)
        assert await second.end == "failed"
        error = rebuild(decode_failure(second.failure))
        assert isinstance(error, KeyError) and error.args == ("k",)
        assert isinstance(error.__cause__, RemoteTraceback) and "remote trace" in str(error.__cause__)

    play(scene)


def test_cancel_reaches_the_callee_once(play: Play) -> None:
    async def scene(open: Open) -> None:
        reasons: list[tuple[str, CancelCause]] = []
        accepted = asyncio.Event()

        def accept(exchange: Exchange) -> None:
            exchange.on_cancel = lambda *why: reasons.append(why)
            accepted.set()

        _, peer = await open(accept)
        heard = Heard(peer)
        id = peer.open(heard, head(), b"", True)
        await accepted.wait()
        peer.cancel(id, "no longer wanted", "timed_out")
        peer.cancel(id, "again")
        while not reasons:
            await asyncio.sleep(0)
        assert reasons == [("no longer wanted", "timed_out")] and not heard.end.done()

    play(scene)


def test_a_lost_caller_cancels_its_calls(play: Play) -> None:
    async def scene(open: Open) -> None:
        reasons: list[tuple[str, CancelCause]] = []
        accepted = asyncio.Event()

        def accept(exchange: Exchange) -> None:
            exchange.on_cancel = lambda *why: reasons.append(why)
            accepted.set()

        _, peer = await open(accept)
        heard = Heard(peer)
        peer.open(heard, head(), b"", True)
        await accepted.wait()
        peer.close()
        assert await heard.end == "lost"
        while not reasons:
            await asyncio.sleep(0)
        assert reasons == [("the process that made the call is gone", "caller_lost")]

    play(scene)


def test_a_lost_callee_is_heard_of_by_every_call(play: Play) -> None:
    async def scene(open: Open) -> None:
        sessions = []
        _, peer = await open(lambda exchange: sessions.append(exchange.session))
        lost = asyncio.Event()
        peer.on_lost = lambda _: lost.set()
        heard = [Heard(peer) for _ in range(3)]
        for one in heard:
            peer.open(one, head(), b"", True)
        while len(sessions) < 3:
            await asyncio.sleep(0)
        sessions[0].close()
        assert [await one.end for one in heard] == ["lost"] * 3
        await lost.wait()

    play(scene)


def test_ask(play: Play) -> None:
    async def scene(open: Open) -> None:
        def accept(exchange: Exchange) -> None:
            if exchange.head.method == "echo":
                exchange.reply(exchange.body)
            elif exchange.head.method == "fail":
                exchange.fail(NotRunningError("gone"))

        _, peer = await open(accept)
        assert await peer.ask("echo", b"x") == b"x"
        with pytest.raises(NotRunningError, match="gone"):
            await peer.ask("fail")
        with pytest.raises(CallTimeoutError, match="'silent'"):
            await peer.ask("silent", timeout_s=0.02)
        peer.close()
        with pytest.raises((RequestCancelledError, NotRunningError)):
            await peer.ask("echo")

    play(scene)


def test_garbage_ends_the_connection_and_nothing_else(tmp_path: Path) -> None:
    async def main() -> None:
        listener = await listen(f"unix:{tmp_path}/s", lambda exchange: exchange.reply(b"ok"), "callee")
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 4, b"\xff" * 64):
            reader, writer = await asyncio.open_unix_connection(f"{tmp_path}/s")
            writer.write(garbage)
            await reader.read()  # hello, then the end
            assert reader.at_eof()
            writer.close()
            await writer.wait_closed()
        peer = await connect(listener.address, "caller")
        assert await peer.ask("x") == b"ok"
        peer.close()
        await listener.close()

    asyncio.run(asyncio.wait_for(main(), LIMIT_S))


def test_a_unix_socket_is_private_and_goes_away(tmp_path: Path) -> None:
    async def main() -> None:
        listener = await listen(f"unix:{tmp_path}/s", lambda exchange: None, "callee")
        assert stat.S_IMODE(os.stat(tmp_path / "s").st_mode) == 0o600
        await listener.close()
        assert not (tmp_path / "s").exists()
        with pytest.raises(NotRunningError, match="nobody listens"):
            await connect(f"unix:{tmp_path}/s", "caller")

    asyncio.run(asyncio.wait_for(main(), LIMIT_S))


def test_one_who_says_no_hello_is_given_up(tmp_path: Path) -> None:
    async def main() -> None:
        gone = asyncio.Event()

        async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()
            gone.set()

        server = await asyncio.start_unix_server(mute, f"{tmp_path}/s")
        with pytest.raises(CallTimeoutError, match="hello"):
            await connect(f"unix:{tmp_path}/s", "caller", timeout_s=0.05)
        server.close()
        await gone.wait()
        await server.wait_closed()
        await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(main(), LIMIT_S))


def test_what_one_call_does_wrong_costs_no_other_its_answer(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(open: Open) -> None:
        def accept(exchange: Exchange) -> None:
            if exchange.body == b"bad callee":
                raise RuntimeError("a bug of ours")
            exchange.reply(b"")

        class Clumsy(Heard):
            def wire_chunk(self, body: bytes, headed: bool, last: bool) -> None:
                raise RuntimeError("a bug of ours")

        _, peer = await open(accept)
        calls = [(Heard, b""), (Clumsy, b""), (Heard, b"bad callee"), (Heard, b"")]
        heard = [kind(peer) for kind, _ in calls]
        for sink, (_, body) in zip(heard, calls, strict=True):
            peer.open(sink, head(), body, True)
        ends = [await heard[i].end for i in (0, 2, 3)]
        assert ends == ["last", "failed", "last"] and not peer.closed

    play(scene)
    assert "a bug of ours" in caplog.text


def test_memory_is_shared_with_a_process_of_this_machine_only(play: Play) -> None:
    async def scene(open: Open) -> None:
        sessions = []

        def accept(exchange: Exchange) -> None:
            sessions.append(exchange.session)
            exchange.reply(b"")

        listener, peer = await open(accept)
        shared = listener.address.startswith("unix:")
        assert peer.wire.shares == shared  # known before the first call
        assert await peer.ask("x") == b""
        assert sessions[0].wire.shares == shared
        pid = os.getpid() if shared else 0
        assert peer.peer_pid == sessions[0].peer_pid == pid

    play(scene)


@pytest.mark.parametrize("size", [1, 40_000, 300_000, 5_000_000])
def test_large_bodies_arrive_whole(play: Play, size: int) -> None:
    async def scene(open: Open) -> None:
        body = bytes(range(251)) * (size // 251 + 1)

        def accept(exchange: Exchange) -> None:
            exchange.reply(b"<" + exchange.body + b">")

        _, peer = await open(accept)
        sinks = []
        for _ in range(3):
            sinks.append(Heard(peer))
            sinks[-1].id = peer.open(sinks[-1], head(), body, True)
        for heard in sinks:
            assert await heard.end == "last"
            assert heard.chunks == [b"<" + body + b">"] and type(heard.chunks[0]) is bytes

    play(scene)
