"""What the wire owes its users when things end badly: processes that die, owners that fail, exceptions of odd kinds."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
import uvloop

from skate.core.errors import BackPressureError, PayloadTooLargeError, RemoteError, SkateError
from skate.dataplane.transport import framed, peers
from skate.dataplane.transport.exchange import Exchange
from skate.dataplane.transport.failure import UserFailure, decode_failure, described, encode_failure, rebuild
from skate.dataplane.transport.peers import Peer, connect, listen
from skate.dataplane.wire.connection import WINDOW, Connection
from skate.dataplane.wire.frames import CHUNK, LAST, STARTED, pack, pack_ids
from skate.dataplane.wire.head import PYTHON, CallHead, encode_head

LIMIT_S = 10.0
HEAD = encode_head(CallHead(PYTHON, "m", "r1"))


class Marks:
    """A sink that keeps what it hears, in order."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def wire_started(self) -> None:
        self.heard.append("started")

    def wire_chunk(self, body: bytes, headed: bool, last: bool) -> None:
        self.heard.append("chunk")

    def wire_failed(self, body: bytes) -> None:
        self.heard.append("failed")

    def wire_refused(self, returned: bool) -> None:
        self.heard.append("refused")

    def wire_credit(self) -> None:
        pass

    def wire_lost(self, error: Exception | None) -> None:
        self.heard.append("lost")


