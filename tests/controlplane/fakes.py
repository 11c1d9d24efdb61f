"""An engine whose processes are tasks that only talk to the controller, and a desk to run a controller on."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from skate.controlplane.client import ControllerClient
from skate.controlplane.controller import Controller
from skate.controlplane.store import MemoryStore, Store
from skate.core.clock import ManualClock
from skate.core.config import BuildRequest, BuildResult
from skate.core.errors import SkateError
from skate.core.specs import (
    UNSURE_CONFIG,
    AdminConfig,
    AdminOptions,
    ApplicationStatus,
    ControllerConfig,
    Counts,
    DeploymentTarget,
    HttpOptions,
    ProcessSpec,
    ProxyConfig,
    ProxyReport,
    Reconfiguration,
    ReplicaConfig,
    ReplicaPhase,
    ReplicaReport,
    Route,
    ServeStatus,
    Snapshot,
)
from skate.dataplane.transport.exchange import Exchange
from skate.dataplane.transport.peers import Listener, Peer, connect, listen
from skate.engine.base import Action, Changed, EngineError, ForgetProcess, ProcessSeen, StartProcess, StopProcess
from tests.decide.world import deployment, goal

_numbers = itertools.count(1)
_encode = msgspec.msgpack.encode


@dataclass
class Fake:
    """One process."""

    spec: ProcessSpec
    pid: int
    task: asyncio.Task[None] | None = None
    exit_code: int | None = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    peer: Peer | None = None
    grace_s: float | None = None
    listener: Listener | None = None


def _later(work: Coroutine[Any, Any, None]) -> None:
    _tasks.add(task := asyncio.ensure_future(work))
    task.add_done_callback(_tasks.discard)


_tasks: set[asyncio.Future[None]] = set()


def _seen(one: Fake) -> ProcessSeen:
    return ProcessSeen(one.spec.id, one.spec.role, one.pid, one.exit_code is None, one.exit_code)


class FakeEngine:
    """Runs what it is told as tasks that report; behaviour of a replica follows from its version's name.

    "bad": its constructor fails. "slow": ready when ``release`` is set. "busy": ends only when ``release`` is set.
    It refuses the configuration "bad". What a builder does follows from the import path: see ``_build``.
    """

    def __init__(self) -> None:
        self.processes: dict[str, Fake] = {}
        self.actions: list[Action] = []
        self.release = asyncio.Event()
        self.told: list[tuple[str, str]] = []  # configurations, by replica
        self.refuse: str | None = None
        self.port_in_use = False  # that of the REST server
        self._callbacks: list[Changed] = []

    async def observe(self) -> list[ProcessSeen]:
        return [_seen(one) for one in self.processes.values()]

    async def perform(self, action: Action) -> ProcessSeen | None:
        self.actions.append(action)
        if isinstance(action, StartProcess):
            if self.refuse is not None:
                raise EngineError(self.refuse)
            assert action.spec.id not in self.processes
            one = self.processes[action.spec.id] = Fake(action.spec, next(_numbers))
            lives = {"replica": self._replica, "proxy": self._proxy, "admin": self._admin, "builder": self._builder}
            one.task = asyncio.create_task(lives[one.spec.role](one))
            return _seen(one)
        if isinstance(action, StopProcess):
            found = self.processes.get(action.id)
            if found is not None:
                found.grace_s = action.grace_s
                found.stopping.set()
        elif isinstance(action, ForgetProcess):
            self.processes.pop(action.id, None)
        return None

    def on_change(self, callback: Changed) -> None:
        self._callbacks.append(callback)

    async def close(self) -> None:
        for one in self.processes.values():
            self._kill(one)

    # -- what tests do --------------------------------------------------------------------------

    def alive(self, role: str = "replica") -> list[Fake]:
        return [one for one in self.processes.values() if one.exit_code is None and one.spec.role == role]

    def crash(self, id: str, code: int = -9) -> None:
        """The process is gone, as if killed."""
        one = self.processes[id]
        self._kill(one)
        self._ended(one, code)

    def crash_unheard(self, id: str) -> None:
        """The same, while the line to the engine is cut: only that it was cut can be told."""
        one = self.processes[id]
        self._kill(one)
        one.exit_code = -9
        for callback in self._callbacks:
            callback(None)

    def _kill(self, one: Fake) -> None:
        if one.task is not None:
            one.task.cancel()
        if one.peer is not None:
            one.peer.close()
        if one.listener is not None:
            _later(one.listener.close())

    def _ended(self, one: Fake, code: int) -> None:
        if one.exit_code is None:
            one.exit_code = code
            if one.listener is not None:
                _later(one.listener.close())
            for callback in self._callbacks:
                callback(_seen(one))

    # -- what the processes do ------------------------------------------------------------------

    async def _replica(self, one: Fake) -> None:
        config = msgspec.msgpack.decode(one.spec.config, type=ReplicaConfig)
        version = config.deployment.version
        name = f"replica {config.id}"
        running = [config.deployment.config]
        error = [""]

        async def say(phase: ReplicaPhase, message: str = "") -> None:
            report = ReplicaReport(config.id, phase, one.pid, message, running[0], error[0])
            while not one.stopping.is_set():  # the controller may be away for a while
                with suppress(SkateError):
                    if one.peer is None or one.peer.closed:
                        one.peer = await connect(config.controller, name)
                    await one.peer.ask("report_replica", _encode(report))
                    return
                await asyncio.sleep(0)

        async def take_up(exchange: Exchange) -> None:
            wish = msgspec.msgpack.decode(exchange.body, type=Reconfiguration)
            self.told.append((config.id, wish.config))
            running[0], error[0] = (UNSURE_CONFIG, "ValueError: no") if wish.config == "bad" else (wish.config, "")
            await say("ready")
            exchange.reply(b"")

        one.listener = await listen(config.address, lambda exchange: _later(take_up(exchange)), name)

        await say("loading")
        if version == "bad":
            await say("failed", "Traceback (most recent call last):\nValueError: bad constructor")
            self._ended(one, 1)
            if one.peer is not None:
                one.peer.close()
            return
        if version == "slow":
            await self.release.wait()
        await say("ready")
        while not one.stopping.is_set() and one.peer is not None:
            lost = asyncio.Event()
            one.peer.on_lost = lambda _, lost=lost: lost.set()
            if not one.peer.closed:
                await _first(lost.wait(), one.stopping.wait())
            if not one.stopping.is_set():
                await say("ready")
        if one.peer is not None:
            with suppress(Exception):
                report = ReplicaReport(config.id, "draining", one.pid, "", running[0], error[0])
                await one.peer.ask("report_replica", _encode(report))
            one.peer.close()
        if version == "busy":
            await self.release.wait()
        self._ended(one, 0)

    async def _builder(self, one: Fake) -> None:
        await _first(self._build(one), one.stopping.wait())
        self._ended(one, 1)  # unless it has

    async def _build(self, one: Fake) -> None:
        """Import path "good": an application with the deployments that ``args`` names with their versions. "bad": it
        does not import. "dies": the process ends. "hangs": until ``release`` is set.
        """
        request = msgspec.msgpack.decode(one.spec.config, type=BuildRequest)
        path = request.app.import_path
        if path == "hangs":
            await self.release.wait()
        if path == "dies":
            self._ended(one, 3)
            return
        one.peer = await connect(request.controller, "builder")
        result = BuildResult(request.id, error="ImportError: no")
        if path != "bad":
            made = [deployment(request.app.name, name, version) for name, version in request.app.args.items()]
            result = BuildResult(request.id, goal(request.app.name, *made, prefix=request.app.route_prefix).spec)
        await one.peer.ask("built", _encode(result))
        one.peer.close()
        self._ended(one, 0)

    async def _proxy(self, one: Fake) -> None:
        config = msgspec.msgpack.decode(one.spec.config, type=ProxyConfig)
        one.peer = await connect(config.controller, f"proxy {config.id}")
        report = ProxyReport(config.id, "ready", one.pid, config.http.host, config.http.port)
        await one.peer.ask("report_proxy", _encode(report))
        await one.stopping.wait()
        one.peer.close()
        self._ended(one, 0)

    async def _admin(self, one: Fake) -> None:
        config = msgspec.msgpack.decode(one.spec.config, type=AdminConfig)
        one.peer = await connect(config.controller, "admin")
        phase: Literal["ready", "failed"] = "failed" if self.port_in_use else "ready"
        said = "the port is in use" if self.port_in_use else ""
        report = ProxyReport(config.id, phase, one.pid, config.admin.host, config.admin.port, said)
        await one.peer.ask("report_proxy", _encode(report))
        if phase == "ready":
            await one.stopping.wait()
        one.peer.close()
        self._ended(one, 0)


async def _first(*waits: Awaitable[object]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


class Desk:
    """A controller on a fake engine and a manual clock, and a client of it."""

    def __init__(
        self,
        engine: FakeEngine,
        store: Store,
        http: HttpOptions | None,
        proxies: int = 1,
        admin: AdminOptions | None = None,
    ) -> None:
        self.engine, self.store = engine, store
        self.clock = ManualClock(1000.0)
        self.config = ControllerConfig("/none", f"memory:controller-{next(_numbers)}", http, proxies, admin)
        self.stopping = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.peers: list[Peer] = []

    def start(self) -> None:
        """Starts a controller; a second one after ``kill`` takes over the engine and the store."""
        self.controller = Controller(self.config, self.engine, self.store, self.clock)
        self.task = asyncio.create_task(self.controller.serve(self.stopping))

    async def kill(self) -> None:
        """The controller is gone without a goodbye."""
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def connect(self, name: str = "driver 1") -> Peer:
        await until(lambda: self.task is not None, "a controller")
        await asyncio.sleep(0)
        self.peers.append(await connect(self.config.address, name))
        return self.peers[-1]

    async def client(self) -> ControllerClient:
        return ControllerClient(await self.connect())

    async def state(self, app: str, wanted: str) -> ServeStatus:
        """Waits until the application is in that state."""
        await until(lambda: (found := self.now(app)) is not None and found.status == wanted, f"{app} {wanted}", self)
        return self.controller.calls.status()

    def now(self, app: str) -> ApplicationStatus | None:
        return self.controller.calls.status().applications.get(app)


async def until(condition: Callable[[], object], what: str, desk: Desk | None = None) -> None:
    """Lets the loop turn until the condition holds; each turn is a moment on the desk's clock."""
    for _ in range(3000):
        if condition():
            return
        if desk is not None and desk.task is not None and desk.task.done():
            desk.task.result()
        await asyncio.sleep(0)
    raise AssertionError(
        f"waited in vain for {what}" + (f": {desk.controller.calls.status()}" if desk is not None else "")
    )


