"""The replica process: becomes ready, accepts calls, takes up other options, drains, ends.

Law: it tells the controller every phase it enters (starting, importing, loading, ready, draining, failed) before
it does anything slow; it accepts no call before it is ready and never more than ``max_ongoing_requests`` at once; when
told to stop it finishes what it has in hand. Control calls take no slot and wait for none.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import os
import sys
from collections.abc import Awaitable
from functools import partial
from typing import Any

import msgspec

from skate.authoring.code import load, loads
from skate.authoring.sources import install, renew
from skate.core import context
from skate.core.clock import within
from skate.core.context import ReplicaContext
from skate.core.environment import export, export_default
from skate.core.errors import NotFoundError, NotRunningError, WireError
from skate.core.options import DeploymentOptions
from skate.core.specs import (
    DeploymentSpec,
    HandleRef,
    HealthReport,
    LoopBlocking,
    LoopReport,
    Reconfiguration,
    ReplicaConfig,
    ReplicaPhase,
    ReplicaReport,
)
from skate.dataplane import caller as callers
from skate.dataplane.caller import Caller
from skate.dataplane.handle import DeploymentHandle
from skate.dataplane.replica.callable import Target, construct
from skate.dataplane.replica.health import HealthChecks
from skate.dataplane.replica.invoke import Invoker
from skate.dataplane.replica.lifespan import Lifespan
from skate.dataplane.replica.outcry import cry_out
from skate.dataplane.replica.settings import Settings
from skate.dataplane.replica.slots import PARKED, REFUSED, Slots
from skate.dataplane.replica.threads import aside
from skate.dataplane.replica.trace import TEXT_MAX, failure_of
from skate.dataplane.replica.views import build_asgi
from skate.dataplane.replica.watchdog import Terms, Watchdog
from skate.dataplane.shared.pool import fetched
from skate.dataplane.transport.exchange import Exchange, Session
from skate.dataplane.transport.failure import described
from skate.dataplane.transport.peers import Listener, listen
from skate.dataplane.wire.head import CONTROL
from skate.engine.base import Life

logger = logging.getLogger("skate.replica")

SHUTDOWN_S = 1.0  # for the ASGI shutdown hooks, beyond what is left of the grace
DESTRUCTOR_S = 1.3  # for the user's __del__, beyond that; the sum of all ends is below CLOSING_S of the controller
FETCH_S = 5.0  # within the grace, for callers to fetch answers that lie in this process's memory
LINGER_S = 0.05  # for last frames to leave before the process ends

# Made at import, in the supervisor: each replica would spend most of its start on making them.
_config_decoder = msgspec.msgpack.Decoder(ReplicaConfig)
_options_decoder = msgspec.msgpack.Decoder(Reconfiguration)


class ReplicaFailed(Exception):
    """The user's code could not be made ready; the controller has the report, nobody needs a second traceback."""


