"""The router against replicas of memory: order, late binding, one outcome for each call, and retries."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from skate.core.clock import ManualClock, SystemClock
from skate.core.context import RequestContext
from skate.core.errors import (
    BackPressureError,
    CallTimeoutError,
    DeploymentUnavailableError,
    NotFoundError,
    NotRunningError,
    PayloadTooLargeError,
    ReplicaDiedError,
    RequestCancelledError,
)
from skate.core.specs import DeploymentTarget, ReplicaTarget, Snapshot
from skate.dataplane.call import Call
from skate.dataplane.ledger import Outcome
from skate.dataplane.replica.slots import PARKED, PARKED_MAX, REFUSED, Slots
from skate.dataplane.router import AHEAD_BYTES, Lane, Router
from skate.dataplane.transport import peers
from skate.dataplane.transport.exchange import Exchange, Session
from skate.dataplane.transport.peers import Listener, listen
from skate.dataplane.wire.head import PYTHON, CallHead

LIMIT_S = 10.0


class Noted(Call):
    """A call that notes how it ended."""

    def __init__(self, id: str, deadline: float | None = None, key: str = "app/D") -> None:
        super().__init__(key, CallHead(PYTHON, "m", id), deadline)
        self.chunks: list[bytes] = []
        self.ends: list[BaseException | None] = []
        self.ended = asyncio.Event()

    def on_chunk(self, data: bytes) -> None:
        self.chunks.append(data)

    def on_items(self, data: bytes) -> None:
        self.chunks.append(data)

    def on_end(self, error: BaseException | None) -> None:
        self.ends.append(error)
        self.ended.set()


class Replica:
    """A callee with slots; holds what it accepted until told to answer."""

    def __init__(self, id: str, limit: int) -> None:
        self.id = id
        self.address = f"memory:{id}"
        self.held: list[Exchange] = []
        self.seen: list[str] = []
        self.most = 0
        self.refused = 0
        self.slots: Slots[Exchange] = Slots(limit, lambda session: session.grant(1), self.begin)  # type: ignore[attr-defined]
        self.listener: Listener | None = None
        self.session: Session | None = None

    async def start(self) -> Replica:
        self.listener = await listen(self.address, self.accept, self.id)
        self.listener.listening.load = lambda: self.slots.load
        self.listener.listening.on_recall = self.give_back
        self.listener.listening.on_release = self.slots.release
        self.listener.listening.on_session_lost = self.slots.forget
        return self

    def accept(self, exchange: Exchange) -> None:
        self.session = exchange.session
        verdict = self.slots.offer(exchange.session, exchange, exchange.granted, exchange.ahead)
        if verdict == REFUSED:
            self.refused += 1
            exchange.refuse()
        elif verdict == PARKED and exchange not in self.held:
            exchange.on_cancel = lambda *why: self.slots.withdraw(exchange)

    def give_back(self, session: Session) -> None:
        for exchange in self.slots.give_back(session):
            exchange.refuse(returned=True)

    def begin(self, exchange: Exchange) -> None:
        exchange.begin()
        self.most = max(self.most, self.slots.ongoing)
        self.seen.append(exchange.head.request_id)
        self.held.append(exchange)
        exchange.on_end = self.slots.free

    def answer(self, count: int = 1) -> None:
        for _ in range(count):
            self.held.pop(0).reply(self.id.encode())

    async def die(self) -> None:
        assert self.listener is not None
        await self.listener.close()


def target(*replicas: Replica, limit: int = 2, queue: int = -1, unavailable: str | None = None) -> DeploymentTarget:
    seen = tuple(ReplicaTarget(replica.id, replica.address) for replica in replicas)
    return DeploymentTarget("app", "D", limit, queue, seen, unavailable)


def snapshot(*targets: DeploymentTarget) -> Snapshot:
    return Snapshot(1, True, {one.key: one for one in targets}, ())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0)


def play(scene: Callable[[Router], Awaitable[None]]) -> None:
    """Runs a scene; at its end every accepted call must have exactly one outcome and the ledger must balance."""

    async def main() -> None:
        router = Router("driver 1", SystemClock())
        accepted: list[Noted] = []
        submit = router.submit

        def noting(call: Call, body: bytes, complete: bool = True) -> None:
            accepted.append(call)  # type: ignore[arg-type]
            submit(call, body, complete)
            assert router.ledger.accepted == router.ledger.open + sum(router.ledger.outcomes)

        router.submit = noting  # type: ignore[method-assign]
        async with asyncio.timeout(LIMIT_S):
            await scene(router)
            await router.close()
            for call in accepted:
                if call.outcome is None:
                    call.cancel("the scene is over")
                assert len(call.ends) == 1
        assert router.ledger.open == 0 and router.ledger.accepted == len(accepted) == sum(router.ledger.outcomes)

    asyncio.run(main())


def lane_of(router: Router) -> Lane:
    return router.lanes["app/D"]


def marked(id: str, retries: int, key: str = "app/D") -> Noted:
    call = Noted(id, key=key)
    call.retries = retries
    return call


def submit(router: Router, *ids: str) -> list[Noted]:
    calls = [Noted(id) for id in ids]
    for call in calls:
        router.submit(call, b"")
    return calls


def test_calls_are_answered_in_order_of_arrival_as_slots_free() -> None:
    async def scene(router: Router) -> None:
        replica = await Replica("a", 2).start()
        router.apply(snapshot(target(replica)))
        calls = submit(router, *"123456")
        await until(lambda: len(replica.held) == 2)
        for _ in range(6):
            await until(lambda: replica.held)
            replica.answer()
        for call in calls:
            await call.ended.wait()
            assert call.outcome is Outcome.OK and call.chunks == [b"a"]
        assert replica.seen == list("123456") and replica.most == 2
        await replica.die()

    play(scene)


def test_a_call_before_the_first_snapshot_waits_for_it() -> None:
    async def scene(router: Router) -> None:
        (call,) = submit(router, "1")
        assert call.outcome is None
        replica = await Replica("a", 1).start()
        router.apply(snapshot(target(replica)))
        await until(lambda: replica.held)
        replica.answer()
        await call.ended.wait()
        assert call.outcome is Outcome.OK
        await replica.die()

    play(scene)


def test_a_new_replica_gets_waiting_work_at_once() -> None:
    async def scene(router: Router) -> None:
        first, second = await Replica("a", 1).start(), await Replica("b", 1).start()
        router.apply(snapshot(target(first, limit=1)))
        submit(router, "1", "2")
        await until(lambda: first.held)
        router.apply(snapshot(target(first, second, limit=1)))
        await until(lambda: second.held)
        assert second.seen == ["2"]
        await first.die()
        await second.die()

    play(scene)


def test_two_routers_share_a_replica_first_come_first_served_and_never_exceed_its_limit() -> None:
    async def scene(router: Router) -> None:
        other = Router("driver 2", SystemClock())
        replica = await Replica("a", 1).start()
        for one in (router, other):
            one.apply(snapshot(target(replica, limit=1)))
        mine = submit(router, *[f"m{i}" for i in range(200)])
        await until(lambda: replica.slots.load == 1 + PARKED_MAX)  # as many as it lets wait
        theirs = [Noted(f"t{i}") for i in range(5)]
        for call in theirs:
            other.submit(call, b"")
        (lane,) = other.lanes.values()
        await until(lambda: all(link.peer for link in lane.links.values()))  # it has said that it is there
        for _ in range(len(mine) + len(theirs)):
            await until(lambda: replica.held)
            replica.answer()
        for call in (*mine, *theirs):
            await call.ended.wait()
            assert call.outcome is Outcome.OK
        assert replica.most == 1
        assert [id for id in replica.seen if id[0] == "m"] == [f"m{i}" for i in range(200)]
        assert [id for id in replica.seen if id[0] == "t"] == [f"t{i}" for i in range(5)]
        last = replica.seen.index("t4")  # what came later from the router that was there first did not go before it
        assert last <= 1 + PARKED_MAX + 2 * len(theirs) + 2 * PARKED_MAX, replica.seen
        await other.close()
        await replica.die()

    play(scene)


def test_what_waits_at_the_only_replica_comes_back_when_another_one_is_there() -> None:
    async def scene(router: Router) -> None:
        first, second = await Replica("a", 2).start(), await Replica("b", 2).start()
        router.apply(snapshot(target(first)))
        calls = submit(router, *map(str, range(8)))
        await until(lambda: first.slots.load == 8)
        assert len(first.held) == 2 and not router.lanes["app/D"].queued
        router.apply(snapshot(target(first, second)))
        await until(lambda: len(second.held) == 2)
        assert second.seen == ["2", "3"] and router.lanes["app/D"].queued == 4
        assert not first.refused and not second.refused
        first.answer()
        await until(lambda: calls[0].ends and len(first.held) == 2)
        assert first.seen == ["0", "1", "4"]
        router.apply(snapshot(target(second)))  # the first one leaves; alone, the second gets them ahead
        await until(lambda: second.slots.load == 5)
        for replica in (first, second):
            while replica.held:
                replica.answer()
        for call in calls:
            await call.ended.wait()
            assert call.outcome is Outcome.OK
        for replica in (first, second):
            await replica.die()

    play(scene)


def test_nothing_waits_at_a_replica_that_is_large_or_must_be_counted() -> None:
    async def scene(router: Router) -> None:
        replica = await Replica("a", 1).start()
        router.apply(snapshot(target(replica, limit=1)))
        submit(router, "0", "1")
        await until(lambda: replica.slots.load == 2)
        large, small = Noted("large"), Noted("small")
        router.submit(large, bytes(AHEAD_BYTES + 1))
        router.submit(small, b"")
        assert large.queued and small.queued  # in order, too
        for _ in range(4):
            await until(lambda: replica.held)
            replica.answer()
        await small.ended.wait()
        assert replica.seen == ["0", "1", "large", "small"]
        router.apply(snapshot(target(replica, limit=1, queue=1)))
        submit(router, "2")
        assert submit(router, "3")[0].queued
        assert isinstance(submit(router, "4")[0].ends[0], BackPressureError)
        for _ in range(2):
            await until(lambda: replica.held)
            replica.answer()
        await until(lambda: not router.ledger.open)
        await replica.die()

    play(scene)


def test_a_full_queue_refuses_and_the_queued_ones_complete() -> None:
    async def scene(router: Router) -> None:
        replica = await Replica("a", 1).start()
        router.apply(snapshot(target(replica, limit=1, queue=1)))
        await until(lambda: router.lanes["app/D"].links["a"].peer)
        running, queued, refused = submit(router, "1", "2", "3")
        error = refused.ends[0]
        assert refused.outcome is Outcome.REFUSED and isinstance(error, BackPressureError)
        assert "max_queued_requests" in str(error)
        for call in (running, queued):
            await until(lambda: replica.held)
            replica.answer()
            await call.ended.wait()
        await replica.die()

    play(scene)


def test_cancel_while_queued_and_while_running() -> None:
    async def scene(router: Router) -> None:
        replica = await Replica("a", 1).start()
        router.apply(snapshot(target(replica, limit=1)))
        running, queued, third = submit(router, "1", "2", "3")
        await until(lambda: replica.held)
        assert queued.cancel("why not") and not queued.cancel()
        assert isinstance(queued.ends[0], RequestCancelledError) and "why not" in str(queued.ends[0])
        exchange = replica.held.pop(0)
        assert running.cancel()
        await until(lambda: exchange.ended)
        await until(lambda: replica.held)
        replica.answer()
        await third.ended.wait()
        assert replica.seen == ["1", "3"]
        await replica.die()

    play(scene)


def test_deadlines_end_calls_wherever_they_are() -> None:
    async def scene(router: Router) -> None:
        replica = await Replica("a", 1).start()
        router.apply(snapshot(target(replica, limit=1)))
        now = router.clock.now()
        # The one that waits ends first: it would get the slot otherwise, for the moment until its own end is heard of.
        running, queued, dead = Noted("1", now + 0.1), Noted("2", now + 0.05), Noted("3", now - 1)
        for call in (running, queued, dead):
            router.submit(call, b"")
        assert dead.outcome is Outcome.TIMED_OUT
        await running.ended.wait()
        await queued.ended.wait()
        for call in (running, queued, dead):
            assert call.outcome is Outcome.TIMED_OUT and isinstance(call.ends[0], CallTimeoutError)
        await until(lambda: replica.held[0].ended)
        assert replica.seen == ["1"]
        await replica.die()

    play(scene)


def test_work_whose_deadline_has_passed_is_not_sent_even_if_its_timer_is_late() -> None:
    async def scene(router: Router) -> None:
        router.clock = clock = ManualClock(100.0)
        replica = await Replica("a", 1).start()
        router.apply(snapshot(target(replica, limit=1, queue=10)))
        running, late, next = Noted("1"), Noted("2", clock.now() + 50), Noted("3", clock.now() + 500)
        for call in (running, late, next):
            router.submit(call, b"")
        await until(lambda: running.started)
        clock.advance(60)
        replica.answer()
        await until(lambda: next.started)
        assert late.outcome is Outcome.TIMED_OUT and "while waiting for a slot" in str(late.ends[0])
        assert replica.seen == ["1", "3"] and replica.held[0].head.timeout_s == 440
        gone = Noted("4", clock.now())
        router.submit(gone, b"")
        assert gone.outcome is Outcome.TIMED_OUT
        await replica.die()

    play(scene)


def test_a_refused_caller_is_told_when_to_come_back() -> None:
    async def scene(router: Router) -> None:
        router.clock = clock = ManualClock(100.0)
        replica = await Replica("a", 1).start()
        router.apply(snapshot(target(replica, limit=1, queue=4)))
        submit(router, "1")
        await until(lambda: replica.held)
        submit(router, *"2345")

        def advice() -> float | None:
            (refused,) = submit(router, "too many")
            (error,) = refused.ends
            assert isinstance(error, BackPressureError)
            return error.retry_after_s

        assert advice() == 1  # nothing is known yet
        for id in "67":
            await until(lambda: replica.held)
            replica.answer()
            await until(lambda: lane_of(router).queued == 3)
            submit(router, id)
        clock.advance(2)
        assert advice() == 4  # four wait, one leaves each second
        router.apply(snapshot(replace(target(replica, limit=1, queue=4), retry_after_s=0.5)))
        assert advice() == 0.5
        await replica.die()

    play(scene)


def test_what_was_started_is_lost_with_its_replica_and_the_rest_goes_elsewhere() -> None:
    async def scene(router: Router) -> None:
        first, second = await Replica("a", 1).start(), await Replica("b", 1).start()
        router.apply(snapshot(target(first, limit=1)))
        started, waiting = submit(router, "1", "2")
        await until(lambda: started.started)
        await first.die()
        await started.ended.wait()
        assert started.outcome is Outcome.LOST and isinstance(started.ends[0], ReplicaDiedError)
        assert "replica a died" in str(started.ends[0])
        router.apply(snapshot(target(second, limit=1)))
        await until(lambda: second.held)
        second.answer()
        await waiting.ended.wait()
        assert waiting.outcome is Outcome.OK
        await second.die()

    play(scene)


def test_what_was_sent_but_not_started_is_sent_again() -> None:
    async def scene(router: Router) -> None:
        def silent(exchange: Exchange) -> None:
            exchange.session.close()  # dies before it began

        listener = await listen("memory:a", silent, "a")
        second = await Replica("b", 5).start()
        router.apply(snapshot(target(Replica("a", 5))))
        (call,) = submit(router, "1")
        await until(lambda: call.losses >= 1)
        router.apply(snapshot(target(second)))
        await until(lambda: second.held)
        second.answer()
        await call.ended.wait()
        assert call.outcome is Outcome.OK and call.losses >= 1
        await listener.close()
        await second.die()

    play(scene)


def test_what_was_not_started_goes_to_a_replica_that_is_idle_already() -> None:
    async def scene(router: Router) -> None:
        def silent(exchange: Exchange) -> None:
            exchange.session.close()  # dies before it began

        listener = await listen("memory:a", silent, "a")
        idle = await Replica("b", 5).start()
        router.chance = lambda: 0.0  # the first of two equally loaded ones
        router.apply(snapshot(target(Replica("a", 5), idle, queue=10)))
        await until(lambda: all(link.peer for link in router.lanes["app/D"].links.values()))
        (call,) = submit(router, "1")
        assert call.link is not None and call.link.target.id == "a"
        await listener.close()  # nobody comes back there
        await until(lambda: idle.held)
        idle.answer()
        await call.ended.wait()
        assert call.outcome is Outcome.OK and call.losses == 1
        await idle.die()

    play(scene)


def test_a_call_that_kills_every_replica_before_it_starts_ends_after_some_losses() -> None:
    async def scene(router: Router) -> None:
        def silent(exchange: Exchange) -> None:
            exchange.session.close()  # dies before it began

        listener = await listen("memory:a", silent, "a")
        router.apply(snapshot(target(Replica("a", 5))))
        (call,) = submit(router, "1")
        await call.ended.wait()
        assert call.outcome is Outcome.LOST and "before it started" in str(call.ends[0])
        await listener.close()

    play(scene)


def test_unknown_and_unavailable_and_deleted() -> None:
    async def scene(router: Router) -> None:
        router.apply(snapshot(target(unavailable="its constructor raised ValueError")))
        unknown = Noted("0", key="app/Nope")
        router.submit(unknown, b"")
        assert isinstance(unknown.ends[0], NotFoundError) and "app/D" in str(unknown.ends[0])
        (failed,) = submit(router, "1")
        assert isinstance(failed.ends[0], DeploymentUnavailableError) and "ValueError" in str(failed.ends[0])
        router.apply(snapshot(target()))
        (waiting,) = submit(router, "2")
        assert waiting.outcome is None
        router.apply(snapshot())
        assert isinstance(waiting.ends[0], DeploymentUnavailableError)

    play(scene)


def test_calls_in_flight_finish_on_a_replica_that_left_the_snapshot() -> None:
    async def scene(router: Router) -> None:
        old, new = await Replica("a", 2).start(), await Replica("b", 2).start()
        router.apply(snapshot(target(old)))
        (running,) = submit(router, "1")
        await until(lambda: old.held)
        router.apply(snapshot(target(new)))
        (later,) = submit(router, "2")
        await until(lambda: new.held)
        old.answer()
        await running.ended.wait()
        assert running.outcome is Outcome.OK
        new.answer()
        await later.ended.wait()
        assert old.seen == ["1"] and new.seen == ["2"]
        await old.die()
        await new.die()

    play(scene)


def test_a_cancelled_parent_ends_its_children_and_later_ones_at_once() -> None:
    async def scene(router: Router) -> None:
        replica = await Replica("a", 1).start()
        router.apply(snapshot(target(replica, limit=1)))
        parent = RequestContext("r", "app", "P")
        child = Noted("1")
        child.context = parent
        router.submit(child, b"")
        assert parent.children == {child}
        parent.cancel_reason, parent.cancel_cause = "client went away", "client_disconnected"
        late = Noted("2")
        late.context = parent
        router.submit(late, b"")
        assert late.outcome is Outcome.CANCELLED and "client went away" in str(late.ends[0])
        assert isinstance(late.ends[0], RequestCancelledError) and late.ends[0].cause == "client_disconnected"
        parent.cancel("client went away", "client_disconnected")
        assert child.outcome is Outcome.CANCELLED and not parent.children
        over = RequestContext("r", "app", "P")
        timed_out = Noted("3")
        timed_out.context = over
        router.submit(timed_out, b"")
        over.cancel("time is over", "timed_out")
        assert timed_out.outcome is Outcome.TIMED_OUT and isinstance(timed_out.ends[0], CallTimeoutError)
        await replica.die()

    play(scene)


def test_ended_calls_do_not_pile_up_behind_one_that_waits() -> None:
    async def scene(router: Router) -> None:
        replica = await Replica("a", 1).start()
        router.apply(snapshot(target(replica, limit=1)))
        submit(router, "running", "waiting")
        for i in range(1000):
            (call,) = submit(router, str(i))
            call.cancel()
        assert len(router.lanes["app/D"].waiting) < 200
        await replica.die()

    play(scene)


def test_a_call_refused_while_its_deployment_is_removed_ends() -> None:
    async def scene(router: Router) -> None:
        replica = await Replica("a", 5).start()
        replica.slots.closed = True  # draining: it refuses and promises nothing
        router.apply(snapshot(target(replica, queue=10)))
        await until(lambda: router.lanes["app/D"].links["a"].peer)
        (call,) = submit(router, "1")
        assert call.link is not None
        router.apply(snapshot())
        await call.ended.wait()
        assert call.outcome is Outcome.REFUSED and isinstance(call.ends[0], DeploymentUnavailableError)
        await replica.die()

    play(scene)


def test_a_call_refused_by_a_leaving_replica_goes_to_the_deployment_of_the_same_name_that_follows() -> None:
    async def scene(router: Router) -> None:
        old, new = await Replica("a", 5).start(), await Replica("b", 5).start()
        old.slots.closed = True
        router.apply(snapshot(target(old, queue=10)))
        await until(lambda: router.lanes["app/D"].links["a"].peer)
        (call,) = submit(router, "1")
        router.apply(snapshot())
        router.apply(snapshot(target(new)))
        await until(lambda: call.outcome is not None or new.held)
        if call.outcome is None:
            new.answer()
        await call.ended.wait()
        assert call.outcome is Outcome.OK and new.seen == ["1"]
        await old.die()
        await new.die()

    play(scene)


def test_closing_ends_every_call_wherever_it_is() -> None:
    """Also one that is sent but not started, one whose deployment is gone, and one that comes too late."""

    async def scene(router: Router) -> None:
        replica, deaf = await Replica("a", 1).start(), await Replica("b", 1).start()
        deaf.accept = lambda exchange: None  # type: ignore[method-assign]
        await deaf.die()
        listener = await listen(deaf.address, lambda exchange: None, "b")  # takes calls, says nothing
        early = Noted("early")
        router.submit(early, b"")
        early.cancel()
        router.apply(snapshot(target(replica, limit=1)))
        running, queued = submit(router, "1", "2")
        await until(lambda: replica.held)
        router.apply(snapshot())  # the deployment is gone, its call goes on
        await until(lambda: queued.outcome is Outcome.REFUSED)
        router.apply(snapshot(target(deaf)))
        (sent,) = submit(router, "3")
        await until(lambda: sent.link is not None and sent.link.peer is not None)
        sent.started = False
        await router.close()
        assert running.outcome is sent.outcome is Outcome.CANCELLED
        (late,) = submit(router, "4")
        assert late.outcome is Outcome.REFUSED and isinstance(late.ends[0], NotRunningError)
        router.apply(snapshot(target(replica)))
        assert not router.lanes
        await until(lambda: not replica.listener.listening.sessions and not listener.listening.sessions)  # type: ignore[union-attr]
        await listener.close()
        await replica.die()

    play(scene)


def test_a_call_that_cannot_be_sent_ends_and_its_slot_goes_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(router: Router) -> None:
        replica = await Replica("a", 1).start()
        router.apply(snapshot(target(replica, limit=1)))
        (first,) = submit(router, "1")
        await until(lambda: replica.held)
        monkeypatch.setattr(peers, "FRAME_MAX", 1000)
        large, odd = Noted("2"), Noted("odd \ud800")
        router.submit(large, b"x" * 2000)
        router.submit(odd, b"")
        (last,) = submit(router, "3")
        replica.answer()
        await until(lambda: replica.held)
        assert isinstance(large.ends[0], PayloadTooLargeError) and large.outcome is Outcome.REFUSED
        assert isinstance(odd.ends[0], UnicodeEncodeError) and odd.outcome is Outcome.REFUSED
        replica.answer()
        await last.ended.wait()
        assert first.outcome is last.outcome is Outcome.OK and replica.slots.promised == 0
        await replica.die()

    play(scene)


def test_a_slot_promised_for_a_call_that_cannot_be_sent_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(router: Router) -> None:
        other = Router("driver 2", SystemClock())
        replica = await Replica("a", 1).start()
        for one in (router, other):
            one.apply(snapshot(target(replica, limit=1)))
        (first,) = submit(router, "1")
        await until(lambda: replica.held)
        large, last = Noted("large"), Noted("last")
        other.submit(large, b"x" * 2000)
        await until(lambda: large.queued)  # refused, to be told when it is its turn
        monkeypatch.setattr(peers, "FRAME_MAX", 1000)
        replica.answer()
        await large.ended.wait()
        await until(lambda: not replica.slots.promised)
        other.submit(last, b"")
        await until(lambda: replica.held)
        replica.answer()
        await last.ended.wait()
        assert first.outcome is last.outcome is Outcome.OK and large.outcome is Outcome.REFUSED
        await other.close()
        await replica.die()

    play(scene)


def test_an_owner_that_fails_costs_no_other_call_its_end(caplog: pytest.LogCaptureFixture) -> None:
    class Clumsy(Noted):
        def on_end(self, error: BaseException | None) -> None:
            super().on_end(error)
            raise ValueError("clumsy")

    async def scene(router: Router) -> None:
        replica = await Replica("a", 1).start()
        router.apply(snapshot(target(replica, limit=1)))
        submit(router, "0")
        clumsy, other = Clumsy("1"), Noted("2")
        router.submit(clumsy, b"")
        router.submit(other, b"")
        await until(lambda: replica.held)
        router.apply(snapshot())
        await until(lambda: other.ends)
        assert clumsy.outcome is other.outcome is Outcome.REFUSED and other.ends
        assert "clumsy" in caplog.text
        await replica.die()

    play(scene)


def test_routers_that_crowd_a_replica_do_not_send_their_queues_in_vain() -> None:
    """A slot that frees costs about one refusal, not one for each call that finds room by the count of its router."""

    async def scene(router: Router) -> None:
        other = Router("driver 2", SystemClock())
        replica = await Replica("a", 50).start()
        for one in (router, other):
            one.apply(snapshot(target(replica, limit=50)))
        calls = submit(router, *map(str, range(300)))
        theirs = [Noted(f"t{i}") for i in range(300)]
        for call in theirs:
            other.submit(call, b"")
        for _ in range(600):
            await until(lambda: replica.held)
            for _ in range(10):
                await asyncio.sleep(0)
            replica.answer()
        for call in (*calls, *theirs):
            await call.ended.wait()
        assert replica.refused < 1000 and replica.most == 50
        await other.close()
        await replica.die()

    play(scene)


def test_what_waited_at_a_replica_of_a_deployment_that_cannot_start_ends() -> None:
    async def scene(router: Router) -> None:
        replica = await Replica("a", 1).start()
        router.apply(snapshot(target(replica, limit=1)))
        running, parked = submit(router, "1", "2")
        await until(lambda: replica.slots.load == 2)
        router.apply(snapshot(target(unavailable="its replicas keep failing")))
        await parked.ended.wait()
        assert isinstance(parked.ends[0], DeploymentUnavailableError) and "keep failing" in str(parked.ends[0])
        replica.answer()
        await running.ended.wait()
        assert running.outcome is Outcome.OK
        await replica.die()

    play(scene)


def test_calls_that_cannot_be_sent_end_one_after_the_other_however_many_wait() -> None:
    async def scene(router: Router) -> None:
        replica = await Replica("a", 1).start()
        router.apply(snapshot(target(replica, limit=1, queue=3000)))
        (first,) = submit(router, "1")
        await until(lambda: replica.held)
        bad = submit(router, *(f"\udc80{number}" for number in range(2000)))  # has no UTF-8
        replica.answer()
        await first.ended.wait()
        await until(lambda: all(call.ends for call in bad))
        await replica.die()

    play(scene)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system has no memfd")
def test_counting_takes_nothing_from_a_call_whose_refusal_is_on_its_way(tmp_path: Path) -> None:
    """The mark of a later call covers it, though it never began."""

    async def scene(router: Router) -> None:
        replica = Replica("a", 2)
        replica.address = f"unix:{tmp_path}/a"
        await replica.start()
        other = Router("driver 2", SystemClock())
        for one in (router, other):
            one.apply(snapshot(target(replica, limit=2, queue=100)))
            await until(lambda one=one: one.lanes["app/D"].links["a"].peer)
        for id in ("b1", "b2"):
            other.submit(Noted(id), b"")
        await until(lambda: len(replica.held) == 2)
        peer = router.lanes["app/D"].links["a"].peer
        assert peer is not None and peer.transport is not None
        peer.transport.pause_reading()  # its loop is busy for a moment
        refused, later = Noted("r"), Noted("l")
        router.submit(refused, b"arguments")
        await until(lambda: replica.refused == 1)
        replica.answer(2)  # one slot is promised to the refused router, one is free
        router.submit(later, b"")
        await until(lambda: "l" in replica.seen)
        router.counts()
        assert refused.body == b"arguments" and not refused.started
        peer.transport.resume_reading()
        await until(lambda: "r" in replica.seen)
        assert replica.held[-1].body == b"arguments"
        replica.answer(2)
        await refused.ended.wait()
        await other.close()
        await replica.die()

    play(scene)
