"""The mark: what a callee has started is known after it died, without a frame."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skate.dataplane.transport.exchange import Exchange
from skate.dataplane.transport.mark import Mark, attached, note, offered
from skate.dataplane.transport.peers import connect, listen
from skate.dataplane.wire.head import PYTHON, CallHead, encode_head

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no memfd")
HEAD = encode_head(CallHead(PYTHON, "m", "r"))
WAIT_S = 10.0


class Heard:
    """What one call was told."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wire_started(self) -> None:
        self.heard.append("started")

    def wire_chunk(self, body: bytes, headed: bool, last: bool) -> None:
        self.heard.append("chunk")

    def wire_failed(self, body: bytes) -> None:
        self.heard.append("failed")

    def wire_refused(self, returned: bool) -> None:
        self.heard.append("refused")

    def wire_credit(self) -> None: ...

    def wire_lost(self, error: Exception | None) -> None:
        self.heard.append("lost")
        self.end.set_result(None)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there


def test_it_covers_what_was_noted_and_all_before_it_ids_going_round(pair: tuple[socket.socket, socket.socket]) -> None:
    given = offered(pair[0])
    assert given is not None
    memory = attached(pair[1], os.getpid(), given.fd)
    assert memory is not None and not given.covers(1)
    note(memory, 7)
    assert [given.covers(call) for call in (1, 6, 7, 8, 1000)] == [True, True, True, False, False]
    note(memory, 2)  # the ids have gone round
    assert given.covers((1 << 32) - 5) and given.covers(2) and not given.covers(3)
    given.close()
    note(memory, 9)  # harmless, whoever is gone
    memory.close()


def test_only_a_mark_of_the_process_at_the_other_end_is_written_to(
    pair: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    given = Mark()
    assert attached(pair[0], os.getpid() + 1, given.fd) is None  # not who is connected
    assert attached(pair[0], os.getpid(), -1) is None and attached(None, os.getpid(), given.fd) is None
    file = os.open(tmp_path / "precious", os.O_RDWR | os.O_CREAT)
    os.write(file, bytes(4096))
    assert attached(pair[0], os.getpid(), file) is None
    with socket.socket() as tcp:
        assert offered(tcp) is None and attached(tcp, os.getpid(), given.fd) is None
    os.close(file)
    given.close()


def test_a_callee_that_is_killed_leaves_word_of_what_it_started(tmp_path: Path) -> None:
    """Two calls arrive, one is begun, then SIGKILL: the first was started, the second was not."""
    address = f"unix:{tmp_path}/s"
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(_begin_one_and_wait(address, writer))
        finally:
            os._exit(1)

    async def main() -> None:
        async with asyncio.timeout(WAIT_S):
            await asyncio.get_running_loop().run_in_executor(None, os.read, reader, 1)
            peer = await connect(address, "caller")
            first, second = Heard(), Heard()
            for sink in (first, second):
                peer.open(sink, HEAD, b"", True)
            await asyncio.get_running_loop().run_in_executor(None, os.read, reader, 1)
            assert not first.heard  # no frame said so
            os.kill(child, signal.SIGKILL)
            await asyncio.gather(first.end, second.end)
            assert first.heard == ["started", "lost"] and second.heard == ["lost"]
            assert peer.mark is None

    try:
        asyncio.run(main())
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        os.close(writer)


async def _begin_one_and_wait(address: str, writer: int) -> None:
    came = 0

    def accept(exchange: Exchange) -> None:
        nonlocal came
        came += 1
        if came == 1:
            exchange.begin()
        else:
            os.write(writer, b"2")

    await listen(address, accept, "callee")
    os.write(writer, b"1")
    await asyncio.sleep(WAIT_S)


@pytest.mark.parametrize("away", ["memfd", "proc"])
def test_without_it_frames_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: str) -> None:
    nothing: Callable[..., None] = lambda *_: None  # noqa: E731
    if away == "memfd":
        monkeypatch.setattr("skate.dataplane.transport.peers.offered", nothing)
    else:
        monkeypatch.setattr("skate.dataplane.transport.exchange.attached", nothing)

    async def main() -> None:
        async with asyncio.timeout(WAIT_S):
            listener = await listen(f"unix:{tmp_path}/s", lambda exchange: exchange.begin(), "callee")
            peer = await connect(f"unix:{tmp_path}/s", "caller")
            heard = Heard()
            peer.open(heard, HEAD, b"", True)
            while not heard.heard:
                await asyncio.sleep(0)
            assert heard.heard == ["started"]
            peer.close()
            await listener.close()

    asyncio.run(main())


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    def files() -> int:
        return len(os.listdir("/proc/self/fd"))

    async def main() -> None:
        async with asyncio.timeout(WAIT_S):
            listener = await listen(f"unix:{tmp_path}/s", lambda exchange: exchange.reply(b""), "callee")
            before = files()
            for _ in range(20):
                peer = await connect(f"unix:{tmp_path}/s", "caller")
                assert peer.mark is not None
                peer.close()
                while peer.mark is not None or listener.listening.sessions:
                    await asyncio.sleep(0)
            assert files() == before
            await listener.close()

    asyncio.run(main())
