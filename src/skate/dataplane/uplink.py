"""The line of a process to the controller: snapshots come down, reports go up.

Law: the data plane works without it. When the controller is away the last snapshot stays in force, and the line is
tried again until the controller is back; then the latest report of each kind is said again.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Any

import msgspec

from skate.core.clock import Clock
from skate.core.errors import NotRunningError
from skate.core.specs import Counts, Snapshot
from skate.dataplane.router import Router
from skate.dataplane.transport.memory import LISTENERS
from skate.dataplane.transport.peers import Peer, connect
from skate.engine.runtime_dir import running_pid

logger = logging.getLogger("skate.uplink")

RETRY_S = (0.02, 0.05, 0.1, 0.2, 0.5)  # between attempts to reach the controller
STEADY_S = 1.0  # a line that lived this long is tried again at once when it is lost
LEDGER_PERIOD_S = 0.5  # counts of calls are told at most this often, and only when they changed
URGENT_PERIOD_S = 0.05  # the same where a call waits and no replica is there: it shall not wait for us, too
CLOSE_S = 0.5  # for the last counts
METRICS_S = 5.0  # for the controller to say the metrics

_snapshot_decoder = msgspec.msgpack.Decoder(Snapshot)


class Uplink:
    """Keeps a Router up to date and the controller informed."""

    def __init__(self, address: str, name: str, router: Router, clock: Clock) -> None:
        self.address = address
        self.name = name
        self.router = router
        self.clock = clock
        self.peer: Peer | None = None
        self.connected = asyncio.Event()
        self._reports: dict[str, bytes] = {}
        self._task: asyncio.Task[None] | None = None
        self._asks: set[asyncio.Task[None]] = set()
        self._ledger_timer: asyncio.TimerHandle | None = None
        self._told: Counts = {}  # the counts that the controller has, on this connection
        self._urgent_timer: asyncio.TimerHandle | None = None
        self._urgent_at = float("-inf")  # when a starved call was told last
        self._closing = False
        router.on_activity = self._plan_ledger
        router.on_starved = self._plan_urgent

    def start(self) -> None:
        """Begins to connect; returns at once."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        attempt = 0
        while True:
            lost = asyncio.Event()
            try:
                peer = await connect(self.address, self.name)
            except Exception as error:
                logger.debug("the controller cannot be reached: %s", error)
                if not self.router.ended and not may_live(self.address):
                    self.router.instance_ended()
                await self.clock.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
                attempt += 1
                continue
            since = self.clock.now()
            peer.on_lost = _setter(lost)
            if not peer.closed:
                self.peer = peer
                peer.subscribe("snapshots", b"", self._on_snapshot, _closer(peer))
                for method, body in self._reports.items():
                    self._send(method, body)
                self._told = {}
                self._say_ledger()
                self.connected.set()
                await lost.wait()
            self.connected.clear()
            self.peer = None
            if self.clock.now() - since < STEADY_S:  # it answers and hangs up: that must not become a busy loop
                await self.clock.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
                attempt += 1
            else:
                attempt = 0

    def _on_snapshot(self, data: bytes) -> None:
        self.router.apply(_snapshot_decoder.decode(data))

    # -- reports --------------------------------------------------------------------------------

    def report(self, method: str, value: Any) -> asyncio.Task[None] | None:
        """Tells the controller; the latest value of each method is repeated after a reconnection.

        Returns the task that ends when the controller has it, None while there is no connection.
        """
        body = msgspec.msgpack.encode(value)
        self._reports[method] = body
        return self._send(method, body) if self.peer is not None else None

    def _send(self, method: str, body: bytes) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._ask(method, body))
        self._asks.add(task)
        task.add_done_callback(self._asks.discard)
        return task

    async def _ask(self, method: str, body: bytes) -> None:
        peer = self.peer
        if peer is None:
            return
        try:
            await peer.ask(method, body)
        except Exception as error:
            self._told = {}  # whatever was lost: all counts come again
            logger.debug("report %s was not taken: %s", method, error)

    async def told(self, method: str, value: Any, timeout_s: float = 5.0) -> None:
        """Reports and waits until the controller has it, at most ``timeout_s``. Who is back later hears it, too."""
        body = self._reports[method] = msgspec.msgpack.encode(value)
        try:
            async with asyncio.timeout(timeout_s):
                await self.connected.wait()
                if self._reports[method] is body:  # else something newer was said meanwhile
                    await self._send(method, body)
        except TimeoutError:
            logger.debug("report %s waited longer than %s s", method, timeout_s)

    def _plan_ledger(self) -> None:
        if self._ledger_timer is None and not self._closing:
            self._ledger_timer = asyncio.get_running_loop().call_later(LEDGER_PERIOD_S, self._tell_ledger)

    def _plan_urgent(self) -> None:
        left_s = self._urgent_at + URGENT_PERIOD_S - self.clock.now()
        if left_s <= 0:
            self._tell_urgent()
        elif self._urgent_timer is None and not self._closing:
            self._urgent_timer = asyncio.get_running_loop().call_later(left_s, self._tell_urgent)

    def _tell_urgent(self) -> None:
        self._urgent_timer = None
        self._urgent_at = self.clock.now()
        self._say_ledger()

    def _tell_ledger(self) -> None:
        self._ledger_timer = None
        self.router.activity_seen()
        self._say_ledger()

    def _say_ledger(self) -> asyncio.Task[None] | None:
        """Tells the counts that changed since they were last told on this connection."""
        if self.peer is None:
            return None
        counts = self.router.counts()
        if any(report.queued for report in counts.values()):  # what waits is sent without a new call: look again
            self._plan_ledger()
        news = {key: report for key, report in counts.items() if self._told.get(key) != report}
        if not news:
            return None
        self._told = counts
        return self._send("report_ledger", msgspec.msgpack.encode(news))

    async def tell_ledger(self) -> None:
        """Tells the counts now and waits until the controller has them, at most ``CLOSE_S``."""
        task = self._say_ledger()
        asks = [task] if task is not None else list(self._asks)
        if asks:
            await asyncio.wait(asks, timeout=CLOSE_S)

    async def metrics(self) -> bytes:
        """The metrics of the instance, with this process's counts as they are now. NotRunningError if it is away."""
        await self.tell_ledger()
        if self.peer is None:
            raise NotRunningError("the controller is away")
        return await self.peer.ask("metrics", timeout_s=METRICS_S)

    async def close(self) -> None:
        """Says the last counts and ends the line."""
        self._closing = True
        for timer in (self._ledger_timer, self._urgent_timer):
            if timer is not None:
                timer.cancel()
        self._ledger_timer = self._urgent_timer = None
        await self.tell_ledger()
        if self._task is not None:
            self._task.cancel()
        if self.peer is not None:
            self.peer.on_lost = None
            self.peer.close()


def may_live(address: str) -> bool:
    """False when the instance behind a controller's address is surely gone, and not only its controller."""
    kind, _, place = address.partition(":")
    return place in LISTENERS if kind == "memory" else running_pid(os.path.dirname(place)) is not None


def _setter(lost: asyncio.Event) -> Callable[[Peer], None]:
    return lambda peer: lost.set()


def _closer(peer: Peer) -> Callable[[BaseException | None], None]:
    """A controller that ends the snapshots is ending: the line is closed and tried anew."""
    return lambda error: peer.close()