@asynccontextmanager
async def desk(
    store: Store | None = None,
    http: HttpOptions | None = None,
    proxies: int = 1,
    admin: AdminOptions | None = None,
) -> AsyncIterator[Desk]:
    """A running controller, ended with everything of it."""
    made = Desk(FakeEngine(), store if store is not None else MemoryStore(), http, proxies, admin)
    made.start()
    try:
        yield made
    finally:
        for peer in made.peers:
            peer.close()
        assert made.task is not None
        await made.kill()
        await made.engine.close()
        for _ in range(5):
            await asyncio.sleep(0)


class Router:
    """What a router would know after the snapshots it got."""

    def __init__(self) -> None:
        self.deployments: dict[str, DeploymentTarget] = {}
        self.routes: tuple[Route, ...] = ()
        self.snapshots: list[Snapshot] = []

    def take(self, data: bytes) -> None:
        news = msgspec.msgpack.decode(data, type=Snapshot)
        self.snapshots.append(news)
        if news.whole:
            self.deployments.clear()
        for key, target in news.deployments.items():
            if target is None:
                self.deployments.pop(key)
            else:
                self.deployments[key] = target
        if news.routes is not None:
            self.routes = news.routes

    def ids(self, key: str) -> list[str]:
        found = self.deployments.get(key)
        return [one.id for one in found.replicas] if found is not None else []


async def report_calls(peer: Peer, news: Counts) -> None:
    """Says the counts of this process."""
    await peer.ask("report_ledger", _encode(news))