class Worker:
    """One replica."""

    def __init__(self, config: ReplicaConfig, life: Life, caller: Caller) -> None:
        self.config = config
        self.spec: DeploymentSpec = config.deployment
        self.life = life
        self.caller = caller
        self.phase: ReplicaPhase = "starting"
        self.settings = Settings(self.spec, life.clock, self._reconfigure, self._take_up, self._report)
        self.slots: Slots[Exchange] = Slots(self.settings.options.max_ongoing_requests, _grant, self.begin)
        self.target: Target | None = None
        self.lifespan: Lifespan | None = None
        self.invoker: Invoker | None = None
        self.checks: HealthChecks | None = None
        self.listener: Listener | None = None
        self.watchdog: Watchdog | None = None
        self.idle = asyncio.Event()
        self.idle.set()
        self.report_task: asyncio.Task[None] | None = None

    def report(self, message: str = "") -> ReplicaReport:
        """What it says of itself now."""
        settings = self.settings
        return ReplicaReport(self.config.id, self.phase, os.getpid(), message, settings.config, settings.error)

    async def tell(self, phase: ReplicaPhase, message: str = "") -> None:
        self.phase = phase
        await self._report(message)

    async def _report(self, message: str = "") -> None:
        await self.caller.uplink.told("report_replica", self.report(message))

    # -- becoming ready -------------------------------------------------------------------------

    async def start(self) -> None:
        """Imports, constructs, listens. Raises ReplicaFailed after it told the controller why."""
        stage = "the import of its code"
        try:
            await self.tell("importing")
            apply_environment(self.config)
            if not self.life.inline:  # there they are others', too
                renew(self.config.sources)
                install(self.config.sources)
            code = load(self.spec.code)
            args, kwargs = loads(self.spec.init)
            stage = "its constructor"
            await self.tell("loading")
            await self._load(code, with_handles(args), with_handles(kwargs))
            stage = "its first health check"
            await self._check_first()
            stage = "opening its socket"
            await self._listen()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # SystemExit, too: a script without a __main__ guard that is imported
            text = f"in {stage}: {error if isinstance(error, ReplicaFailed) else described(error)}"
            await self.tell("failed", text[-TEXT_MAX:])
            raise ReplicaFailed(text) from None
        gc.collect()
        if not self.life.inline:
            gc.freeze()  # what start-up made stays: later collections need not look at it
            self._watch_loop()
        if self.checks is not None:
            self.checks.start()
        if not self.life.stopping.is_set():  # else it never takes a call
            await self.tell("ready")

    async def _load(self, code: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        spec, options = self.spec, self.settings.options
        _set_context(self.config, None, self.life.inline)
        self.target = target = await construct(spec.app, spec.name, code, args, kwargs)
        _set_context(self.config, target.instance, self.life.inline)
        self.settings.context = contextvars.copy_context()
        self.invoker = Invoker(target, self.life.clock, max_threads=options.max_threads)
        if spec.asgi:
            target.asgi = build_asgi(code, target.instance, run_sync=self.invoker.threads.run)
            self.lifespan = Lifespan(target.asgi, self.life.clock)
            await self.lifespan.start()
            target.state = self.lifespan.request_state()
        if options.user_config is not None:
            await target.reconfigure(options.user_config)

    async def _check_first(self) -> None:
        target = self.target
        if target is None or target.health_kind is None:
            return
        options = self.settings.options
        self.checks = HealthChecks(f"replica {self.config.id}", target, self.life.clock, options, self._tell_health)
        error = await self.checks.first()
        if error is not None:
            raise ReplicaFailed(error)

    # -- health ---------------------------------------------------------------------------------

    def _watch_loop(self) -> None:
        """Not inline, where all replicas share one loop with everything else."""
        assert self.invoker is not None and self.listener is not None
        terms = Terms.of(self.settings.options, self.checks is not None)
        name, clock = f"replica {self.config.id}", self.life.clock
        self.watchdog = watchdog = Watchdog(name, terms, clock, self.invoker, self._tell_blocked, self._cry)
        for fd in self.listener.fds:
            watchdog.hear(fd)
        for session in self.listener.listening.sessions:
            watchdog.hear(session.fd)
        self.listener.listening.on_session = lambda session: watchdog.hear(session.fd)
        watchdog.start()

    def _tell_blocked(self, blocked: tuple[LoopBlocking, ...]) -> None:
        self.caller.uplink.report("report_loop", LoopReport(self.config.id, blocked))

    def _tell_health(self, strikes: int, error: str) -> None:
        self.caller.uplink.report("report_health", HealthReport(self.config.id, strikes, "check", error))

    def _cry(self, strikes: int, error: str) -> bool:
        """The same about the loop (on the watchdog's thread)."""
        report = HealthReport(self.config.id, strikes, "loop", error)
        return cry_out(self.config.controller, f"watchdog of replica {self.config.id}", report)

    # -- other options --------------------------------------------------------------------------

    def _control(self, exchange: Exchange) -> None:
        if exchange.head.method != "reconfigure":
            exchange.fail(NotFoundError(f"a replica has no control call {exchange.head.method!r}"))
        elif self.slots.closed:
            exchange.fail(NotRunningError(f"replica {self.config.id} is ending"))
        else:
            try:
                wanted = _options_decoder.decode(exchange.body)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                exchange.fail(WireError(f"control call 'reconfigure' came with an unreadable body: {error}"))
            else:
                self.settings.want(wanted, lambda: exchange.reply(msgspec.msgpack.encode(self.report())))

    async def _reconfigure(self, user_config: Any) -> None:
        """The user's part of other options, beside the requests."""
        assert self.target is not None
        if user_config is None and not self.target.is_configurable:
            return  # it was given to a class that could not take it, and is taken away again
        await self.target.reconfigure(user_config, partial(aside, name="skate-reconfigure"))

    def _take_up(self, options: DeploymentOptions) -> None:
        """Our part."""
        assert self.invoker is not None
        self.invoker.threads.resize(options.max_threads)
        self.slots.resize(options.max_ongoing_requests)
        if self.checks is not None:
            self.checks.take_up(options)
        if self.watchdog is not None:
            self.watchdog.take_up(Terms.of(options, self.checks is not None))

    async def _listen(self) -> None:
        self.listener = listener = await listen(self.config.address, self.accept, f"replica {self.config.id}")
        listening = listener.listening
        listening.load = lambda: self.slots.load
        listening.on_session_lost = self.slots.forget
        listening.on_release = self.slots.release
        listening.on_recall = self.give_back

    # -- calls ----------------------------------------------------------------------------------

    def accept(self, exchange: Exchange) -> None:
        """Takes a call or refuses it; the router sends a refused one elsewhere or waits for its turn."""
        if exchange.head.kind == CONTROL:
            self._control(exchange)
            return
        verdict = self.slots.offer(exchange.session, exchange, exchange.granted, exchange.ahead)
        if verdict == REFUSED:
            exchange.refuse()
        elif verdict == PARKED and not exchange.ended and exchange.on_cancel is None:  # set: it has begun meanwhile
            exchange.on_cancel = lambda *why: self.slots.withdraw(exchange)
            exchange.parked_at = self.life.clock.now()

    def begin(self, exchange: Exchange) -> None:
        """A call has its slot; its deadline went on while it waited for that."""
        head = exchange.head
        if exchange.parked_at and head.timeout_s is not None:
            head.timeout_s -= self.life.clock.now() - exchange.parked_at
        self.idle.clear()
        assert self.invoker is not None
        self.invoker.run(exchange, self.done)

    def give_back(self, session: Session) -> None:
        """A router wants the calls back that have not begun: another replica can have them."""
        for exchange in self.slots.give_back(session):
            exchange.refuse(returned=True)

    def done(self) -> None:
        """A call has left the user's code."""
        self.slots.free()
        if self.slots.ongoing == 0:
            self.idle.set()

    # -- ending ---------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Refuses what comes, finishes what runs within the grace, runs the user's destructor."""
        clock, grace_s = self.life.clock, self.settings.options.graceful_shutdown_timeout_s
        end = clock.now() + grace_s
        self._end_changes()
        for exchange in self.slots.close():
            exchange.refuse(returned=True)
        self.phase = "draining"
        self.report_task = self.caller.uplink.report("report_replica", self.report())
        if await within(clock, self.idle.wait(), grace_s):
            await fetched(clock, min(FETCH_S, end - clock.now()))
        else:
            logger.warning(
                "replica %s ends with %d requests unfinished after %s s of grace",
                self.config.id, self.slots.ongoing, grace_s,
            )  # fmt: skip
        await self.close(end - clock.now())

    async def close(self, left_s: float = 0.0) -> None:
        """Ends everything that was started, in reverse order. ``left_s``: of the grace; the destructor may use it."""
        clock = self.life.clock
        self._end_changes()
        if self.watchdog is not None:
            self.watchdog.stop()
        if self.listener is not None:
            if self.invoker is not None:
                await self.invoker.close(0.0, self.settings.options.graceful_shutdown_timeout_s)
            await clock.sleep(LINGER_S)
            await self.listener.close()
        end = clock.now() + max(0.0, left_s)
        if self.lifespan is not None:
            await self._finish("the ASGI shutdown", self.lifespan.stop(), end + SHUTDOWN_S)
        if self.target is not None:
            await self._finish("the destructor", self.target.destroy(), end + SHUTDOWN_S + DESTRUCTOR_S)

    def _end_changes(self) -> None:
        self.settings.close()
        if self.checks is not None:
            self.checks.close()

    async def _finish(self, what: str, work: Awaitable[None], end: float) -> None:
        """User code at the end: neither its error nor its length keeps the rest from happening."""
        clock = self.life.clock
        task = asyncio.get_running_loop().create_task(failure_of(work), name=what)
        if not await within(clock, asyncio.shield(task), max(0.0, end - clock.now())):
            task.cancel()
            logger.warning("%s of replica %s did not end in time and is given up", what, self.config.id)
        elif not task.cancelled() and (error := task.result()):
            logger.error("%s of replica %s failed\n%s", what, self.config.id, error)


def _grant(session: Any) -> None:
    assert isinstance(session, Session)
    session.grant(1)


def _set_context(config: ReplicaConfig, instance: Any, inline: bool) -> None:
    spec = config.deployment
    here = ReplicaContext(spec.app, spec.name, config.id, instance)
    context.replica.set(here)
    if not inline:
        context.set_process_replica(here)


def apply_environment(config: ReplicaConfig) -> None:
    """The import path, the working directory and the environment variables that the deployment asks for."""
    for path in reversed(config.sys_path):
        if path not in sys.path:
            sys.path.insert(0, path)
    if config.cwd is not None and os.path.isdir(config.cwd):
        os.chdir(config.cwd)
    options = config.deployment.options
    export(options.env_vars)
    # One thread per CPU asked for, as Ray does: replicas that each start a thread per core get in each other's way.
    export_default("OMP_NUM_THREADS", str(max(1, int(options.ray_actor_options.num_cpus or 1))))


def with_handles(value: Any) -> Any:
    """The value with a handle in the place of each HandleRef, in plain lists, tuples, sets and dicts at any depth."""
    if isinstance(value, HandleRef):
        return DeploymentHandle(value.app, value.deployment)
    if type(value) in (list, tuple, set):
        return type(value)(with_handles(item) for item in value)
    if type(value) is dict:
        return {key: with_handles(item) for key, item in value.items()}
    return value


async def run(config: bytes, life: Life) -> None:
    """Entry of a replica; ``config`` is a ReplicaConfig."""
    settings = _config_decoder.decode(config)
    caller = await callers.make(settings.controller, f"replica {settings.id}", life.clock)
    if not life.inline:  # inline, handles use the Caller of the process around it
        callers.install(caller)
    worker = Worker(settings, life, caller)
    try:
        await worker.start()
    except ReplicaFailed as failure:
        logger.debug("%s", failure)
        await worker.close()
        await caller.close()
        raise SystemExit(1) from None
    await life.stopping.wait()
    await worker.drain()
    await caller.close()
