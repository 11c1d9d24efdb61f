"""The worker's door: what waits for a slot, and what its deadline is when it gets one."""

from __future__ import annotations

import asyncio
from typing import Any

from skate.core.clock import ManualClock
from skate.core.options import DeploymentOptions
from skate.core.specs import CodeRef, DeploymentSpec, ReplicaConfig
from skate.dataplane.replica.worker import Worker
from skate.dataplane.transport import peers
from skate.dataplane.transport.exchange import Exchange
from skate.dataplane.wire.frames import AHEAD
from skate.dataplane.wire.head import PYTHON, CallHead, encode_head
from skate.engine.base import Life
from tests.router.test_router import Noted, until


class Held:
    """An invoker that keeps what it is given."""

    def __init__(self) -> None:
        self.given: list[tuple[Exchange, Any]] = []

    def run(self, exchange: Exchange, done: Any) -> None:
        exchange.begin()
        self.given.append((exchange, done))

    def left(self) -> list[float | None]:
        return [exchange.head.timeout_s for exchange, _ in self.given]


def test_the_deadline_of_a_call_goes_on_while_it_waits_for_a_slot() -> None:
    async def main() -> None:
        clock = ManualClock(50.0)
        options = DeploymentOptions(max_ongoing_requests=1)
        spec = DeploymentSpec("a", "A", CodeRef(), b"", options)
        address = "memory:worker"
        worker = Worker(ReplicaConfig("a/A#1", spec, address, ""), Life(clock, True), None)  # type: ignore[arg-type]
        worker.invoker = held = Held()  # type: ignore[assignment]
        await worker._listen()
        peer = await peers.connect(address, "driver")
        for timeout_s in (9.0, 9.0, 3.0, None):
            head = encode_head(CallHead(PYTHON, "m", "id", timeout_s))
            peer.open(Noted("id"), head, b"", True, AHEAD)
        await until(lambda: worker.slots.load == 4)
        for _ in range(3):
            clock.advance(4.0)
            held.given[-1][1]()  # the one that runs has ended
        assert held.left() == [9.0, 5.0, -5.0, None]
        peer.close()
        assert worker.listener is not None
        await worker.listener.close()

    asyncio.run(main())
