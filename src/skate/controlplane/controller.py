"""The controller: observe, decide, store, publish, perform, wait. Law: it holds no opinion of its own; every decision
comes from ``decide`` and every event only means "look again".

Store before publish before perform: after a crash at any point the memory knows everything that may have been
started, and no router is sent to a replica that was told to stop. Nothing ticks while nothing happens.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from skate.controlplane.broadcast import Signal, Tasks
from skate.controlplane.client import DeleteRequest, DeployRequest
from skate.controlplane.decide.ledger import Accounts
from skate.controlplane.decide.publish import Published, delta, published, whole
from skate.controlplane.decide.status import serve_status
from skate.controlplane.decide.values import (
    Action,
    Desired,
    Forget,
    Goal,
    Observed,
    Plan,
    StartProxy,
    StartReplica,
    StopProxy,
    StopReplica,
)
from skate.controlplane.decide.whole import decide
from skate.controlplane.sightings import PROXY_PREFIX, Sightings
from skate.controlplane.store import MemoryStore, SqliteStore, Store
from skate.core.clock import Clock
from skate.core.errors import AddressInUseError, NotFoundError, NotRunningError, OptionError, SkateError, WireError
from skate.core.specs import (
    AppSpec,
    ControllerConfig,
    Counts,
    HttpOptions,
    LoopReport,
    ProcessSpec,
    ProxyConfig,
    ProxyReport,
    ReplicaConfig,
    ReplicaReport,
    ServeStatus,
)
from skate.dataplane.proxy.address import reserve
from skate.dataplane.transport.exchange import Exchange, Session
from skate.dataplane.transport.peers import listen
from skate.dataplane.wire.head import CONTROL
from skate.engine.base import Action as EngineAction
from skate.engine.base import (
    Engine,
    EngineError,
    ForgetProcess,
    Life,
    ProcessSeen,
    StartProcess,
    StopProcess,
)
from skate.engine.inline import InlineEngine
from skate.engine.process import ProcessEngine
from skate.observe.metrics import prometheus_text

logger = logging.getLogger("skate.controller")

REPLICA_ENTRY = "skate.dataplane.replica.worker:run"
PROXY_ENTRY = "skate.dataplane.proxy.server:run"
APPS_MAX = 1000  # applications of one instance
LOADING_S = 0.5  # for a replica that never had a request; in a slow constructor it does not even hear the stop
CLOSING_S = 4.0  # beyond its grace, for a replica to fail what is unfinished and run its destructor; below OVERDUE_S
STATUS_PERIOD_S = 0.05  # between two statuses of one watcher
OBSERVE_AGAIN_S = 0.2  # after the engine could not be asked
OBSERVE_TRIES_MAX = 25  # in a row; then the supervisor is gone and so are we
GOODBYE_TURNS = 5  # of the loop, for the last answers to leave

T = TypeVar("T")

_encode = msgspec.msgpack.Encoder().encode


async def run(config: bytes, life: Life) -> None:
    """The entry: serves until the instance was told to end and nothing of it is left."""
    read = msgspec.msgpack.decode(config, type=ControllerConfig)
    engine: Engine = ProcessEngine(life.engine_address, life.clock) if life.engine_address else InlineEngine(life.clock)
    store: Store = SqliteStore(read.runtime_dir) if life.engine_address else MemoryStore()
    try:
        await Controller(read, engine, store, life.clock).serve(life.stopping)
    finally:
        store.close()
        await engine.close()


class Controller:
    """One instance's controller. ``serve`` is its life; everything else happens inside it."""

    def __init__(self, config: ControllerConfig, engine: Engine, store: Store, clock: Clock) -> None:
        self.config = config
        self._engine = engine
        self._store = store
        self._clock = clock
        saved = store.load()
        for damaged in saved.damaged:
            logger.error("the stored %s is damaged and was left out; deploy it again if it is missing", damaged)
        self._goals = saved.goals
        self._memory = saved.memory
        self._observed = Observed(started_at=clock.now())
        self._sightings = Sightings(clock.now())
        self._published = Published()
        self._generation = 0
        self._accounts = Accounts(saved.memory.ended_calls)
        self._changed = asyncio.Event()
        self._decisions = Signal()  # counts complete decisions
        self._publications = Signal()  # counts changes of what routers are told
        self._statuses = Signal()  # counts changes of the status
        self._shown: ServeStatus | None = None
        self._reserved: socket.socket | None = None  # a free port for the proxies to share
        self._failure: BaseException | None = None
        self._tasks = Tasks(self._task_failed)
        self._at_once: dict[str, Callable[[Exchange], bytes]] = {
            "deploy": self._deploy,
            "report_replica": self._report_replica,
            "report_loop": self._report_loop,
            "report_proxy": self._report_proxy,
            "report_ledger": self._report_ledger,
            "shutdown": self._shutdown,
        }
        self._in_time: dict[str, Callable[[Exchange], Coroutine[Any, Any, None]]] = {
            "delete": self._delete,
            "status": self._status,
            "metrics": self._metrics,
            "watch_status": self._watch_status,
            "snapshots": self._snapshots,
        }

    # -- the loop -------------------------------------------------------------------------------

    async def serve(self, stopping: asyncio.Event) -> None:
        """Listens and decides until the instance has ended."""
        listener = await listen(self.config.address, self._accept, "controller")
        listener.listening.on_session_lost = self._session_lost
        self._engine.on_change(lambda seen: self._changed.set())
        self._tasks.start(self._end_when(stopping))
        try:
            while True:
                self._changed.clear()
                wake_at, ended = await self._step()
                if ended:
                    break
                await self._until(wake_at)
            self._store.clear()
        finally:
            await self._tasks.close()  # ends the answers of those who watch
            await listener.close()
            if self._reserved is not None:
                self._reserved.close()
            for _ in range(GOODBYE_TURNS):
                await asyncio.sleep(0)

    async def _step(self) -> tuple[float | None, bool]:
        """One look, one decision and what follows from it; when to look again, and whether all is over."""
        if self._failure is not None:
            raise self._failure
        processes = await self._look()
        now = self._clock.now()
        self._observed = self._sightings.observed(processes, self._memory, now)
        desired = self._desired()
        plan = decide(desired, self._observed, self._memory, now)
        if plan.waiting:
            return plan.wake_at, False
        actions = [self._for_engine(action) for action in plan.actions]
        self._remember(plan)
        self._publish()
        self._show()
        self._decisions.bump()
        for action in actions:
            await self._perform(action)
        if actions:
            self._changed.set()  # what was done is seen at once, not at the next event
        return plan.wake_at, plan.ended

    async def _look(self) -> list[ProcessSeen]:
        for attempt in range(OBSERVE_TRIES_MAX):
            try:
                return await self._engine.observe()
            except EngineError as error:
                logger.warning("the engine cannot be asked (attempt %s): %s", attempt + 1, error)
                await self._clock.sleep(OBSERVE_AGAIN_S)
        return await self._engine.observe()

    async def _until(self, wake_at: float | None) -> None:
        """Waits until something happens, or until ``wake_at``."""
        if wake_at is None or self._changed.is_set():
            await self._changed.wait()
            return
        waits = [
            asyncio.ensure_future(self._changed.wait()),
            asyncio.ensure_future(self._clock.sleep(max(0.0, wake_at - self._clock.now()))),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _end_when(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self._end()

    def _task_failed(self, error: BaseException) -> None:
        self._failure = error
        self._changed.set()

    # -- store, publish, perform ----------------------------------------------------------------

    def _desired(self) -> Desired:
        slots = self.config.proxies if self.config.http is not None else 0
        return Desired(self._goals, tuple(str(slot) for slot in range(slots)))

    def _remember(self, plan: Plan) -> None:
        memory = replace(plan.memory, ended_calls=self._accounts.ended)
        if memory != self._memory:
            self._memory = memory
            self._store.put_memory(memory)
        for name in plan.gone:
            del self._goals[name]
            self._store.drop_goal(name)

    def _publish(self) -> None:
        addresses = {id: self._address(id) for id in self._memory.replicas}
        state = published(self._desired(), self._observed, self._memory, addresses)
        if state != self._published or not self._generation:
            self._published = state
            self._generation += 1
            self._publications.bump()

    def _show(self) -> None:
        shown = serve_status(self._desired(), self._observed, self._memory, 0.0, {}, 0)
        if shown != self._shown:
            self._shown = shown
            self._statuses.bump()

    def _address(self, id: str) -> str:
        if self.config.address.startswith("unix:"):
            return f"unix:{os.path.join(self.config.runtime_dir, 'r-' + id.rpartition('#')[2] + '.sock')}"
        return f"memory:{id}"

    def _for_engine(self, action: Action) -> EngineAction:
        """The engine's form of an action, with the goal as it is at the moment of the decision."""
        if isinstance(action, StartReplica):
            return StartProcess(self._replica_process(action))
        if isinstance(action, StartProxy):
            assert self.config.http is not None
            http = replace(self.config.http, port=self._port(action.id, self.config.http))
            proxy = ProxyConfig(action.id, self.config.address, http, share_port=self.config.proxies > 1)
            name = PROXY_PREFIX + action.id
            return StartProcess(ProcessSpec(name, "proxy", f"skate: {name}", PROXY_ENTRY, _encode(proxy)))
        if isinstance(action, StopReplica):
            return StopProcess(action.id, self._grace_s(action))
        if isinstance(action, StopProxy):
            return StopProcess(PROXY_PREFIX + action.id, action.grace_s)
        return ForgetProcess(_process_id(action))

    def _port(self, slot: str, http: HttpOptions) -> int:
        """Where a proxy shall listen. For port 0 where it, or one that shares its port, did before: clients know it."""
        if http.port:
            return http.port
        shared = self.config.proxies > 1
        for id, before in self._memory.proxies.items():
            if before.address and (shared or id == slot):
                return int(before.address.rpartition(":")[2])
        if not shared:
            return 0
        if self._reserved is None:
            try:
                self._reserved = reserve(http.host)
            except AddressInUseError:
                return 0  # the proxies will say what is wrong with the address
        return int(self._reserved.getsockname()[1])

    def _grace_s(self, action: StopReplica) -> float:
        seen = self._observed.replicas.get(action.id)
        if seen is not None and seen.phase in ("starting", "importing", "loading"):
            return min(action.grace_s, LOADING_S)
        return action.grace_s + CLOSING_S if action.grace_s else 0.0

    def _replica_process(self, action: StartReplica) -> ProcessSpec:
        app = self._goals[action.app].spec
        deployment = next(one for one in app.deployments if one.name == action.deployment)
        config = ReplicaConfig(
            id=action.id,
            deployment=deployment,
            address=self._address(action.id),
            controller=self.config.address,
            sys_path=app.sys_path,
            cwd=app.cwd,
        )
        return ProcessSpec(action.id, "replica", f"skate: replica {action.id}", REPLICA_ENTRY, _encode(config))

    async def _perform(self, action: EngineAction) -> None:
        try:
            await self._engine.perform(action)
        except (SkateError, OSError) as error:
            logger.warning("the engine could not do %s: %s", type(action).__name__, error)
            if isinstance(action, StartProcess):
                self._sightings.not_started(action.spec.id, f"the engine could not start it: {error}")
        if isinstance(action, ForgetProcess):
            self._sightings.forgotten(action.id)
            self._accounts.fold(action.id if action.id.startswith(PROXY_PREFIX) else f"replica {action.id}")

    # -- control calls --------------------------------------------------------------------------

    def _accept(self, exchange: Exchange) -> None:
        method = exchange.head.method
        at_once, in_time = self._at_once.get(method), self._in_time.get(method)
        if exchange.head.kind != CONTROL or (at_once is None and in_time is None):
            exchange.fail(NotFoundError(f"the controller has no control call {method!r}; is one side out of date?"))
        elif at_once is not None:
            try:
                answer = at_once(exchange)
            except SkateError as error:
                exchange.fail(error)
            else:
                exchange.reply(answer)
        elif in_time is not None:
            task = self._tasks.start(self._answer(exchange, in_time))
            exchange.on_cancel = lambda *why: _cancel(task)

    async def _answer(self, exchange: Exchange, method: Callable[[Exchange], Coroutine[Any, Any, None]]) -> None:
        try:
            await method(exchange)
        except SkateError as error:
            exchange.fail(error)
        finally:
            exchange.end()

    def _session_lost(self, session: Session) -> None:
        self._accounts.left(id(session))
        self._changed.set()

    def _deploy(self, exchange: Exchange) -> bytes:
        app = _decoded(exchange, DeployRequest).app
        if self._memory.ending:
            raise NotRunningError("this Skate instance is shutting down; start it again, then deploy")
        self._check(app)
        before = self._goals.get(app.name)
        revision = before.revision + 1 if before is not None else 1
        self._set_goal(Goal(app, revision, self._clock.wall()))
        return _encode(revision)

    def _check(self, app: AppSpec) -> None:
        for other in self._goals.values():
            if other.spec.name == app.name or other.deleting or app.route_prefix is None:
                continue
            if other.spec.route_prefix == app.route_prefix:
                raise OptionError(
                    f"route_prefix {app.route_prefix!r} of application {app.name!r} is in use by application "
                    f"{other.spec.name!r}: give one of them another route_prefix, or delete {other.spec.name!r} first"
                )
        if app.name not in self._goals and len(self._goals) >= APPS_MAX:
            raise OptionError(f"application {app.name!r} is one too many: an instance runs at most {APPS_MAX}")

    def _set_goal(self, goal: Goal) -> None:
        self._store.put_goal(goal)
        self._goals[goal.spec.name] = goal
        self._changed.set()

    async def _delete(self, exchange: Exchange) -> None:
        name = _decoded(exchange, DeleteRequest).app
        goal = self._goals.get(name)
        if goal is None:
            known = ", ".join(repr(one) for one in self._goals) or "none"
            raise NotFoundError(f"there is no application {name!r} to delete; there are: {known}")
        if not goal.deleting:
            goal = replace(goal, deleting=True)
            self._set_goal(goal)
        going = {id for id, replica in self._memory.replicas.items() if replica.app == name}
        seen = self._decisions.count
        while going & self._memory.replicas.keys() or self._goals.get(name) is goal:
            seen = await self._decisions.beyond(seen)

    async def _status(self, exchange: Exchange) -> None:
        await self._decisions.beyond(0)
        exchange.reply(_encode(self.status()))

    async def _metrics(self, exchange: Exchange) -> None:
        await self._decisions.beyond(0)
        exchange.reply(prometheus_text(self.status()).encode())

    def status(self) -> ServeStatus:
        """The instance as users see it now."""
        calls = self._accounts.counts()
        return serve_status(self._desired(), self._observed, self._memory, self._clock.now(), calls, os.getpid())

    async def _watch_status(self, exchange: Exchange) -> None:
        seen = 0
        while not exchange.ended:
            seen = await self._statuses.beyond(seen)
            await exchange.send(_encode(self.status()))
            await self._clock.sleep(STATUS_PERIOD_S)

    async def _snapshots(self, exchange: Exchange) -> None:
        seen = 0
        sent: Published | None = None
        while not exchange.ended:
            seen = await self._publications.beyond(seen)
            state, generation = self._published, self._generation
            news = whole(state, generation) if sent is None else delta(sent, state, generation)
            sent = state
            if news is not None:
                await exchange.send(_encode(news))

    def _report_replica(self, exchange: Exchange) -> bytes:
        self._sightings.replica_said(_decoded(exchange, ReplicaReport), self._clock.now())
        self._changed.set()
        return b""

    def _report_loop(self, exchange: Exchange) -> bytes:
        self._sightings.loop_said(_decoded(exchange, LoopReport))
        self._changed.set()
        return b""

    def _report_proxy(self, exchange: Exchange) -> bytes:
        report = _decoded(exchange, ProxyReport)
        self._sightings.proxy_said(replace(report, id=report.id.removeprefix(PROXY_PREFIX)))
        self._changed.set()
        return b""

    def _report_ledger(self, exchange: Exchange) -> bytes:
        session = exchange.session
        self._accounts.report(id(session), session.peer_name, _decoded(exchange, Counts))
        return b""

    def _shutdown(self, exchange: Exchange) -> bytes:
        self._end()
        return b""

    def _end(self) -> None:
        if not self._memory.ending:
            self._memory = replace(self._memory, ending=True)
            self._store.put_memory(self._memory)
            self._changed.set()


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


def _process_id(action: Forget) -> str:
    return PROXY_PREFIX + action.id if action.role == "proxy" else action.id


def _decoded(exchange: Exchange, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(exchange.body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"control call {exchange.head.method!r} came with an unreadable body: {error}") from None
