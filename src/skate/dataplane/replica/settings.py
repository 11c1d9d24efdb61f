"""What a replica runs with, and how it takes up something else while it serves.

Law: one change at a time; of several that are wanted meanwhile only the last. A change waits for no request: the user's
``reconfigure`` runs beside them, a ``def`` on a thread of its own. It is called only for another ``user_config``, and
first: when it fails, nothing else is taken up, and the replica goes on with what it had and says why.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from skate.core.clock import Clock, within
from skate.core.options import DeploymentOptions
from skate.core.specs import UNSURE_CONFIG, DeploymentSpec, Reconfiguration
from skate.dataplane.replica.trace import failure_of

logger = logging.getLogger("skate.replica")

RECONFIGURE_S = 3600.0  # loading another model takes minutes; an hour means it hangs
_UNSURE = object()  # the user's reconfigure has begun with something and not ended well: it may hold half of it

Answer = Callable[[], object]


class Settings:
    """The options in force, and the change under way.

    ``call_user`` gets a new ``user_config``; ``take_up`` gets the options after that; ``tell`` is awaited when a change
    has ended, well (``config`` is another) or not (``error`` says why), before whoever wanted it is answered.
    """

    def __init__(
        self,
        spec: DeploymentSpec,
        clock: Clock,
        call_user: Callable[[Any], Awaitable[None]],
        take_up: Callable[[DeploymentOptions], object],
        tell: Callable[[], Awaitable[None]],
    ) -> None:
        self.config = spec.config
        self.options = spec.options
        self.error = ""
        self._name = spec.key
        self._clock = clock
        self._call_user, self._apply, self._tell = call_user, take_up, tell
        self._given: Any = spec.options.user_config  # what the user's reconfigure was last called with
        self._wanted: Reconfiguration | None = None
        self._answer: Answer | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self.context = contextvars.copy_context()  # in which the user's part runs

    def want(self, wanted: Reconfiguration, answer: Answer) -> None:
        """Wants this from now on; ``answer`` is called when it has been taken up, has failed or was overtaken."""
        overtaken, self._answer = self._answer, answer
        self._wanted = wanted
        if overtaken is not None:
            overtaken()
        if self._closed:
            self._answer = None
            answer()
        elif self._task is None:
            self.context.run(self._start)

    def close(self) -> None:
        """Ends a change under way and begins none any more."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()

    def _start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="reconfigure")

    async def _run(self) -> None:
        answer: Answer | None = None
        try:
            while self._wanted is not None and not self._closed:
                wanted, self._wanted = self._wanted, None
                answer, self._answer = self._answer, None
                await self._change(wanted)
                if not (self.error and self._wanted is not None):  # else somebody takes it for the next one's
                    await self._tell()
                if answer is not None:
                    answer()
                answer = None
        finally:
            self._task = None
            left, self._answer = (answer, self._answer), None
            for waiting in left:
                if waiting is not None:
                    waiting()

    async def _change(self, wanted: Reconfiguration) -> None:
        error = await self._configured(wanted.options.user_config)
        if error is None:
            try:
                self._apply(wanted.options)
            except Exception as failure:  # such as no thread left: ours to say, not to die of
                error = f"the options could not be taken up: {type(failure).__name__}: {failure}"
        if error is not None:
            self.error = error
            if self._given is _UNSURE:  # so that going back to the former one is a change, too
                self.config = UNSURE_CONFIG
            logger.error("%s: a new configuration was not taken up\n%s", self._name, error)
            return
        self.config, self.options, self.error = wanted.config, wanted.options, ""

    async def _configured(self, user_config: Any) -> str | None:
        """Gives the user's class its new configuration, if it is one; what went wrong."""
        if _same(user_config, self._given):
            return None
        self._given = _UNSURE
        call = asyncio.get_running_loop().create_task(failure_of(self._call_user(user_config)))
        try:
            ended = await within(self._clock, asyncio.shield(call), RECONFIGURE_S)
        finally:
            call.cancel()  # who swallows it goes on alone
        if not ended:
            return f"reconfigure() did not end within {RECONFIGURE_S:g} s"
        error = "reconfigure() was cancelled" if call.cancelled() else call.result()
        if error is None:
            self._given = user_config
        return error


def _same(one: Any, other: Any) -> bool:
    """Equal as plain data: ``1``, ``1.0`` and ``True`` are three things to a user."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