async def until(condition: Any) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0)


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_what_a_dead_process_had_said_is_heard_even_when_a_write_finds_it_dead(runner: Any, tmp_path: Path) -> None:
    """A write that fails ends the connection before it is read; calls that were answered must not run again."""

    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{tmp_path}/s")
            listener.listen()
            connecting = asyncio.create_task(connect(f"unix:{tmp_path}/s", "caller"))
            await asyncio.sleep(0)
            listener.settimeout(LIMIT_S)
            replica, _ = listener.accept()
            with replica:
                replica.sendall(Connection("callee").hello("replica"))
                peer: Peer = await connecting
                answered, started, waiting, late = Marks(), Marks(), Marks(), Marks()
                first, second = (peer.open(sink, HEAD, b"", True) for sink in (answered, started))
                peer.open(waiting, HEAD, b"", True)
                await asyncio.sleep(0)  # they leave
                replica.recv(65536)
                replica.sendall(pack(STARTED, 0, 0, 0, pack_ids([first, second])) + pack(CHUNK, first, LAST, 0, b"x"))
            peer.open(late, HEAD, b"", True)  # the process is dead, the loop has read nothing of that yet
            peer.flush()
            await until(lambda: late.heard)
            assert answered.heard == ["started", "chunk"]
            assert started.heard == ["started", "lost"]
            assert waiting.heard == late.heard == ["lost"]

    runner(main())


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
@pytest.mark.parametrize(("broken", "heard"), [(False, ["lost"]), (True, ["started", "lost"])])
def test_what_was_said_last_may_be_lost_with_a_link(runner: Any, broken: bool, heard: list[str]) -> None:
    """Over a network nobody knows what a callee had begun when the link broke; so nothing of it is sent again."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            connecting = asyncio.create_task(connect(f"tcp:127.0.0.1:{listener.getsockname()[1]}", "caller"))
            await asyncio.sleep(0)
            listener.settimeout(LIMIT_S)
            replica, _ = listener.accept()
            with replica:
                replica.sendall(Connection("callee").hello("replica"))
                peer: Peer = await connecting
                sent = Marks()
                peer.open(sent, HEAD, b"", True)
                peer.flush()
                while b"r1" not in replica.recv(65536):
                    pass
                if broken:
                    replica.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await until(lambda: sent.heard[-1:] == ["lost"])
            assert sent.heard == heard

    runner(main())


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux says for how long it sends in vain")
def test_a_link_that_is_silent_counts_as_lost() -> None:
    async def main() -> None:
        listener = await listen("tcp:127.0.0.1:0", lambda exchange: None, "callee")
        peer = await connect(listener.address, "caller")
        for end in (peer, *listener.listening.sessions):
            assert end.transport is not None
            line = end.transport.get_extra_info("socket")
            assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == framed.SILENT_S * 1000
            assert line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        peer.close()
        await listener.close()

    asyncio.run(main())


def test_a_call_that_is_too_large_is_refused_and_the_connection_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        listener = await listen("memory:large", lambda exchange: exchange.reply(b""), "callee")
        peer = await connect("memory:large", "caller")
        monkeypatch.setattr(peers, "FRAME_MAX", 1000)
        with pytest.raises(PayloadTooLargeError, match="above the limit"):
            peer.open(Marks(), HEAD, b"x" * 1000, True)
        assert not peer.sinks and not peer.wire.calls
        other = Marks()
        peer.open(other, HEAD, b"x", True)
        await until(lambda: other.heard)
        peer.close()
        await listener.close()

    asyncio.run(main())


def test_tasks_that_send_and_receive_at_the_same_time_are_all_woken() -> None:
    async def main() -> None:
        exchanges: list[Exchange] = []
        listener = await listen("memory:crowd", exchanges.append, "callee")
        peer = await connect("memory:crowd", "caller")
        sink = Marks()
        call = peer.open(sink, HEAD, b"", False)
        await until(lambda: exchanges)
        exchange = exchanges[0]
        assert exchange.send_nowait(b"x" * WINDOW)  # the credit is used up
        senders = [asyncio.create_task(exchange.send(b"y" * WINDOW)) for _ in range(3)]
        readers = [asyncio.create_task(exchange.receive()) for _ in range(3)]
        await asyncio.sleep(0)
        senders[0].cancel()
        for taken in (1, 2, 3):
            await until(lambda taken=taken: sink.heard.count("chunk") == taken)
            peer.take(call, WINDOW)
        await until(lambda: all(task.done() for task in senders))
        for last in (False, False, True):
            peer.send(call, b"z", last)
        await until(lambda: all(task.done() for task in readers))
        assert [task.result() for task in readers] == [b"z"] * 3
        assert not exchange._input_waiters and not exchange._output_waiters and "lost" not in sink.heard
        peer.close()
        await listener.close()

    asyncio.run(main())


def test_tasks_that_wait_for_a_full_transport_do_not_spend_the_credit_twice() -> None:
    async def main() -> None:
        exchanges: list[Exchange] = []
        listener = await listen("memory:full", exchanges.append, "callee")
        peer = await connect("memory:full", "caller")
        sink = Marks()
        peer.open(sink, HEAD, b"", True)
        await until(lambda: exchanges)
        exchange = exchanges[0]
        exchange.session.pause_writing()
        senders = [asyncio.create_task(exchange.send(b"y" * (WINDOW - 1000))) for _ in range(3)]
        await asyncio.sleep(0)
        exchange.session.resume_writing()
        await until(lambda: sink.heard.count("chunk") == 2)  # one from credit, one more may be larger than what is left
        for _ in range(20):
            await asyncio.sleep(0)
        assert "lost" not in sink.heard and [task.done() for task in senders] == [True, True, False]
        peer.close()
        await until(lambda: senders[2].done())
        await listener.close()

    asyncio.run(main())


def test_an_owner_that_fails_to_hear_of_a_lost_caller_costs_no_other_its_end(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        heard: list[str] = []
        exchanges: list[Exchange] = []
        listener = await listen("memory:owners", exchanges.append, "callee")
        listener.listening.on_session_lost = lambda session: heard.append("session")
        peer = await connect("memory:owners", "caller")
        for _ in range(2):
            peer.open(Marks(), HEAD, b"", True)
        await until(lambda: len(exchanges) == 2)

        def fail(*why: object) -> None:
            raise RuntimeError("a bug of ours")

        exchanges[0].on_cancel = fail
        exchanges[1].on_cancel = lambda *why: heard.append("call")
        peer.close()
        await until(lambda: heard == ["call", "session"])
        await listener.close()

    asyncio.run(main())
    assert "a bug of ours" in caplog.text


def test_a_connection_attempt_that_is_given_up_leaves_no_connection() -> None:
    async def main() -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            attempt = asyncio.create_task(connect(f"tcp:127.0.0.1:{listener.getsockname()[1]}", "caller"))
            listener.setblocking(False)
            loop = asyncio.get_running_loop()
            served, _ = await loop.sock_accept(listener)
            with served:
                assert await loop.sock_recv(served, 1000)  # its hello; it waits for ours
                attempt.cancel()
                async with asyncio.timeout(LIMIT_S):
                    assert await loop.sock_recv(served, 1000) == b""

    asyncio.run(main())


# -- failures -----------------------------------------------------------------------------------


class TwoArguments(SkateError):
    def __init__(self, a: str, b: str) -> None:
        super().__init__(a + b)


class NoArguments(BackPressureError):
    def __init__(self) -> None:
        super().__init__("full", 429, 2.0)


class ExitsWhenShown(Exception):
    def __str__(self) -> str:
        raise SystemExit

    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a file named \udcff"),
        ExitsWhenShown(),
        BackPressureError("a", "not a number", "soon"),  # type: ignore[arg-type]
        ExceptionGroup("g", [ValueError("\ud800")]),
    ],
)
def test_every_exception_can_be_sent_and_read(error: BaseException) -> None:
    assert isinstance(rebuild(decode_failure(encode_failure(error, "trace \udcff"))), Exception)
    assert described(error).encode()


def test_errors_derived_from_ours_arrive_as_ours() -> None:
    """Their constructors may take anything; only what all of ours have travels."""
    plain = decode_failure(encode_failure(TwoArguments("a", "b")))
    assert type(plain) is SkateError and str(plain) == "ab"
    full = decode_failure(encode_failure(NoArguments()))
    assert type(full) is BackPressureError and (full.status_code, full.retry_after_s) == (429, 2.0)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, StopAsyncIteration])
def test_what_would_steer_the_caller_arrives_as_an_error(kind: type[BaseException]) -> None:
    """A SystemExit there must not end the process here, a StopAsyncIteration there is no end of a stream here."""
    failure = decode_failure(encode_failure(kind(3)))
    assert isinstance(failure, UserFailure)
    error = rebuild(failure)
    assert type(error) is RemoteError and kind.__name__ in str(error)
