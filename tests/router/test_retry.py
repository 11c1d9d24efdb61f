"""Sending again what a dying replica had started: only what is marked, only before the first byte of an answer."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from skate.controlplane.decide.ledger import total
from skate.core.errors import ReplicaDiedError
from skate.dataplane.call import KEPT_MAX
from skate.dataplane.ledger import Outcome
from skate.dataplane.router import Router
from tests.router.test_router import Noted, Replica, marked, play, snapshot, submit, target, until


async def started(
    router: Router, call: Noted, *replicas: Replica, body: bytes = b"in", complete: bool = True
) -> Replica:
    """Submits a call; the replica that has started it."""
    router.submit(call, body, complete)
    await until(lambda: call.started)
    return next(replica for replica in replicas if replica.held)


@pytest.mark.parametrize("retry", [1, {"m": 1}, {"m": 1, "other": 5}])
def test_a_marked_call_is_executed_again_as_often_as_it_says(retry: int | dict[str, int]) -> None:
    async def scene(router: Router) -> None:
        replicas = [await Replica(id, 1).start() for id in "abc"]
        router.apply(snapshot(replace(target(*replicas, limit=1), retry=retry)))
        call = Noted("1")
        first = await started(router, call, *replicas)
        await first.die()
        replicas.remove(first)
        await until(lambda: any(replica.held for replica in replicas))
        (second,) = [replica for replica in replicas if replica.held]
        assert second.held[0].body == b"in"
        await until(lambda: call.started)
        assert total(router.counts().values()).retried == 1 and total(router.counts().values()).started == 1
        await second.die()
        replicas.remove(second)
        await call.ended.wait()
        assert call.outcome is Outcome.LOST and "the last of 2 that died" in str(call.ends[0])
        assert not replicas[0].seen
        await replicas[0].die()

    play(scene)


@pytest.mark.parametrize("retry", [0, {"other": 5}])
def test_what_is_not_marked_is_not_executed_again_and_says_how_to(retry: int | dict[str, int]) -> None:
    async def scene(router: Router) -> None:
        first, second = await Replica("a", 1).start(), await Replica("b", 1).start()
        router.apply(snapshot(replace(target(first, second, limit=1), retry=retry)))
        call = Noted("1")
        had = await started(router, call, first, second)
        await had.die()
        await call.ended.wait()
        assert isinstance(call.ends[0], ReplicaDiedError) and "retry=" in str(call.ends[0])
        assert router.ledger.report().retried == 0
        for replica in (first, second):
            await replica.die()

    play(scene)


def test_the_handle_has_the_last_word() -> None:
    async def scene(router: Router) -> None:
        first = await Replica("a", 1).start()
        router.apply(snapshot(replace(target(first, limit=1), retry=3)))
        call = marked("1", 0)
        await started(router, call, first)
        await first.die()
        await call.ended.wait()
        assert call.outcome is Outcome.LOST

    play(scene)


@pytest.mark.parametrize("many", [False, True])
def test_after_the_first_byte_of_the_answer_it_is_too_late(many: bool) -> None:
    async def scene(router: Router) -> None:
        first, second = await Replica("a", 1).start(), await Replica("b", 1).start()
        router.apply(snapshot(target(first, limit=1)))
        call = marked("1", 5)
        await started(router, call, first)
        if many:
            call.on_items = call.on_chunk  # type: ignore[method-assign]
            call.wire_items(b"item")  # as the wire does with several items of a stream at once
        else:
            first.held[0].send_nowait(b"item")
        await until(lambda: call.chunks)
        report = total(router.counts().values())
        assert (report.queued, report.sent, report.started) == (0, 0, 1)
        assert not call.body  # nothing is kept for nothing
        router.apply(snapshot(target(first, second, limit=1)))
        await first.die()
        await call.ended.wait()
        assert call.outcome is Outcome.LOST and call.chunks == [b"item"] and not second.seen
        await second.die()

    play(scene)


def test_input_that_came_later_is_sent_again_with_the_call() -> None:
    async def scene(router: Router) -> None:
        first, second = await Replica("a", 1).start(), await Replica("b", 1).start()
        router.apply(snapshot(target(first, limit=1)))
        call = marked("1", 1)
        await started(router, call, first, complete=False, body=b"one")
        await call.send(b"two")
        await call.send(b"three", last=True)
        router.apply(snapshot(target(first, second, limit=1)))
        await first.die()
        await until(lambda: second.held)
        exchange = second.held[0]
        assert exchange.complete and exchange.body == b"onetwothree"
        assert await exchange.receive() is None
        second.answer()
        await call.ended.wait()
        assert call.outcome is Outcome.OK
        await second.die()

    play(scene)


def test_half_an_input_is_not_sent_again() -> None:
    async def scene(router: Router) -> None:
        first, second = await Replica("a", 1).start(), await Replica("b", 1).start()
        router.apply(snapshot(target(first, limit=1)))
        call = marked("1", 1)
        await started(router, call, first, complete=False)
        await call.send(b"two")
        router.apply(snapshot(target(first, second, limit=1)))
        await first.die()
        await call.ended.wait()
        assert call.outcome is Outcome.LOST and not second.seen
        await second.die()

    play(scene)


@pytest.mark.parametrize("at_once", [True, False])
def test_more_input_than_is_kept_is_not_sent_again(at_once: bool) -> None:
    async def scene(router: Router) -> None:
        first = await Replica("a", 1).start()
        router.apply(snapshot(target(first, limit=1)))
        call = marked("1", 1)
        await started(router, call, first, complete=at_once, body=b"x" * (KEPT_MAX + 1) if at_once else b"")
        if not at_once:
            for left in reversed(range(KEPT_MAX // 65_536 + 1)):
                sending = router.loop.create_task(call.send(b"x" * 65_536, last=not left))
                await first.held[0].receive()
                await sending
        assert not call.body and not call.more and not call.may_be_repeated
        await first.die()
        await call.ended.wait()
        assert call.outcome is Outcome.LOST

    play(scene)


def test_the_callees_own_error_is_no_reason_to_try_again() -> None:
    async def scene(router: Router) -> None:
        first = await Replica("a", 1).start()
        router.apply(snapshot(target(first, limit=1)))
        call = marked("1", 5)
        await started(router, call, first)
        first.held.pop().fail(ReplicaDiedError("one that the handler called has died"))
        await call.ended.wait()
        assert call.outcome is Outcome.LOST and first.seen == ["1"] and router.ledger.report().retried == 0
        await first.die()

    play(scene)


def test_a_call_that_waits_to_be_sent_again_can_be_cancelled_and_its_deadline_goes_on() -> None:
    async def scene(router: Router) -> None:
        first = await Replica("a", 2).start()
        router.apply(snapshot(target(first)))
        late = Noted("late", router.clock.now() + 0.2)
        late.retries = 5
        router.submit(late, b"")
        call = marked("1", 5)
        await started(router, call, first)
        await until(lambda: late.started)
        await first.die()
        await until(lambda: call.queued and late.queued)
        report = total(router.counts().values())
        assert (report.queued, report.started, report.retried) == (2, 0, 2)
        assert call.cancel()
        await late.ended.wait()
        assert (call.outcome, late.outcome) == (Outcome.CANCELLED, Outcome.TIMED_OUT)

    play(scene)


def test_it_comes_before_what_arrived_after_it() -> None:
    async def scene(router: Router) -> None:
        first, second = await Replica("a", 1).start(), await Replica("b", 1).start()
        router.apply(snapshot(target(first, limit=1)))
        call = marked("1", 1)
        await started(router, call, first)
        submit(router, "2", "3")
        await first.die()
        router.apply(snapshot(target(second, limit=1)))
        await until(lambda: second.held)
        assert second.seen == ["1"]
        await second.die()

    play(scene)


def test_input_in_pieces_is_sent_again_as_one_body_to_a_replica_that_is_slow_to_read() -> None:
    """The next replica has given no credit for pieces: sent as such they would break its connection."""

    async def scene(router: Router) -> None:
        first, second = await Replica("a", 5).start(), await Replica("b", 5).start()
        router.apply(snapshot(target(first)))
        call = marked("1", 1)
        router.submit(call, b"", False)
        await until(lambda: first.held)
        pieces = [bytes([number]) * 128 * 1024 for number in range(16)]

        async def eat() -> None:
            while await first.held[0].receive() is not None:
                pass

        eating = asyncio.create_task(eat())
        for number, piece in enumerate(pieces):
            await call.send(piece, number == len(pieces) - 1)
        await eating
        router.apply(snapshot(target(second)))
        await first.die()
        await until(lambda: second.held)
        bystander = Noted("2")
        router.submit(bystander, b"")
        await until(lambda: len(second.held) == 2)
        assert second.held[0].complete and second.held[0].body == b"".join(pieces)
        second.answer(2)
        await call.ended.wait()
        await bystander.ended.wait()
        assert call.outcome is bystander.outcome is Outcome.OK
        await second.die()

    play(scene)
