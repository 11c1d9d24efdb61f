"""A call that waits where no replica is: the controller hears of it at once, and of what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from skate.core.clock import SystemClock
from skate.core.specs import Counts, LedgerReport
from skate.dataplane import uplink as uplinks
from skate.dataplane.router import Router
from skate.dataplane.transport.exchange import Exchange
from skate.dataplane.transport.peers import listen
from skate.dataplane.uplink import Uplink
from tests.router.test_router import LIMIT_S, Noted, Replica, lane_of, snapshot, submit, target, until

ADDRESS = "memory:starved"


class Controller:
    """Takes counts, and remembers them."""

    def __init__(self) -> None:
        self.told: list[LedgerReport] = []

    def accept(self, exchange: Exchange) -> None:
        if exchange.head.method == "report_ledger":
            counts = msgspec.msgpack.decode(exchange.body, type=Counts)
            self.told.append(counts["app/D"])
            exchange.reply(b"")


def play(scene: Callable[[Router, Controller, Uplink], Awaitable[None]]) -> None:
    async def main() -> None:
        router, controller = Router("driver", SystemClock()), Controller()
        listener = await listen(ADDRESS, controller.accept, "controller")
        uplink = Uplink(ADDRESS, "driver", router, SystemClock())
        async with asyncio.timeout(LIMIT_S):
            uplink.start()
            await uplink.connected.wait()
            await scene(router, controller, uplink)
            await router.close()
            await uplink.close()
            await listener.close()

    asyncio.run(main())


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts are not told by time."""
    monkeypatch.setattr(uplinks, "LEDGER_PERIOD_S", 3600.0)


@pytest.mark.usefixtures("never")
def test_the_first_call_that_waits_without_a_replica_is_told_at_once() -> None:
    async def scene(router: Router, controller: Controller, uplink: Uplink) -> None:
        router.apply(snapshot(target()))
        submit(router, "1")
        await until(lambda: controller.told)
        assert controller.told == [LedgerReport(accepted=1, open=1, queued=1)]

    play(scene)


@pytest.mark.usefixtures("never")
def test_a_call_that_came_before_the_first_snapshot_is_told_with_it() -> None:
    async def scene(router: Router, controller: Controller, uplink: Uplink) -> None:
        submit(router, "1")
        router.apply(snapshot(target()))
        await until(lambda: controller.told)
        assert controller.told[0].queued == 1

    play(scene)


@pytest.mark.usefixtures("never")
def test_a_call_that_waits_when_the_last_replica_goes_is_told() -> None:
    async def scene(router: Router, controller: Controller, uplink: Uplink) -> None:
        replica = await Replica("a", 1).start()
        router.apply(snapshot(target(replica, limit=1, queue=10)))
        await until(lambda: lane_of(router).only and lane_of(router).only.peer)  # type: ignore[union-attr]
        calls = submit(router, "1", "2")
        await until(lambda: replica.held)
        assert not controller.told and lane_of(router).queued == 1
        router.apply(snapshot(target()))
        await until(lambda: controller.told)
        assert controller.told[0].queued == 1 and controller.told[0].open == 2
        replica.answer()
        await calls[0].ended.wait()
        await replica.die()

    play(scene)


@pytest.mark.usefixtures("never")
def test_calls_that_come_and_go_without_a_replica_are_told_no_more_often_than_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uplinks, "URGENT_PERIOD_S", 3600.0)

    async def scene(router: Router, controller: Controller, uplink: Uplink) -> None:
        router.apply(snapshot(target()))
        for name in map(str, range(50)):
            (call,) = submit(router, name)
            call.cancel("enough")
        await until(lambda: controller.told)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(controller.told) == 1 and uplink._urgent_timer is not None

    play(scene)


def test_what_waited_and_is_sent_is_told_without_another_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uplinks, "LEDGER_PERIOD_S", 0.01)

    async def scene(router: Router, controller: Controller, uplink: Uplink) -> None:
        replica = await Replica("a", 1).start()
        router.apply(snapshot(target()))
        (call,) = submit(router, "1")
        await until(lambda: controller.told and uplink._ledger_timer is not None)
        router.apply(snapshot(target(replica)))
        await until(lambda: replica.held)
        await until(lambda: controller.told[-1].queued == 0)
        assert controller.told[-1].open == 1
        replica.answer()
        await call.ended.wait()
        await until(lambda: uplink._ledger_timer is None)  # nothing waits, nothing ticks
        await replica.die()

    play(scene)


@pytest.mark.usefixtures("never")
def test_calls_that_wait_behind_replicas_are_not_urgent() -> None:
    async def scene(router: Router, controller: Controller, uplink: Uplink) -> None:
        replica = await Replica("a", 1).start()
        router.apply(snapshot(target(replica, limit=1, queue=10)))
        await until(lambda: lane_of(router).only and lane_of(router).only.peer)  # type: ignore[union-attr]
        submit(router, "1", "2", "3")
        await until(lambda: replica.held)
        assert uplink._urgent_at == float("-inf") and not controller.told
        await replica.die()

    play(scene)


@pytest.mark.usefixtures("never")
def test_limits_and_deadlines_hold_where_no_replica_is() -> None:
    async def scene(router: Router, controller: Controller, uplink: Uplink) -> None:
        router.apply(snapshot(target(queue=2)))
        calls = submit(router, "1", "2", "3")
        assert [type(call.ends[0]).__name__ for call in calls if call.ends] == ["BackPressureError"]
        late = Noted("4", deadline=router.clock.now() + 0.01)
        calls[0].cancel("enough")
        router.submit(late, b"")
        await late.ended.wait()
        assert [type(error).__name__ for error in late.ends] == ["CallTimeoutError"]

    play(scene)
