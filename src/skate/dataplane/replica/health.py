"""Readiness by the user's word: ``check_health`` is called now and then, and what it says is told when it changes.

Law: a check waits for no request and no check waits for another: at most one runs, a ``def`` on a thread of its own.
One that raises is a strike; one that does not end is a strike for each ``health_check_timeout_s`` that it hangs. A
class without ``check_health`` costs nothing here. What follows from strikes (three in a row replace a replica) is
decided by the controller.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
from collections.abc import Callable
from functools import partial

from skate.core.clock import Clock, within
from skate.core.options import DeploymentOptions
from skate.dataplane.replica.callable import Target
from skate.dataplane.replica.threads import aside
from skate.dataplane.replica.trace import failure_of

logger = logging.getLogger("skate.replica")

JITTER = 0.1  # of the period, both ways: replicas that were started together are not checked together


class HealthChecks:
    """The checks of one replica. ``tell(strikes, error)`` is called when the strikes change; 0: it is well."""

    def __init__(
        self,
        name: str,
        target: Target,
        clock: Clock,
        options: DeploymentOptions,
        tell: Callable[[int, str], object],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.strikes = 0
        self._name, self._target, self._clock, self._tell, self._chance = name, target, clock, tell, chance
        self._period_s, self._timeout_s = options.health_check_period_s, options.health_check_timeout_s
        self._changed = asyncio.Event()  # the period is another
        self._check: asyncio.Task[str | None] | None = None  # the one that runs; or hangs
        self._task: asyncio.Task[None] | None = None
        self._context = contextvars.copy_context()

    async def first(self) -> str | None:
        """One check before the replica is ready; what is wrong, if anything is."""
        return await self._look()

    def start(self) -> None:
        """Checks from now on, until ``close``."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="health checks")

    def take_up(self, options: DeploymentOptions) -> None:
        """Another period begins now; another timeout counts from the next check on."""
        if options.health_check_period_s != self._period_s:
            self._period_s = options.health_check_period_s
            self._changed.set()
        self._timeout_s = options.health_check_timeout_s

    def close(self) -> None:
        """Ends the checks; a thread that hangs in one stays behind."""
        for task in (self._task, self._check):
            if task is not None:
                task.cancel()

    async def _run(self) -> None:
        while True:
            if self._check is None:
                await self._pause()
            self._note(await self._look())

    async def _pause(self) -> None:
        while await within(self._clock, self._changed.wait(), self._period_s * (1 + JITTER * (2 * self._chance() - 1))):
            self._changed.clear()

    async def _look(self) -> str | None:
        """What is wrong, after one check, or after more patience with the one that hangs."""
        if self._check is not None:
            if not await self._ended(self._check):
                return self._late()
            self._check = None  # whatever it says, it says too late
        check = self._check = self._context.run(self._begin)
        if not await self._ended(check):
            if self._target.health_kind == "async":
                check.cancel()
            return self._late()
        self._check = None
        return "check_health() was cancelled" if check.cancelled() else check.result()

    def _begin(self) -> asyncio.Task[str | None]:
        asked = failure_of(self._target.check_health(partial(aside, name="skate-check-health")))
        return asyncio.get_running_loop().create_task(asked, name="check_health")

    async def _ended(self, check: asyncio.Task[str | None]) -> bool:
        return await within(self._clock, asyncio.shield(check), self._timeout_s)

    def _late(self) -> str:
        return f"check_health() did not end within {self._timeout_s:g} s (health_check_timeout_s)"

    def _note(self, error: str | None) -> None:
        if error is not None:
            self.strikes += 1
            logger.warning("%s: failed health check, %d in a row\n%s", self._name, self.strikes, error)
            self._tell(self.strikes, error)
        elif self.strikes:
            logger.info("%s: healthy again, after %d failed health checks", self._name, self.strikes)
            self.strikes = 0
            self._tell(0, "")
