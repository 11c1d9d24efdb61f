"""Every test of the contract runs on every transport and on both event loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from skate.dataplane.transport.exchange import Exchange
from skate.dataplane.transport.peers import Listener, Peer, connect, listen
from tests.transport.world import LIMIT_S, Play, Raw, Scene

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine, with a limit, on a loop of this kind."""
    make = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run(test: Coroutine[Any, Any, None]) -> None:
        async def bounded() -> None:
            try:
                async with asyncio.timeout(2 * LIMIT_S):
                    await test
            finally:  # a test that fails leaves lines full; uvloop's loops do not close before those are empty
                while Raw.all:
                    raw = Raw.all.pop()
                    if raw.transport is not None:
                        raw.transport.abort()

        with asyncio.Runner(loop_factory=make) as runner:
            runner.run(bounded())

    return run


@pytest.fixture(params=["memory", "unix", "tcp"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a callee may listen; with ``tcp`` the listener's own address says the port."""
    return {"memory": "memory:contract", "unix": f"unix:{tmp_path}/s", "tcp": "tcp:127.0.0.1:0"}[request.param]


@pytest.fixture(params=["unix", "tcp"])
def sockets(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same for what only the kernel can do: in memory nothing lies anywhere, and no connection has halves."""
    return {"unix": f"unix:{tmp_path}/s", "tcp": "tcp:127.0.0.1:0"}[request.param]


@pytest.fixture
def play(address: str, run: Run) -> Play:
    """Runs a scene over one transport, with everything closed at its end."""

    def play(scene: Scene) -> None:
        async def main() -> None:
            opened: list[tuple[Listener, Peer]] = []

            async def open(accept: Callable[[Exchange], None]) -> tuple[Listener, Peer]:
                listener = await listen(address, accept, "callee")
                peer = await connect(listener.address, "caller")
                opened.append((listener, peer))
                return listener, peer

            try:
                await scene(open)
            finally:
                for listener, peer in opened:
                    below = [end.transport for end in (peer, *listener.listening.sessions)]
                    peer.close()
                    await listener.close()
                    for transport in below:
                        if transport is not None:
                            transport.abort()

        run(main())

    return play
