"""The control calls: what others may ask the controller, one entry each.

Law: reads the words, asks one thing, writes the answer; what goes wrong is an error of the tree. ``client.py`` is the
other end.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from skate.controlplane.applications import Applications
from skate.controlplane.broadcast import Tasks
from skate.controlplane.builds import Builds
from skate.controlplane.client import DeleteRequest, DeployRequest, EventsRequest, RollbackRequest, ScaleRequest
from skate.controlplane.decide.status import serve_status
from skate.controlplane.records import FAILURES
from skate.controlplane.sightings import PROXY_PREFIX
from skate.controlplane.state import State
from skate.core.config import ApplyRequest, BuildResult
from skate.core.errors import NotFoundError, NotRunningError, OptionError, SkateError, StoreError, WireError
from skate.core.specs import (
    Counts,
    HealthReport,
    LoopReport,
    ProxyReport,
    ReplicaReport,
    ServeStatus,
)
from skate.dataplane.transport.exchange import Exchange, Session
from skate.dataplane.wire.head import CONTROL
from skate.observe.metrics import prometheus_text

STATUS_PERIOD_S = 0.05  # between two statuses of one watcher, at least,
STATUS_PAUSE = 20.0  # and so many times as long as one takes to make
EVENTS_LIMIT = 10_000  # of one answer

T = TypeVar("T")

_encode = msgspec.msgpack.Encoder().encode


class ControlCalls:
    """What one controller answers."""

    def __init__(self, state: State, applications: Applications, builds: Builds, tasks: Tasks) -> None:
        self._state = state
        self._applications = applications
        self._builds = builds
        self._tasks = tasks
        self._at_once: dict[str, Callable[[Exchange], bytes]] = {
            "deploy": self._deploy,
            "apply": self._apply,
            "built": self._built,
            "scale": self._scale,
            "rollback": self._rollback,
            "history": self._history,
            "config": self._config,
            "events": self._events,
            "report_replica": self._report_replica,
            "report_health": self._report_health,
            "report_loop": self._report_loop,
            "report_proxy": self._report_proxy,
            "report_ledger": self._report_ledger,
            "shutdown": self._shutdown,
        }
        self._in_time: dict[str, Callable[[Exchange], Coroutine[Any, Any, None]]] = {
            "delete": self._delete,
            "plan": self._plan,
            "status": self._status,
            "metrics": self._metrics,
            "watch_status": self._watch_status,
            "snapshots": self._snapshots,
        }

    def accept(self, exchange: Exchange) -> None:
        """Answers a call, at once or in a task of its own."""
        method = exchange.head.method
        at_once, in_time = self._at_once.get(method), self._in_time.get(method)
        if exchange.head.kind != CONTROL or (at_once is None and in_time is None):
            exchange.fail(NotFoundError(f"the controller has no control call {method!r}; is one side out of date?"))
        elif at_once is not None:
            try:
                answer = at_once(exchange)
            except SkateError as error:
                exchange.fail(error)
            except FAILURES as error:
                exchange.fail(StoreError(f"the state of the instance cannot be read: {error}"))
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
        except asyncio.CancelledError:
            exchange.fail(NotRunningError("the controller is ending; ask again if the instance goes on"))
            raise
        finally:
            exchange.end()

    def session_lost(self, session: Session) -> None:
        """The process at the other end is gone."""
        state = self._state
        state.accounts.left(id(session))
        state.touch(state.loads.left(id(session), state.clock.now()))

    # -- wishes ---------------------------------------------------------------------------------

    def _deploy(self, exchange: Exchange) -> bytes:
        request = _decoded(exchange, DeployRequest)
        return _encode(self._applications.deploy(request.app, request.by))

    def _apply(self, exchange: Exchange) -> bytes:
        return _encode(self._applications.order(_decoded(exchange, ApplyRequest)))

    def _built(self, exchange: Exchange) -> bytes:
        self._builds.answered(_decoded(exchange, BuildResult))
        return b""

    def _scale(self, exchange: Exchange) -> bytes:
        self._applications.scale(_decoded(exchange, ScaleRequest))
        return b""

    def _rollback(self, exchange: Exchange) -> bytes:
        return _encode(self._applications.rollback(_decoded(exchange, RollbackRequest)))

    async def _delete(self, exchange: Exchange) -> None:
        state, request = self._state, _decoded(exchange, DeleteRequest)
        goal = self._applications.delete(request)
        if goal is None:
            return
        keys = goal.keys
        going = {id for key in keys if key in state.memory.deployments for id in state.memory.deployments[key].replicas}
        seen = state.decisions.count
        while state.goals.get(request.app) is goal or self._left(keys, going):
            seen = await state.decisions.beyond(seen)

    def _left(self, keys: Iterable[str], going: set[str]) -> bool:
        """Whether one of these replicas is still there. Who was wanted again before it was told to stop stays."""
        deployments = self._state.memory.deployments
        groups = [deployments[key].replicas for key in keys if key in deployments]
        return any(id in going and replica.stopping for group in groups for id, replica in group.items())

    def _shutdown(self, exchange: Exchange) -> bytes:
        self._state.end()
        return b""

    # -- questions ------------------------------------------------------------------------------

    async def _plan(self, exchange: Exchange) -> None:
        exchange.reply(_encode(await self._builds.plan(_decoded(exchange, ApplyRequest))))

    def _history(self, exchange: Exchange) -> bytes:
        return _encode(self._applications.history(_decoded(exchange, str)))

    def _config(self, exchange: Exchange) -> bytes:
        return _encode(self._applications.config())

    def _events(self, exchange: Exchange) -> bytes:
        request = _decoded(exchange, EventsRequest)
        if not 1 <= request.limit <= EVENTS_LIMIT:
            raise OptionError(f"limit={request.limit}: takes a whole number from 1 to {EVENTS_LIMIT}")
        return _encode(self._state.records.read_events(request.after, request.app, request.limit))

    async def _status(self, exchange: Exchange) -> None:
        await self._state.decisions.beyond(0)
        exchange.reply(_encode(self.status()))

    async def _metrics(self, exchange: Exchange) -> None:
        await self._state.decisions.beyond(0)
        exchange.reply(prometheus_text(self.status()).encode())

    def status(self) -> ServeStatus:
        """The instance as users see it now."""
        state = self._state
        return serve_status(
            state.desired,
            state.orders,
            state.observed,
            state.memory,
            state.clock.now(),
            state.counts(),
            os.getpid(),
            state.autoscaling(),
        )

    async def _watch_status(self, exchange: Exchange) -> None:
        await self._state.decisions.beyond(0)
        seen = -1
        while not exchange.ended:
            seen = await self._state.statuses.beyond(seen)
            began = self._state.clock.now()
            status = _encode(self.status())
            pause_s = max(STATUS_PERIOD_S, STATUS_PAUSE * (self._state.clock.now() - began))
            await exchange.send(status)
            await self._state.clock.sleep(pause_s)

    async def _snapshots(self, exchange: Exchange) -> None:
        publications = self._state.publications
        sent = 0
        while not exchange.ended:
            generation = await publications.signal.beyond(sent)
            news = publications.since(sent)
            sent = generation
            if news is not None:
                await exchange.send(news)

    # -- reports --------------------------------------------------------------------------------

    def _report_replica(self, exchange: Exchange) -> bytes:
        self._state.sightings.replica_said(_decoded(exchange, ReplicaReport), self._state.clock.now())
        self._state.touch()
        return b""

    def _report_health(self, exchange: Exchange) -> bytes:
        self._state.sightings.health_said(_decoded(exchange, HealthReport), self._state.clock.now())
        self._state.touch()
        return b""

    def _report_loop(self, exchange: Exchange) -> bytes:
        self._state.sightings.loop_said(_decoded(exchange, LoopReport), self._state.clock.now())
        self._state.touch()
        return b""

    def _report_proxy(self, exchange: Exchange) -> bytes:
        report = _decoded(exchange, ProxyReport)
        self._state.sightings.proxy_said(replace(report, id=report.id.removeprefix(PROXY_PREFIX)))
        self._state.touch()
        return b""

    def _report_ledger(self, exchange: Exchange) -> bytes:
        session = exchange.session
        state, news = self._state, _decoded(exchange, Counts)
        state.accounts.report(id(session), session.peer_name, news)
        if changed := state.loads.report(id(session), news, state.clock.now()):
            state.touch(changed)
        return b""


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


def _decoded(exchange: Exchange, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(exchange.body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"control call {exchange.head.method!r} came with an unreadable body: {error}") from None
