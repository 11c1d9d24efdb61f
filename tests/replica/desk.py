"""A whole replica in this process, a controller that only listens, and callers: for tests of a replica's life."""

from __future__ import annotations

import asyncio
import gc
import itertools
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec

from skate.authoring.code import dumps
from skate.core import context
from skate.core.clock import SystemClock
from skate.core.options import deployment_options
from skate.core.specs import (
    CodeRef,
    DeploymentSpec,
    HealthReport,
    LoopReport,
    Reconfiguration,
    ReplicaConfig,
    ReplicaReport,
)
from skate.dataplane import caller as callers
from skate.dataplane.replica import worker
from skate.dataplane.transport.exchange import Exchange
from skate.dataplane.transport.peers import Peer, connect, listen
from skate.dataplane.wire.frames import AHEAD
from skate.dataplane.wire.head import PYTHON, CallHead, encode_head
from skate.engine.base import Life
from tests.replica.line import WAIT_S, Asked, until

_names = itertools.count(1)
_KINDS: dict[str, Any] = {"report_replica": ReplicaReport, "report_health": HealthReport, "report_loop": LoopReport}


class Ear:
    """A controller that notes what replicas say."""

    def __init__(self) -> None:
        self.replica: list[ReplicaReport] = []
        self.health: list[HealthReport] = []
        self.news = threading.Event()  # set at every report

    def accept(self, exchange: Exchange) -> None:
        kind = _KINDS.get(exchange.head.method)
        if kind is not None:
            report = msgspec.msgpack.decode(exchange.body, type=kind)
            if isinstance(report, ReplicaReport):
                self.replica.append(report)
            elif isinstance(report, HealthReport):
                self.health.append(report)
            self.news.set()
        if exchange.head.method != "snapshots":  # never ends
            exchange.reply(b"")

    @property
    def phases(self) -> list[str]:
        return [phase for phase, _ in itertools.groupby(report.phase for report in self.replica)]

    @property
    def strikes(self) -> list[int]:
        return [report.strikes for report in self.health]


class EarThread:
    """An Ear on a thread with a loop of its own: it hears while the loop of the test is blocked."""

    def __init__(self) -> None:
        self.ear = Ear()
        self.folder = tempfile.TemporaryDirectory(prefix="sk-")
        self.address = f"unix:{self.folder.name}/c.sock"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> EarThread:
        self._thread.start()
        self._listener = asyncio.run_coroutine_threadsafe(
            listen(self.address, self.ear.accept, "controller"), self._loop
        ).result(WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._listener.close(), self._loop).result(WAIT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()
        self.folder.cleanup()

    def hears(self, condition: Callable[[Ear], object], limit_s: float = 10.0) -> None:
        """Blocks this thread until the condition holds."""
        for _ in range(int(limit_s / 0.01)):
            if condition(self.ear):
                return
            self.ear.news.wait(0.01)
            self.ear.news.clear()
        raise AssertionError(f"not heard within {limit_s} s: {self.ear.phases} {self.ear.health}")


class Desk:
    """The replica that runs, and lines to it."""

    def __init__(self, ear: Ear, address: str, life: Life) -> None:
        self.ear = ear
        self.address = address
        self.life = life
        self.peer: Peer
        self.controller: Peer
        self.task: asyncio.Task[None]
        self.exit_code: Any = None

    def call(self, method: str = "__call__", *args: Any, stream: bool = False) -> Asked:
        """A call that may wait in the replica for a slot."""
        asked = Asked(self.peer, True)
        head = encode_head(CallHead(PYTHON, method, f"id-{next(_names)}", None, stream))
        asked.call = self.peer.open(asked, head, dumps((args, {})), True, AHEAD)
        return asked

    async def reconfigure(self, config: str, **options: Any) -> ReplicaReport:
        """The control call, as the controller makes it; what it answers."""
        wanted = Reconfiguration(config, deployment_options(options, stacklevel=0))
        answer = await self.controller.ask("reconfigure", msgspec.msgpack.encode(wanted), WAIT_S)
        return msgspec.msgpack.decode(answer, type=ReplicaReport)

    async def end(self) -> None:
        """SIGTERM, and the end that follows."""
        self.life.stopping.set()
        async with asyncio.timeout(WAIT_S):
            await self.task


@asynccontextmanager
async def replica_of(
    code: Any,
    options: dict[str, Any] | None = None,
    controller: EarThread | None = None,
    asgi: bool = False,
    until_phase: str = "ready",
) -> AsyncIterator[Desk]:
    """Starts a replica of a class of a test's module and waits until it is ready.

    With a ``controller`` on its thread it is as in a process of its own: a watchdog, and real sockets.
    """
    spec = DeploymentSpec(
        "a", "D", CodeRef(import_path=f"{code.__module__}:{code.__qualname__}"), dumps(((), {})),
        deployment_options(options or {}, stacklevel=0), asgi=asgi, config="c0",
    )  # fmt: skip
    name = f"desk-{next(_names)}"
    listener = None
    if controller is None:
        ear, at, address = Ear(), f"memory:controller-{name}", f"memory:{name}"
        listener = await listen(at, ear.accept, "controller")
    else:
        ear, at, address = controller.ear, controller.address, f"unix:{controller.folder.name}/r.sock"
    life = Life(SystemClock(), inline=controller is None)
    desk = Desk(ear, address, life)
    config = ReplicaConfig("a/D#1", spec, address, at)

    async def live() -> None:
        try:
            await worker.run(msgspec.msgpack.encode(config), life)
            desk.exit_code = 0
        except SystemExit as stop:
            desk.exit_code = stop.code

    desk.task = asyncio.create_task(live())
    try:
        await until(lambda: until_phase in ear.phases or desk.task.done())
        if until_phase == "ready":
            desk.peer, desk.controller = await connect(address, "test"), await connect(address, "controller")
        yield desk
        if not desk.task.done():
            await desk.end()
    finally:
        life.stopping.set()
        desk.task.cancel()
        with suppress(asyncio.CancelledError):
            await desk.task
        if listener is not None:
            await listener.close()
        else:  # it was a process of its own
            callers.install(None)
            context._process.clear()
            gc.unfreeze()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await scenario()

    asyncio.run(main())
