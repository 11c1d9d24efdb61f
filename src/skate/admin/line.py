"""The line of the REST server to the controller. Law: it is there or it is not; nobody waits for it.

While the controller is away the line is tried again until it is back, and the last report is then said again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

import msgspec

from skate.admin.answers import AWAY
from skate.controlplane.client import ControllerClient
from skate.core.clock import Clock
from skate.core.errors import NotRunningError
from skate.core.specs import ProxyReport
from skate.dataplane.transport.peers import Peer, connect

logger = logging.getLogger("skate.admin")

RETRY_S = (0.02, 0.05, 0.1, 0.2, 0.5)  # between attempts to reach the controller
STEADY_S = 1.0  # a line that lived this long is tried again at once when it is lost
TOLD_S = 5.0  # for the controller to hear why the server ends
REPORT = "report_proxy"


class Line:
    """Keeps a connection to the controller. Belongs to the loop in which it was started."""

    def __init__(self, address: str, name: str, clock: Clock) -> None:
        self._address = address
        self._name = name
        self._clock = clock
        self._peer: Peer | None = None
        self._report: bytes | None = None
        self._told = asyncio.Event()  # the controller has the last report
        self._saying: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to connect; returns at once."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    def controller(self) -> ControllerClient:
        """Calls to the controller. Raises NotRunningError while it is away."""
        if self._peer is None or self._peer.closed:
            raise NotRunningError(AWAY)
        return ControllerClient(self._peer)

    async def _run(self) -> None:
        attempt = 0
        while True:
            lost = asyncio.Event()
            since = self._clock.now()
            try:
                peer = await connect(self._address, self._name)
            except Exception as error:
                logger.debug("the controller cannot be reached: %s", error)
            else:
                since = self._clock.now()
                peer.on_lost = lambda _, lost=lost: lost.set()
                if not peer.closed:
                    self._peer = peer
                    self._say()
                    await lost.wait()
                    self._peer = None
            if self._clock.now() - since >= STEADY_S:
                attempt = 0
                continue
            await self._clock.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
            attempt += 1

    # -- reports --------------------------------------------------------------------------------

    def report(self, value: ProxyReport) -> None:
        """Tells the controller, now or when it is back."""
        self._report = msgspec.msgpack.encode(value)
        self._told.clear()
        if self._peer is not None:
            self._say()

    async def told(self, value: ProxyReport) -> None:
        """Reports and waits until the controller has it, at most ``TOLD_S``."""
        self.report(value)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TOLD_S):
                await self._told.wait()

    def _say(self) -> None:
        if self._report is not None and self._peer is not None:
            if self._saying is not None:
                self._saying.cancel()
            self._saying = asyncio.get_running_loop().create_task(self._send(self._peer, self._report))

    async def _send(self, peer: Peer, report: bytes) -> None:
        try:
            await peer.ask(REPORT, report)
            self._told.set()
        except Exception as error:
            logger.debug("the report was not taken: %s", error)

    async def close(self) -> None:
        """Ends the line."""
        tasks = [task for task in (self._task, self._saying) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._peer is not None:
            self._peer.on_lost = None
            self._peer.close()
            self._peer = None
