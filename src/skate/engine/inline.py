"""The inline engine: entries run as tasks of the current loop, for tests and for debugging in one process.

Law: the same contract as the process engine, but nothing here can be killed: after its grace an entry is cancelled,
and again if it goes on. What blocks the loop or swallows every cancellation cannot be ended.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from dataclasses import dataclass

from skate.core.clock import Clock
from skate.core.specs import ProcessSpec
from skate.engine.base import (
    KILLED,
    Action,
    Changed,
    EngineError,
    Life,
    ProcessSeen,
    StartProcess,
    StopProcess,
    exit_code_of,
    print_failure,
    resolve,
)

CANCELS_MAX = 10
CANCEL_AGAIN_S = 1.0


@dataclass(slots=True, eq=False)
class _Running:
    """One entry and what became of it."""

    spec: ProcessSpec
    life: Life
    task: asyncio.Task[None] | None = None
    killer: asyncio.Task[None] | None = None
    kill_at: float = 0.0
    exit_code: int | None = None

    def seen(self) -> ProcessSeen:
        return ProcessSeen(self.spec.id, self.spec.role, os.getpid(), self.exit_code is None, self.exit_code)


class InlineEngine:
    """The Engine of this loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._running: dict[str, _Running] = {}
        self._callbacks: list[Changed] = []

    async def observe(self) -> list[ProcessSeen]:
        return [one.seen() for one in self._running.values()]

    async def perform(self, action: Action) -> ProcessSeen | None:
        if isinstance(action, StartProcess):
            return self._start(action.spec)
        if isinstance(action, StopProcess):
            self._stop(action.id, action.grace_s)
        else:
            self._forget(action.id)
        return None

    def on_change(self, callback: Changed) -> None:
        self._callbacks.append(callback)

    async def close(self) -> None:
        """Cancels what still runs and waits for it."""
        for id in list(self._running):
            self._stop(id, 0.0)
        killers = {one.killer for one in self._running.values() if one.killer is not None}
        if killers:
            await asyncio.wait(killers)

    def _start(self, spec: ProcessSpec) -> ProcessSeen:
        if spec.id in self._running:
            raise EngineError(f"a process {spec.id!r} is known already: stop and forget it first, or use another id")
        one = _Running(spec, Life(self._clock, inline=True))
        self._running[spec.id] = one
        one.task = asyncio.create_task(self._run(one), name=spec.title)
        one.task.add_done_callback(lambda _: self._ended(one))
        return one.seen()

    async def _run(self, one: _Running) -> None:
        code = 1
        try:
            await resolve(one.spec.entry)(one.spec.config, one.life)
            code = 0
        except SystemExit as stop:
            code = exit_code_of(stop)
        except asyncio.CancelledError as error:
            if one.killer is not None or (one.task is not None and one.task.cancelling()):
                code = KILLED
            else:  # something inside was cancelled, not the entry
                print_failure(one.spec.title, error)
        except Exception as error:
            print_failure(one.spec.title, error)
        one.exit_code = code

    def _ended(self, one: _Running) -> None:
        if one.exit_code is None:  # cancelled before its first step
            one.exit_code = KILLED
        for callback in self._callbacks:
            callback(one.seen())

    def _stop(self, id: str, grace_s: float) -> None:
        one = self._running.get(id)
        if one is None or one.task is None or one.task.done():
            return
        one.life.stopping.set()
        kill_at = self._clock.now() + max(grace_s, 0.0)
        if one.killer is not None:
            if kill_at >= one.kill_at:
                return
            one.killer.cancel()
        one.kill_at = kill_at
        one.killer = asyncio.create_task(self._kill(one, one.task, max(grace_s, 0.0)), name=f"stop {one.spec.title}")

    async def _kill(self, one: _Running, task: asyncio.Task[None], grace_s: float) -> None:
        await self._first_of(task, grace_s)
        for _ in range(CANCELS_MAX):
            if task.done():
                return
            task.cancel()
            await self._first_of(task, CANCEL_AGAIN_S)

    async def _first_of(self, task: asyncio.Task[None], seconds: float) -> None:
        if seconds <= 0.0 or task.done():
            return
        limit = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait({task, limit}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            limit.cancel()

    def _forget(self, id: str) -> None:
        one = self._running.get(id)
        if one is None:
            return
        if one.task is not None and not one.task.done():
            raise EngineError(f"the process {id!r} is alive: stop it before it is forgotten")
        with suppress(KeyError):
            del self._running[id]
