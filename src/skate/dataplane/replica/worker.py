"""The replica process: becomes ready, accepts calls, drains, ends.

Law: it tells the controller every phase it enters (starting, importing, loading, ready, draining, failed) before
it does anything slow; it accepts no call before it is ready and never more than ``max_ongoing_requests`` at once; when
told to stop it finishes what it has in hand.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from typing import Any

import msgspec

from skate.authoring.code import load, loads
from skate.authoring.sources import install
from skate.core import context
from skate.core.context import ReplicaContext
from skate.core.environment import export, export_default
from skate.core.specs import (
    DeploymentSpec,
    HandleRef,
    LoopBlocking,
    LoopReport,
    ReplicaConfig,
    ReplicaPhase,
    ReplicaReport,
)
from skate.dataplane import caller as callers
from skate.dataplane.caller import Caller
from skate.dataplane.handle import DeploymentHandle
from skate.dataplane.replica.callable import Target, construct
from skate.dataplane.replica.invoke import Invoker
from skate.dataplane.replica.lifespan import Lifespan
from skate.dataplane.replica.slots import PARKED, REFUSED, Slots
from skate.dataplane.replica.views import build_asgi
from skate.dataplane.replica.watchdog import Watchdog
from skate.dataplane.shared.pool import fetched
from skate.dataplane.transport.exchange import Exchange, Session
from skate.dataplane.transport.failure import described
from skate.dataplane.transport.peers import Listener, listen
from skate.dataplane.wire.head import CONTROL
from skate.engine.base import Life

logger = logging.getLogger("skate.replica")

DESTRUCTOR_S = 3.0  # for the user's __del__ and the ASGI shutdown hooks, beside the grace for requests
FETCH_S = 5.0  # within the grace, for callers to fetch answers that lie in this process's memory
LINGER_S = 0.05  # for last frames to leave before the process ends


class ReplicaFailed(Exception):
    """The user's code could not be made ready; the controller has the report, nobody needs a second traceback."""


class Worker:
    """One replica."""

    def __init__(self, config: ReplicaConfig, life: Life, caller: Caller) -> None:
        self.config = config
        self.spec: DeploymentSpec = config.deployment
        self.life = life
        self.caller = caller
        self.slots: Slots[Exchange] = Slots(self.spec.options.max_ongoing_requests, _grant, self.begin)
        self.target: Target | None = None
        self.lifespan: Lifespan | None = None
        self.invoker: Invoker | None = None
        self.listener: Listener | None = None
        self.watchdog: Watchdog | None = None
        self.idle = asyncio.Event()
        self.idle.set()
        self.report_task: asyncio.Task[None] | None = None

    async def tell(self, phase: ReplicaPhase, message: str = "") -> None:
        report = ReplicaReport(self.config.id, phase, os.getpid(), message)
        await self.caller.uplink.told("report_replica", report)

    # -- becoming ready -------------------------------------------------------------------------

    async def start(self) -> None:
        """Imports, constructs, listens. Raises ReplicaFailed after it told the controller why."""
        stage = "the import of its code"
        try:
            await self.tell("importing")
            apply_environment(self.config)
            install(self.config.sources)
            code = load(self.spec.code)
            args, kwargs = loads(self.spec.init)
            stage = "its constructor"
            await self.tell("loading")
            await self._load(code, with_handles(args), with_handles(kwargs))
            stage = "opening its socket"
            await self._listen()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # SystemExit, too: a script without a __main__ guard that is imported
            text = f"in {stage}: {described(error)}"
            await self.tell("failed", text[-32_000:])
            raise ReplicaFailed(text) from None
        gc.collect()
        if not self.life.inline:
            gc.freeze()  # what start-up made stays: later collections need not look at it
            self._watch_loop()
        await self.tell("ready")

    def _watch_loop(self) -> None:
        """Not inline, where all replicas share one loop with everything else."""
        bound_s = self.spec.options.loop_block_warning_s
        if bound_s and self.invoker is not None:
            name = f"replica {self.config.id}"
            self.watchdog = Watchdog(name, bound_s, self.life.clock, self.invoker, self._tell_blocked)
            self.watchdog.start()

    def _tell_blocked(self, blocked: tuple[LoopBlocking, ...]) -> None:
        self.caller.uplink.report("report_loop", LoopReport(self.config.id, blocked))

    async def _load(self, code: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        spec = self.spec
        _set_context(self.config, None, self.life.inline)
        self.target = target = await construct(spec.app, spec.name, code, args, kwargs)
        _set_context(self.config, target.instance, self.life.inline)
        self.invoker = Invoker(target, self.life.clock, max_threads=spec.options.max_threads)
        if spec.asgi:
            target.asgi = build_asgi(code, target.instance, run_sync=self.invoker.threads.run)
            self.lifespan = Lifespan(target.asgi, self.life.clock)
            await self.lifespan.start()
            target.state = self.lifespan.request_state()
        if spec.options.user_config is not None:
            await target.reconfigure(spec.options.user_config)

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
            exchange.fail(NotImplementedError(f"a replica has no control method {exchange.head.method!r}"))
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
        grace_s = self.spec.options.graceful_shutdown_timeout_s
        for exchange in self.slots.close():
            exchange.refuse(returned=True)
        self.report_task = self.caller.uplink.report(
            "report_replica", ReplicaReport(self.config.id, "draining", os.getpid())
        )
        try:
            async with asyncio.timeout(grace_s):
                await self.idle.wait()
                await fetched(self.life.clock, FETCH_S)
        except TimeoutError:
            logger.warning(
                "replica %s ends with %d requests unfinished after %s s of grace",
                self.config.id, self.slots.ongoing, grace_s,
            )  # fmt: skip
        await self.close()

    async def close(self) -> None:
        """Ends everything that was started, in reverse order."""
        if self.watchdog is not None:
            self.watchdog.stop()
        if self.listener is not None:
            if self.invoker is not None:
                await self.invoker.close(0.0, self.spec.options.graceful_shutdown_timeout_s)
            await self.life.clock.sleep(LINGER_S)
            await self.listener.close()
        try:
            async with asyncio.timeout(DESTRUCTOR_S):
                if self.lifespan is not None:
                    await self.lifespan.stop()
                if self.target is not None:
                    await self.target.destroy()
        except Exception:
            logger.exception("the destructor of replica %s failed", self.config.id)


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
    settings = msgspec.msgpack.decode(config, type=ReplicaConfig)
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
