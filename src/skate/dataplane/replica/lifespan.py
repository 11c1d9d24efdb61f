"""The ASGI lifespan of one application: started once, stopped once, its state handed to every request.

Law: one task runs the application's lifespan from start to end, because what is entered there (cancel scopes,
task groups) must be left in the same task; this object owns that task and sees its exception. An application
that knows nothing of lifespans is served all the same, as the ASGI specification asks.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from skate.core.clock import Clock, within
from skate.core.errors import DeployError

log = logging.getLogger("skate.replica")

STARTUP_S = 3600.0  # loading a large model in a startup hook takes minutes; an hour means it hangs
SHUTDOWN_S = 20.0  # the default of graceful_shutdown_timeout_s
UNWIND_S = 1.0  # for a lifespan that was cancelled or has reported its failure to come to its end


class Lifespan:
    """Runs the startup and shutdown of ``app``: ``start`` once, ``request_state`` after it, ``stop`` once."""

    def __init__(
        self, app: ASGIApp, clock: Clock, startup_s: float = STARTUP_S, shutdown_s: float = SHUTDOWN_S
    ) -> None:
        self._app = app
        self._clock = clock
        self._startup_s = startup_s
        self._shutdown_s = shutdown_s
        self._state: dict[str, Any] = {}
        self._inbox: asyncio.Queue[Message] = asyncio.Queue(maxsize=2)  # startup and shutdown, nothing else ever
        self._started = asyncio.Event()  # it answered the startup, or ended
        self._answer: Message | None = None
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self.supported = True
        self.failure: BaseException | None = None  # what the lifespan itself died of

    def request_state(self) -> dict[str, Any]:
        """A copy of what the startup has yielded: with one of its own begins each request's ``scope["state"]``."""
        return dict(self._state)

    async def start(self) -> None:
        """Runs the startup. Raises DeployError, caused by the application's own exception, when that fails."""
        self._inbox.put_nowait({"type": "lifespan.startup"})
        self._task = asyncio.create_task(self._run(), name="lifespan")
        if not await within(self._clock, self._started.wait(), self._startup_s):
            await self._cancel()
            raise DeployError(f"the startup of the ASGI application did not end within {self._startup_s:g} s")
        if self._answer is None:  # it ended without a word: no support for lifespans
            self.supported = False
            return
        if self._answer["type"] == "lifespan.startup.failed":
            await within(self._clock, asyncio.shield(self._task), UNWIND_S)
            await self._cancel()
            raise self._startup_error() from self.failure

    async def stop(self) -> None:
        """Runs the shutdown, at most ``shutdown_s``, then ends the task by force. What goes wrong is logged."""
        task = self._task
        if task is None or task.done() or self._stopping:
            return
        self._stopping = True
        self._inbox.put_nowait({"type": "lifespan.shutdown"})
        if not await within(self._clock, asyncio.shield(task), self._shutdown_s):
            log.warning("the shutdown of the ASGI application did not end within %g s", self._shutdown_s)
            await self._cancel()
        elif self.failure is not None:
            log.error("the shutdown of the ASGI application failed", exc_info=self.failure)

    async def _run(self) -> None:
        scope: Scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self._state,
        }
        try:
            await self._app(scope, self._inbox.get, self._send)
        except asyncio.CancelledError:
            pass  # by _cancel, which has said why
        except BaseException as error:  # SystemExit too: user code must not take the event loop with it
            self.failure = error
        finally:
            self._report_end()
            self._started.set()

    def _report_end(self) -> None:
        if self._answer is None:
            log.debug("the ASGI application does not take part in lifespans", exc_info=self.failure)
        elif self._answer["type"] == "lifespan.startup.complete" and not self._stopping:
            log.error("the lifespan of the ASGI application ended while it served", exc_info=self.failure)

    async def _send(self, message: Message) -> None:
        if message["type"].startswith("lifespan.startup."):
            self._answer = message
            self._started.set()
        elif message["type"] == "lifespan.shutdown.failed" and self.failure is None:
            self.failure = DeployError(message.get("message") or "the application gave no reason")

    def _startup_error(self) -> DeployError:
        if self.failure is not None:
            reason = f"{type(self.failure).__name__}: {self.failure}"
        else:
            reason = str((self._answer or {}).get("message") or "it gave no reason").rstrip()
        return DeployError(f"the startup of the ASGI application failed: {reason}")

    async def _cancel(self) -> None:
        if self._task is not None and not self._task.done():
            self._stopping = True
            self._task.cancel()
            await within(self._clock, asyncio.shield(self._task), UNWIND_S)
